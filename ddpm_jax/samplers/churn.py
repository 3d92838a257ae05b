r"""Heun's rule with noise on the way: algorithm 2 of Karras et al. 2022, on the times of a chain.

Before each step, x_t is made noisier, from sigma = b / a up to about (1 + gamma) sigma, and the
step then starts from there. The new noise covers errors of earlier steps, which a flow would carry
to the end.

A network takes the chain's times alone, so sigma rises to that of the chain time whose sigma is
nearest, as in the paper's code with such networks. Noise that leads from t to a later time is
`q_transition`, which is exact for every process, also where each mode has a sigma of its own: the
level of such a process is the geometric mean of sigma over its modes.

References:
    Karras et al. 2022, https://arxiv.org/abs/2206.00364
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax.arrays import normal, per_example
from ddpm_jax.forward import q_transition
from ddpm_jax.predictions import Predicts
from ddpm_jax.processes.modal import Modal
from ddpm_jax.samplers.base import Predict, Sampler, SamplerState, StepInfo, both_times
from ddpm_jax.samplers.flow import heun
from ddpm_jax.samplers.thresholds import Threshold, static_threshold

__all__ = ["stochastic_heun"]

_LARGEST_GAMMA = math.sqrt(2.0) - 1.0
"""Where the new noise has the variance of the old one."""


def stochastic_heun(
    process: Modal,
    predict: Predict,
    *,
    gamma: float,
    sigma_min: float = 0.0,
    sigma_max: float = math.inf,
    noise_scale: float = 1.0,
    predicts: Predicts = "eps",
    threshold: Threshold | None = static_threshold,
) -> Sampler:
    r"""Heun's rule from a raised level of noise, two calls of `predict` a step.

    .. math::

        x_{\hat t} = \frac{a_{\hat t}}{a_t} x_t
        + a_{\hat t} \sqrt{\sigma_{\hat t}^2 - \sigma_t^2}\, S\, z, \qquad
        \sigma_{\hat t} \approx (1 + \gamma)\, \sigma_t, \qquad \sigma = b / a

    and then `heun` from t-hat to s (Karras et al. 2022, algorithm 2), with t-hat the time of the
    chain, from t on, whose sigma is nearest to (1 + gamma) sigma_t. Levels outside of [`sigma_min`,
    `sigma_max`] are not raised. Nor is a level whose next higher one in the chain is above (1 + 2
    gamma) sigma_t: the steps of the chain have to be finer than `gamma`.

    The paper's S_churn is `gamma` times the number of steps, at most sqrt(2) - 1 each; its other
    numbers are S_min, S_max and S_noise. Its best for ImageNet at 64x64, with 256 steps, are
    S_churn = 40 (a `gamma` of 0.156), 0.05, 50 and 1.003. The best ones differ from network to
    network.

    Args:
        process: a schedule, or another process of modes.
        predict: `(x_t, t) -> prediction`.
        gamma: by which share of itself sigma rises before a step, in [0, sqrt(2) - 1]; 0 is `heun`.
        sigma_min: the lowest level that is raised, 0 or more.
        sigma_max: the highest level that is raised.
        noise_scale: the standard deviation of z times this is added, above 0; slightly more than 1
            makes up for networks that remove too much noise.
        predicts: what `predict` returns, see `ddpm_jax.predictions`.
        threshold: keeps x0_hat in the range of images; eps_hat is then the noise that agrees with
            it. None for no threshold.

    Returns:
        The sampler, for `sample`. Its x0_hat is that of x at t-hat.

    Raises:
        ValueError: `gamma`, a level or `noise_scale` outside its range, an unknown `predicts`, or
            eps where no signal is left at T - 1.
        NoClosedForm: a chain without modes.

    Example:
        >>> from ddpm_jax import samplers, schedules
        >>> def predict(x_t, t):  # a network, its parameters bound
        ...     return 0.0 * x_t
        >>> sampler = samplers.stochastic_heun(
        ...     schedules.cosine(1000), predict, predicts="v", gamma=0.15, sigma_max=50.0)

    References:
        Karras et al. 2022, https://arxiv.org/abs/2206.00364
    """
    if not 0.0 <= gamma <= _LARGEST_GAMMA:
        raise ValueError(f"gamma is {gamma}; it has to be in [0, sqrt(2) - 1], which is 0.414...")
    if not 0.0 <= sigma_min <= sigma_max:
        raise ValueError(
            f"sigma_min is {sigma_min} and sigma_max {sigma_max}; it has to be"
            " 0 <= sigma_min <= sigma_max"
        )
    if not 0.0 < noise_scale < math.inf:
        raise ValueError(f"noise_scale is {noise_scale}; it has to be positive and finite")
    flow = heun(process, predict, predicts=predicts, threshold=threshold)
    if gamma == 0.0:
        return flow

    def step(
        key: jax.Array, state: SamplerState, t: jax.Array, s: jax.Array
    ) -> tuple[SamplerState, StepInfo]:
        x_t = state.x_t
        t, _ = both_times(x_t, t, s)
        later = _nearest_later_time(process, t, 1.0 + gamma)
        sigma = jnp.exp(_log_sigma(process, t))
        later = jnp.where((sigma_min <= sigma) & (sigma <= sigma_max), later, t)
        raised = later > t
        noise = noise_scale * normal(key, x_t.shape, x_t.dtype)
        # From -1 where nothing is raised: no NaN of t = T - 1 without signal enters a gradient.
        x_later = q_transition(process, x_t, later, jnp.where(raised, t, -1), noise)
        x_t = jnp.where(per_example(raised, x_t), x_later, x_t)
        return flow.step(key, SamplerState(x_t), later, s)

    return Sampler(flow.init, step)


def _nearest_later_time(
    process: Modal, t: Int[Array, " batch"], factor: float
) -> Int[Array, " batch"]:
    """The time from t on whose sigma is nearest to `factor` times that of t, by bisection."""

    def ratio(later: Array) -> Array:
        return jnp.exp(_mean(-0.5 * process.log_snr_difference(later, t)))

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        below, above = ends
        middle = (below + above + 1) // 2
        is_below = ratio(middle) <= factor
        return jnp.where(is_below, middle, below), jnp.where(is_below, above, middle - 1)

    last = jnp.full_like(t, process.num_steps - 1)
    below, _ = jax.lax.fori_loop(0, process.num_steps.bit_length(), halve, (t, last))
    above = jnp.minimum(below + 1, last)
    return jnp.where(ratio(above) - factor < factor - ratio(below), above, below)


def _log_sigma(process: Modal, t: Int[Array, " batch"]) -> Float[Array, " batch"]:
    """log(b / a), the mean over modes; from t = 0 up, since SNR itself may underflow."""
    start = jnp.zeros_like(t)
    return _mean(-0.5 * (process.log_snr_difference(t, start) + jnp.log(process.snr(start))))


def _mean(values: Float[Array, "batch *modes"]) -> Float[Array, " batch"]:
    return jnp.mean(values, axis=tuple(range(1, values.ndim)))
