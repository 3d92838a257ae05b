r"""The times that a sampler visits: any falling vector of times, such as these grids.

Those that are chosen by the level of noise, sigma = b / a, take the times whose log sigma is
nearest; of a process of many modes, its mean over the modes. Where levels share a nearest time,
which happens where log sigma rises fast, later ones move up to the next free time.
"""

import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int
from numpy.typing import ArrayLike

from ddpm_jax.checks import check_choice, check_count
from ddpm_jax.processes.modal import Modal, check_modal

__all__ = ["Spacing", "density_grid", "level_grid", "time_grid"]

Spacing = Literal["linspace", "leading", "trailing", "log_snr", "karras"]
"""How `time_grid` spreads its times."""


def time_grid(
    process: Modal, num_steps: int, spacing: Spacing = "linspace", *, rho: float = 7.0
) -> Int[Array, " steps"]:
    r"""`num_steps` falling times in [0, T) for `sample`, whose last step goes onto the data.

    - "linspace": evenly spread from T - 1 to 0, both ends included, and rounded; one step alone
      goes from T - 1.
    - "leading": the multiples of T // num_steps from 0 on; begins below T - 1.
    - "trailing": round(T - i T / num_steps) - 1; begins at T - 1, ends one stride above the data.
    - "log_snr": even in log SNR from T - 1 to 0, which is even in log sigma, k-diffusion's
      exponential schedule.
    - "karras": even in sigma^(1/rho) from T - 1 to 0,

    .. math::

        \sigma_i = \Big(\sigma_\mathrm{max}^{1/\rho} + \frac{i}{N - 1} \big(
        \sigma_\mathrm{min}^{1/\rho} - \sigma_\mathrm{max}^{1/\rho}\big)\Big)^\rho

    (Karras et al. 2022, eq. 5). The first three are what diffusers calls `timestep_spacing` (its
    leading grid may add a `steps_offset`, which is 0 here) and are compared in Lin et al. 2024,
    table 2: a grid that begins below T - 1 takes pure noise for images with some signal left.
    "log_snr" is the grid of Lu et al. 2022. If no signal is left at T - 1, sigma is infinite there:
    that time comes first, and the last two spacings spread the others over the rest.

    Args:
        process: a schedule, or another process of modes.
        num_steps: how many times, 1 to T.
        spacing: how they are spread.
        rho: of "karras", above 0. 1 is even in sigma, a larger one has more times of little noise,
            and at infinity the grid is "log_snr".

    Returns:
        The times, int32 `[num_steps]`, falling.

    Raises:
        ValueError: `num_steps` outside [1, T], an unknown `spacing`, or `rho` not above 0.
        TypeError: `num_steps` is no whole number; or "log_snr" or "karras" of a traced process:
            times are chosen outside of jit.
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
        - Lin et al. 2024, https://arxiv.org/abs/2305.08891
        - Lu et al. 2022, https://arxiv.org/abs/2206.00927
        - Karras et al. 2022, https://arxiv.org/abs/2206.00364
    """
    T = _check_steps(process, num_steps)
    check_choice("spacing", spacing, ("linspace", "leading", "trailing", "log_snr", "karras"))
    if not rho > 0.0:
        raise ValueError(f"rho is {rho}; it has to be above 0")
    index = np.arange(num_steps, dtype=np.int64)  # index * T outgrows int32 at T = 46341
    times: np.ndarray | list[int]
    match spacing:
        case "linspace":
            times = np.round(np.linspace(0, T - 1, num_steps))[::-1] if num_steps > 1 else [T - 1]
        case "leading":
            times = index[::-1] * (T // num_steps)
        case "trailing":
            times = np.round(T - index * T / num_steps) - 1
        case "log_snr":
            times = _between_ends(process, num_steps, rho=math.inf)
        case _:
            times = _between_ends(process, num_steps, rho=rho)
    return jnp.asarray(times, dtype=jnp.int32)


def density_grid(process: Modal, num_steps: int, density: ArrayLike) -> Int[Array, " steps"]:
    r"""`num_steps` falling times whose steps have equal shares of a density over t.

    .. math::

        \sum_{i \le t_k} d_i \approx \Big(1 - \frac{k}{N}\Big) \sum_{i < T} d_i, \qquad
        k = 0, ..., N - 1

    d_t belongs to the step of the chain from t to t - 1, and the step onto the data has a share as
    the others have. A constant density gives the "trailing" grid, except where a half is rounded.

    A grid for a given cost follows from its density. Let a step of length h around t add c_t
    h^(p + 1) to an error, of a method of order p. With d_t steps per unit of time, h = 1 / d_t, the
    total is the sum of c_t d_t^(-p). At a given number of steps it is least where c_t d_t^(-p - 1)
    is the same for all t: for d = c^(1 / (p + 1)). For an ELBO of fewer steps, p is 1 and d the
    square root of c_t, measured as the gap that one step of length 2 opens.

    Args:
        process: a schedule, or another process of modes.
        num_steps: how many times, 1 to T.
        density: of each time, `[T]`, 0 or more, not all 0; its scale does not matter.

    Returns:
        The times, int32 `[num_steps]`, falling; the first one is T - 1.

    Raises:
        ValueError: `num_steps` outside [1, T]; `density` of another shape, or not as above.
        TypeError: `num_steps` is no whole number, or `density` is traced.
        NoClosedForm: a chain without modes.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax import samplers, schedules
        >>> near_the_data = np.linspace(2.0, 0.0, 100)
        >>> samplers.density_grid(schedules.cosine(100), 5, near_the_data).tolist()
        [99, 54, 36, 21, 10]
    """
    T = _check_steps(process, num_steps)
    weight = np.asarray(density, np.float64)
    if weight.shape != (T,):
        raise ValueError(
            f"density has shape {weight.shape}; it has to have one value for each of"
            f" the T = {T} times"
        )
    if not ((weight >= 0.0) & (weight < math.inf)).all() or not weight.any():
        raise ValueError("density has to be 0 or more and finite at each time, and above 0 at some")
    share = np.cumsum(weight)
    times = _nearest(share, share[-1] * np.arange(1, num_steps + 1) / num_steps)
    times[-1] = T - 1  # also where the density is 0 there
    return jnp.asarray(times[::-1], dtype=jnp.int32)


def level_grid(process: Modal, num_steps: int, sigmas: ArrayLike) -> Int[Array, " steps"]:
    r"""`num_steps` falling times nearest to given levels of noise, sigma = b / a.

    A list that is as long as the grid is taken as it is. Otherwise its logarithm is interpolated,
    in straight lines over the index: the way in which Sabour et al. 2024 make a grid of any length
    from a list of ten optimized levels ("Align Your Steps").

    Args:
        process: a schedule, or another process of modes.
        num_steps: how many times, 1 to T; one alone is at the first level.
        sigmas: levels, falling and positive: without the 0 at the end that some lists have, since
            `sample` goes onto the data by itself.

    Returns:
        The times, int32 `[num_steps]`, falling.

    Raises:
        ValueError: `num_steps` outside [1, T]; `sigmas` that do not fall, are not positive, or that
            are beyond the levels of the chain by more than 1 percent.
        TypeError: `num_steps` is no whole number; a traced process.
        NoClosedForm: a chain without modes.

    Example:
        >>> from ddpm_jax import samplers, schedules
        >>> schedule = schedules.linear_log_snr(100)
        >>> samplers.level_grid(schedule, 5, [50.0, 2.0, 0.05]).tolist()
        [98, 77, 55, 31, 7]

    References:
        Sabour et al. 2024, https://arxiv.org/abs/2404.14507
    """
    _check_steps(process, num_steps)
    levels = np.asarray(sigmas, np.float64)
    if levels.ndim != 1 or levels.size < 1:
        raise ValueError(f"sigmas has shape {levels.shape}; it has to be a list of levels")
    if not (levels > 0.0).all() or not (np.diff(levels) < 0.0).all():
        raise ValueError(
            f"sigmas is {levels.tolist()}; levels have to be positive, and to fall (leave out a 0"
            " at the end: the last step goes onto the data by itself)"
        )
    log_sigma = _log_sigma(process)
    wanted = np.log(levels)
    if wanted[0] > log_sigma[-1] + 0.01 or wanted[-1] < log_sigma[0] - 0.01:
        low, high = np.exp(log_sigma[[0, -1]])
        raise ValueError(
            f"sigmas go from {levels[0]:g} to {levels[-1]:g}; the process has levels from"
            f" {high:.6g} to {low:.6g}"
        )
    places = np.linspace(0.0, levels.size - 1.0, num_steps)
    wanted = np.interp(places, np.arange(levels.size), wanted)
    times = _nearest(log_sigma, wanted[::-1])
    return jnp.asarray(times[::-1], dtype=jnp.int32)


def _check_steps(process: Modal, num_steps: int) -> int:
    """T; raises what every grid raises of its first two arguments."""
    check_modal("process", process)
    check_count("num_steps", num_steps)
    T = process.num_steps
    if not 1 <= num_steps <= T:
        raise ValueError(f"num_steps is {num_steps}; a chain of T = {T} has 1 to {T}")
    return T


def _log_sigma(process: Modal) -> np.ndarray:
    """log(b / a) at each time, on the host; infinite at T - 1 if no signal is left there."""
    return -0.5 * process.mean_log_snr()


def _between_ends(process: Modal, num_steps: int, *, rho: float) -> np.ndarray:
    """The times nearest to levels that are even in sigma^(1/rho) between the chain's ends."""
    log_sigma = _log_sigma(process)
    rest = log_sigma[:-1] if process.zero_terminal_snr else log_sigma
    count = num_steps - (len(log_sigma) - len(rest))
    high = rest[-1]
    low = rest[0] if count > 1 else high
    if math.isinf(rho):
        wanted = np.linspace(low, high, count)
    else:
        with np.errstate(divide="ignore"):  # a small rho: what underflows is below all levels
            even = np.linspace(np.exp((low - high) / rho), 1.0, count)
            wanted = high + rho * np.log(even)
    times = _nearest(rest, wanted)
    if process.zero_terminal_snr:
        times = np.append(times, len(rest))
    return times[::-1]


def _nearest(places: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Rising indices of rising `places` that are nearest to rising `wanted`, made distinct.

    Where several share a nearest place, later ones move up to the next free one, and all stay early
    enough to leave room for those that follow.
    """
    halfway = 0.5 * (places[1:] + places[:-1])
    index = np.arange(len(wanted))
    nearest = np.searchsorted(halfway, wanted)
    return index + np.minimum(np.maximum.accumulate(nearest - index), len(places) - len(wanted))
