"""The contract of every sampler, the grid of times, and the one loop that drives them all."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.checks import check_key
from ddpm_jax.forward import Predicts, convert
from ddpm_jax.schedules import Schedule

__all__ = ["Predict", "Sampler", "SamplerState", "Samples", "StepInfo", "sample", "time_grid"]

Predict = Callable[[Array, Array], Array]
"""A network with its parameters bound: `(x_t, t) -> prediction`, t int32 `[batch]`."""


class SamplerState(NamedTuple):
    """Where a sampler stands: the current images, and what a multistep method remembers."""

    x_t: Float[Array, "batch *data"]
    memory: Any = ()


class StepInfo(NamedTuple):
    """What one step reports: the images it moved to and the data it believed in."""

    x_s: Float[Array, "batch *data"]
    x0_hat: Float[Array, "batch *data"]


class Sampler(NamedTuple):
    """A pair of pure functions; every sampler of this package is one.

    init(key, shape) -> SamplerState at the prior
    step(key, state, t, s) -> (SamplerState at s, StepInfo), scalar int32 times s < t,
        s = -1 for the last step, onto the data
    """

    init: Callable[[Array, tuple[int, ...]], SamplerState]
    step: Callable[[Array, SamplerState, Array, Array], tuple[SamplerState, StepInfo]]


class Samples(NamedTuple):
    """The finished images, and what was kept of the steps that led there."""

    x0: Float[Array, "batch *data"]
    trajectory: Any
    """What `keep` returned, stacked over the steps; None if nothing was to be kept."""


def sample(
    sampler: Sampler,
    key: Key[Array, ""],
    shape: tuple[int, ...],
    times: Int[Array, " steps"],
    *,
    keep: Callable[[StepInfo], Any] | None = None,
) -> Samples:
    """Runs `sampler` down the falling `times` and onto the data, as one compiled scan.

    Step i goes from t = times[i] to s = times[i + 1], the last one to s = -1, with the key
    fold_in(key, t): the same key gives the same images on any mesh.

    Args:
        sampler: what `ancestral` or `ddim` returned.
        key: typed random key.
        shape: `[batch, ...]` of the images.
        times: falling times in [0, T); `time_grid` makes them.
        keep: what to keep of each step's StepInfo: `lambda info: info` for all of it,
            `lambda info: info.x_s[:8]` for the way of eight images.

    Raises:
        TypeError, ValueError: `key` is not a typed key, or `times` is not a vector of integers.
    """
    check_key("key", key)
    if times.ndim != 1 or not jnp.issubdtype(times.dtype, jnp.integer) or times.shape[0] < 1:
        raise ValueError(
            f"times has shape {times.shape} and dtype {times.dtype}; it has to be a vector of"
            " integers (samplers.time_grid makes one)"
        )
    init_key, steps_key = jax.random.split(key)

    def step(state: SamplerState, pair: tuple[Array, Array]) -> tuple[SamplerState, Any]:
        t, s = pair
        state, info = sampler.step(jax.random.fold_in(steps_key, t), state, t, s)
        return state, None if keep is None else keep(info)

    following = jnp.append(times[1:], jnp.asarray(-1, times.dtype))
    state, kept = jax.lax.scan(step, sampler.init(init_key, shape), (times, following))
    return Samples(state.x_t, kept)


def time_grid(schedule: Schedule, num_steps: int) -> Int[Array, " steps"]:
    """`num_steps` falling times, evenly spread from T - 1 to 0, both ends included.

    One step alone goes from T - 1.

    Raises:
        ValueError: `num_steps` outside [1, T].

    Example:
        >>> from ddpm_jax import samplers, schedules
        >>> samplers.time_grid(schedules.linear(10), 4).tolist()
        [9, 6, 3, 0]
    """
    last = schedule.num_steps - 1
    if not 1 <= num_steps <= schedule.num_steps:
        raise ValueError(f"num_steps is {num_steps}; a chain of T = {last + 1} has 1 to {last + 1}")
    index = np.arange(num_steps, dtype=np.int64)  # index * last outgrows int32 at T = 46342
    return jnp.asarray(last - index * last // max(num_steps - 1, 1), dtype=jnp.int32)


def standard_normal_init(key: Array, shape: tuple[int, ...]) -> SamplerState:
    """The prior: images of independent standard normal pixels."""
    return SamplerState(jax.random.normal(key, shape, jnp.float32))


def predict_x0(
    schedule: Schedule,
    predict: Predict,
    x_t: Array,
    t: Array,
    *,
    predicts: Predicts,
    clip: bool,
) -> Array:
    """x0_hat at one time `t` `[batch]`, kept inside [-1, 1] if `clip`."""
    x0_hat = convert(
        schedule, predict(x_t, schedule.network_time(t)), x_t, t, source=predicts, target="x0"
    )
    return jnp.clip(x0_hat, -1.0, 1.0) if clip else x0_hat
