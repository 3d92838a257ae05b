r"""The contract of every sampler, and the one loop that drives them all.

A sampler says where to start and how to step from time t to an earlier time s. Deterministic ones
share one formula, the flow along a constant x0_hat,

.. math::

    x_s = \frac{b_s}{b_t} x_t + a_s \big(1 - e^{-h}\big)\, \hat{x}_0, \qquad
    h = \lambda_s - \lambda_t, \qquad \lambda = \log \frac{a}{b} \tag{1}

(Lu et al. 2022, proposition 4.1), which is DDIM's step, too.

References:
    Lu et al. 2022, https://arxiv.org/abs/2211.01095
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.arrays import fold_in, normal, per_example, root, split
from ddpm_jax.checks import check_float, check_keys, check_result
from ddpm_jax.compiled import call_compiled
from ddpm_jax.forward import convert
from ddpm_jax.predictions import Predicts
from ddpm_jax.processes.modal import Modal, mix, one_minus_snr_ratio
from ddpm_jax.samplers.thresholds import Threshold

__all__ = ["Predict", "Sampler", "SamplerState", "Samples", "StepInfo", "sample"]

Predict = Callable[[Array, Array], Any]
"""A network with its parameters bound: `(x_t, t) -> prediction`, t int32 `[batch]`.

Samplers call it with `process.network_time(t)`. A network that learned its variance returns the
pair (prediction, interpolation), for `ancestral` with `variance="learned_range"`.
"""


class SamplerState(NamedTuple):
    """The current images, and what a multistep method remembers of earlier steps."""

    x_t: Float[Array, "batch *data"]
    """The current images, `[batch, ...]`."""
    memory: Any = ()
    """A pytree that the sampler's own `step` reads; empty for methods of one step."""


class StepInfo(NamedTuple):
    """What one step reports: the images it moved to, and the data that it estimated."""

    x_s: Float[Array, "batch *data"]
    """The images at s, `[batch, ...]`."""
    x0_hat: Float[Array, "batch *data"]
    """The data that the step estimated from x_t, after the threshold, `[batch, ...]`."""


class Sampler(NamedTuple):
    """A pair of pure functions; every sampler of this package is one.

    The key is one for all images, or `[batch]`, one for each.
    """

    init: Callable[[Array, tuple[int, ...], Array | None], SamplerState]
    """`(key, shape, start) -> SamplerState` at `start`, or at the prior if that is None."""
    step: Callable[[Array, SamplerState, Array, Array], tuple[SamplerState, StepInfo]]
    """`(key, state, t, s) -> (SamplerState at s, StepInfo)`, of scalar int32 times s < t.

    s = -1 is the last step, onto the data.
    """


class Samples(NamedTuple):
    """The finished images, and what `keep` returned at each step."""

    x0: Float[Array, "batch *data"]
    """The finished images, of the shape that `sample` was given."""
    trajectory: Any
    """The results of `keep`, stacked over the steps; None without `keep`."""


def sample(
    sampler: Sampler,
    key: Key[Array, "*batch"],
    shape: tuple[int, ...],
    times: Int[Array, " steps"],
    *,
    start: Float[Array, "batch *data"] | None = None,
    keep: Callable[[StepInfo], Any] | None = None,
) -> Samples:
    """Runs `sampler` down the falling `times` and onto the data, as one compiled scan.

    Step i goes from t = times[i] to s = times[i + 1], the last one to s = -1, with the key
    fold_in(key, t): the same key gives the same images on any mesh. With a key for each image, an
    image depends on its own key alone: it is the same in any place of a batch, and in a batch of
    another size it is the same up to rounding, because each size is compiled by itself.

    Called outside of `jit`, it is compiled once for the same sampler, or one made anew of the same
    process and `predict`, as long as neither they nor what they hold has changed
    (`ddpm_jax.compiled`).

    Args:
        sampler: what `ancestral`, `ddim` or another of this package returned, or one of your own.
        key: typed random key, or one for each image, `[batch]`.
        shape: `[batch, ...]` of the images.
        times: falling times in [0, T), integers `[steps]`; `time_grid` makes them. Where they do
            not fall, x0 is NaN.
        start: images at times[0] in the place of the prior's noise, shaped `shape`: what
            `ddim_inversion` returned, or `q_sample` of an image that is to be changed. The samples
            have its dtype.
        keep: what to keep of each step's StepInfo: `lambda info: info` for all of it,
            `lambda info: info.x_s[:8]` for the trajectories of eight images.

    Returns:
        The images, float32 of `shape` unless `start` says otherwise, and what `keep` returned.

    Raises:
        TypeError, ValueError: `key` is no typed key nor one for each image, `shape` has no batch,
            `times` is not a vector of integers, or `start` is not floating point or not of `shape`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ddpm_jax import samplers, schedules
        >>> schedule = schedules.cosine(1000)
        >>> sampler = samplers.ddim(schedule, lambda x_t, t: 0.0 * x_t, predicts="x0")
        >>> times = samplers.time_grid(schedule, 5)
        >>> samplers.sample(sampler, jax.random.key(0), (1, 2), times).x0.shape
        (1, 2)
    """
    if not shape:
        raise ValueError("shape is (); it has to be (batch, ...)")
    check_keys("key", key, shape[0])
    check_steps(times)
    if start is not None:
        check_float("start", start)
        if start.shape != tuple(shape):
            raise ValueError(f"start has shape {start.shape}; it has to be `shape`, {shape}")

    def run(key: Array, times: Array, start: Array | None) -> Samples:
        init_key, steps_key = split(key)

        def step(state: SamplerState, pair: tuple[Array, Array]) -> tuple[SamplerState, Any]:
            t, s = pair
            state, info = sampler.step(fold_in(steps_key, t), state, t, s)
            return state, None if keep is None else keep(info)

        state, trajectory = jax.lax.scan(
            step, sampler.init(init_key, shape, start), (times, following(times))
        )
        return Samples(nan_unless_falling(state.x_t, times), trajectory)

    return call_compiled(run, key, times, start)


def check_steps(times: Array) -> None:
    """Raises TypeError or ValueError unless `times` is a vector of at least one integer."""
    if not hasattr(times, "ndim"):
        raise TypeError(
            f"times is a {type(times).__name__}; it has to be a vector of integers"
            " (samplers.time_grid makes one)"
        )
    if times.ndim != 1 or not jnp.issubdtype(times.dtype, jnp.integer) or times.shape[0] < 1:
        raise ValueError(
            f"times has shape {times.shape} and dtype {times.dtype}; it has to be a vector of"
            " integers (samplers.time_grid makes one)"
        )


def nan_unless_falling(x: Array, times: Array) -> Array:
    """`x`, or NaN: images of times in the wrong order would look like others."""
    return jnp.where(jnp.all(times[1:] < times[:-1]), x, jnp.nan)


def following(times: Array) -> Array:
    """The s of each t in `times`: the next one, and -1 after the last."""
    times = jnp.asarray(times)
    return jnp.append(times[1:], jnp.asarray(-1, times.dtype))


def prior_init(
    process: Modal, memory: Callable[[Array], Any] = lambda x_t: ()
) -> Callable[[Array, tuple[int, ...], Array | None], SamplerState]:
    """A Sampler's init: `start`, or the prior, noise of independent modes; and `memory` of them."""

    def init(key: Array, shape: tuple[int, ...], start: Array | None = None) -> SamplerState:
        x_t = start
        if x_t is None:
            variance, _ = process.prior(shape[0])
            x_t = mix(process, (jnp.sqrt(variance), normal(key, shape, jnp.float32)))
        return SamplerState(x_t, memory(x_t))

    return init


def finish(x_s: Array, x0_hat: Array, s: Array, threshold: Threshold | None) -> tuple[Array, Array]:
    """Both as they are; on the step onto the data, x_s after `threshold`, which is x0_hat, too."""
    onto_data = per_example(s < 0, x_s)
    if threshold is not None:
        x_s = jnp.where(onto_data, threshold(x_s), x_s)
    return x_s, jnp.where(onto_data, x_s, x0_hat)


def everywhere(process: Modal, batch: int, value: float) -> Array:
    """`value` for each example and each of its modes."""
    return jnp.full_like(process.prior(batch)[0], value)


def both_times(x_t: Array, t: Array, s: Array) -> tuple[Array, Array]:
    """Scalar times as the `[batch]` ones that everything else takes."""
    return jnp.broadcast_to(t, x_t.shape[:1]), jnp.broadcast_to(s, x_t.shape[:1])


def predict_x0(
    process: Modal,
    predict: Predict,
    x_t: Array,
    t: Array,
    *,
    predicts: Predicts,
    threshold: Threshold | None,
) -> Array:
    """x0_hat at one time `t` `[batch]`, after `threshold`."""
    prediction = predict(x_t, process.network_time(t))
    return x0_of_prediction(process, prediction, x_t, t, predicts=predicts, threshold=threshold)


def x0_of_prediction(
    process: Modal,
    prediction: Array,
    x_t: Array,
    t: Array,
    *,
    predicts: Predicts,
    threshold: Threshold | None,
) -> Array:
    """`predict_x0` of a prediction that has been made."""
    check_result("predict", prediction, x_t.shape)
    x0_hat = convert(process, prediction, x_t, t, source=predicts, target="x0")
    return x0_hat if threshold is None else threshold(x0_hat)


def posterior_deviation(process: Modal, t: Array, s: Array) -> Array:
    """That of q(x_s | x_t, x_0), b_s sqrt(1 - SNR_t / SNR_s), in each mode; 0 at s = -1."""
    return process.noise(s) * root(one_minus_snr_ratio(process, t, s))


def half_log_snr_step(process: Modal, t: Array, s: Array) -> Array:
    """h = lambda_s - lambda_t > 0, lambda = log(a / b) = log SNR / 2, in each mode.

    Infinite onto the data, and from a time that has no signal.
    """
    return -0.5 * process.log_snr_difference(t, s)


def exponential_step(process: Modal, x0_hat: Array, x_t: Array, t: Array, s: Array) -> Array:
    """x_s = (b_s / b_t) x_t + a_s (1 - exp(-h)) x0_hat: the flow along a constant x0_hat.

    Exact for the probability flow as long as x0_hat stays (Lu et al. 2022, proposition 4.1,
    https://arxiv.org/abs/2211.01095), and DDIM's deterministic step in other words.
    """
    h = half_log_snr_step(process, t, s)
    weight_x_t = process.noise(s) / process.noise(t)
    weight_x0 = -process.signal(s) * jnp.expm1(-h)
    return mix(process, (weight_x_t, x_t), (weight_x0, x0_hat))
