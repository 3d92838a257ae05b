"""Ancestral sampling: the chain run backwards, noise added at every step."""

import jax
import jax.numpy as jnp

from ddpm_jax.arrays import normal, per_example, root
from ddpm_jax.checks import check_choice
from ddpm_jax.forward import q_posterior
from ddpm_jax.predictions import Predicts
from ddpm_jax.processes.modal import Modal, mix
from ddpm_jax.reverse import (
    Variance,
    check_predicts,
    fixed_variance,
    learned_log_variance,
    split_output,
)
from ddpm_jax.samplers.base import (
    Predict,
    Sampler,
    SamplerState,
    StepInfo,
    both_times,
    posterior_deviation,
    prior_init,
    x0_of_prediction,
)
from ddpm_jax.samplers.thresholds import Threshold, static_threshold

__all__ = ["ancestral"]


def ancestral(
    process: Modal,
    predict: Predict,
    *,
    predicts: Predicts = "eps",
    variance: Variance = "small",
    threshold: Threshold | None = static_threshold,
) -> Sampler:
    r"""Draws x_s from p(x_s | x_t), the posterior with x0_hat in the place of x_0, for any s < t.

    .. math::

        x_s = \mathrm{mean}\big(q(x_s \mid x_t, \hat{x}_0)\big) + \sigma z, \qquad
        z \sim \mathcal{N}(0, I)

    (Ho et al. 2020, algorithm 2), with sigma^2 the variance of `ddpm_jax.reverse`. No noise is
    added on the last step, onto the data.

    Args:
        process: a schedule, or another process of modes.
        predict: `(x_t, t) -> prediction`, or the pair (prediction, interpolation) for
            "learned_range".
        predicts: what `predict` returns, see `ddpm_jax.predictions`.
        variance: where the variance of p comes from; see `ddpm_jax.reverse`.
        threshold: keeps x0_hat in the range of images at each step. None for no threshold.

    Returns:
        The sampler, for `sample`.

    Raises:
        ValueError: an unknown `variance` or `predicts`, or eps where no signal is left at T - 1.
        TypeError: "learned_range" and a `predict` that returns no pair, or a pair for the others.
        NoClosedForm: a chain without modes.

    Example:
        >>> from ddpm_jax import samplers, schedules
        >>> def predict(x_t, t):  # a network, its parameters bound
        ...     return 0.0 * x_t
        >>> sampler = samplers.ancestral(schedules.cosine(1000), predict, predicts="v")

    References:
        Ho et al. 2020, https://arxiv.org/abs/2006.11239
    """
    check_choice("variance", variance, ("small", "large", "learned_range"))
    check_predicts(process, predicts)

    def step(
        key: jax.Array, state: SamplerState, t: jax.Array, s: jax.Array
    ) -> tuple[SamplerState, StepInfo]:
        x_t = state.x_t
        t, s = both_times(x_t, t, s)
        output = predict(x_t, process.network_time(t))
        prediction, interpolation = split_output(output, variance=variance)
        x0_hat = x0_of_prediction(
            process, prediction, x_t, t, predicts=predicts, threshold=threshold
        )
        mean, _ = q_posterior(process, x0_hat, x_t, t, s)
        noise = normal(key, x_t.shape, x_t.dtype)
        if interpolation is not None:
            deviation = jnp.exp(0.5 * learned_log_variance(process, interpolation, t, s))
        elif variance == "large":
            deviation = root(fixed_variance(process, t, s, variance="large"))
        else:
            deviation = posterior_deviation(process, t, s)
        deviation = jnp.where(per_example(s < 0, deviation), 0.0, deviation)
        x_s = mean + mix(process, (deviation, noise))
        return SamplerState(x_s), StepInfo(x_s, x0_hat)

    return Sampler(prior_init(process), step)
