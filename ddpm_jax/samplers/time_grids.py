"""The times that a sampler visits: any falling vector of times, such as these grids."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ddpm_jax.checks import check_choice, check_count
from ddpm_jax.processes.modal import Modal, check_modal

__all__ = ["Spacing", "time_grid"]

Spacing = Literal["linspace", "leading", "trailing", "log_snr"]
"""How `time_grid` spreads its times."""


def time_grid(
    process: Modal, num_steps: int, spacing: Spacing = "linspace"
) -> Int[Array, " steps"]:
    """`num_steps` falling times in [0, T) for `sample`, whose last step goes onto the data.

    - "linspace": evenly spread from T - 1 to 0, both ends included, and rounded; one step alone
      goes from T - 1.
    - "leading": the multiples of T // num_steps from 0 on; begins below T - 1.
    - "trailing": round(T - i T / num_steps) - 1; begins at T - 1, ends one stride above the data.
    - "log_snr": the times nearest to even steps in log SNR from T - 1 to 0, made distinct; of a
      process of many modes, in its mean.

    The first three are what diffusers calls `timestep_spacing` (its leading grid may add a
    `steps_offset`, which is 0 here) and are compared in Lin et al. 2023, table 2: a grid that
    begins below T - 1 takes pure noise for images with some signal left. The last is the one of Lu
    et al. 2022. If no signal is left at T - 1, log SNR is -inf there: that time comes first, and
    the others are even over the rest.

    Args:
        process: a schedule, or another process of modes.
        num_steps: how many times, 1 to T.
        spacing: how they are spread.

    Returns:
        The times, int32 `[num_steps]`, falling.

    Raises:
        ValueError: `num_steps` outside [1, T], or an unknown `spacing`.
        TypeError: `num_steps` is no whole number; or "log_snr" of a traced process: times are
            chosen outside of jit.
        NoClosedForm: a chain without modes.

    Example:
        >>> from ddpm_jax import samplers, schedules
        >>> schedule = schedules.linear(10)
        >>> samplers.time_grid(schedule, 4).tolist()
        [9, 6, 3, 0]
        >>> samplers.time_grid(schedule, 5, "leading").tolist()
        [8, 6, 4, 2, 0]
        >>> samplers.time_grid(schedule, 5, "trailing").tolist()
        [9, 7, 5, 3, 1]

    References:
        - Lin et al. 2023, https://arxiv.org/abs/2305.08891
        - Lu et al. 2022, https://arxiv.org/abs/2206.00927
    """
    check_modal("process", process)
    check_count("num_steps", num_steps)
    T = process.num_steps
    if not 1 <= num_steps <= T:
        raise ValueError(f"num_steps is {num_steps}; a chain of T = {T} has 1 to {T}")
    check_choice("spacing", spacing, ("linspace", "leading", "trailing", "log_snr"))
    index = np.arange(num_steps, dtype=np.int64)  # index * T outgrows int32 at T = 46341
    times: np.ndarray | list[int]
    match spacing:
        case "linspace":
            times = np.round(np.linspace(0, T - 1, num_steps))[::-1] if num_steps > 1 else [T - 1]
        case "leading":
            times = index[::-1] * (T // num_steps)
        case "trailing":
            times = np.round(T - index * T / num_steps) - 1
        case _:
            times = _even_in_log_snr(process, num_steps)
    return jnp.asarray(times, dtype=jnp.int32)


def _even_in_log_snr(process: Modal, num_steps: int) -> np.ndarray:
    T, log_snr = process.num_steps, process.mean_log_snr()
    if num_steps == 1:
        return np.array([T - 1])
    if process.zero_terminal_snr:
        T, num_steps, log_snr = T - 1, num_steps - 1, log_snr[:-1]
    targets = np.linspace(log_snr[0], log_snr[-1], num_steps)
    if num_steps == 1:
        targets = log_snr[-1:]
    halfway = 0.5 * (log_snr[1:] + log_snr[:-1])
    nearest = np.searchsorted(-halfway, -targets)
    # Where log SNR falls fast, several share a nearest time: later ones move up to the next free
    # time, and all stay early enough to leave room for those that follow.
    index = np.arange(num_steps)
    times = index + np.minimum(np.maximum.accumulate(nearest - index), T - num_steps)
    rising = np.append(times, T) if process.zero_terminal_snr else times
    return rising[::-1]
