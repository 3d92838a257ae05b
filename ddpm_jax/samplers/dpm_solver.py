r"""DPM-Solver++ (2M and 3M): second and third order at one call of the network a step.

With lambda = log(a / b) = log SNR / 2 and h = lambda_s - lambda_t, the flow along a constant x0_hat
has a closed form, eq. (1) of `ddpm_jax.samplers.base`, and so has the reverse diffusion: it is
`forward.q_posterior`. Of first order, these are DDIM with eta = 0 and with eta = 1. Of second
order, x0_hat is continued linearly in lambda to the middle of the step, from the step before,

.. math::

    D = \hat{x}_0 + \frac{h}{2 h_{\mathrm{before}}}
    \big(\hat{x}_0 - \hat{x}_{0,\mathrm{before}}\big) \tag{1}

and takes its place: algorithm 2 of Lu et al. 2022, and SDE-DPM-Solver++(2M) of the same paper. Of
third order, D is the mean over the step of the parabola through the last three x0_hat, eq. (2) of
`ddpm_jax.samplers.polynomials`.

The widespread code of 3M (the authors', diffusers, and 3M SDE of k-diffusion) takes half of the
parabola's quadratic term and is of second order. It extrapolates less for that, which can be better
with few steps that grow in lambda.

References:
    Lu et al. 2022, https://arxiv.org/abs/2211.01095
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ddpm_jax.arrays import normal
from ddpm_jax.forward import q_posterior
from ddpm_jax.predictions import Predicts
from ddpm_jax.processes.modal import Modal, mix
from ddpm_jax.reverse import check_predicts
from ddpm_jax.samplers.base import (
    Predict,
    Sampler,
    SamplerState,
    StepInfo,
    both_times,
    exponential_step,
    half_log_snr_step,
    posterior_deviation,
    predict_x0,
    prior_init,
)
from ddpm_jax.samplers.polynomials import (
    differences,
    exponential_moments,
    finite,
    no_past,
    polynomial_weights,
    remember,
)
from ddpm_jax.samplers.thresholds import Threshold, static_threshold

__all__ = ["dpm_solver_pp"]


def dpm_solver_pp(
    process: Modal,
    predict: Predict,
    *,
    predicts: Predicts = "eps",
    stochastic: bool = False,
    order: int = 2,
    threshold: Threshold | None = static_threshold,
) -> Sampler:
    r"""DPM-Solver++ in data prediction, one call of `predict` a step.

    .. math::

        x_s = \frac{b_s}{b_t} x_t + a_s \big(1 - e^{-h}\big) D

    with D of eq. (1) of `ddpm_jax.samplers.dpm_solver` (Lu et al. 2022, algorithm 2), or of the
    parabola at order 3; if `stochastic`, a draw of q(x_s | x_t, D) instead. The first step, the
    step onto the data and the step after one out of pure noise are of first order, since they lack
    one of their two steps in lambda, and the next is of second. The order is also lower where a
    step is so much longer than those before it that D would enlarge errors of x0_hat more than 32
    times.

    With noise, order 3 converges in law with order 2, as order 2 does, with a third of its error.

    Args:
        process: a schedule, or another process of modes.
        predict: `(x_t, t) -> prediction`.
        predicts: what `predict` returns, see `ddpm_jax.predictions`.
        stochastic: solve the reverse diffusion (SDE-DPM-Solver++) and not the flow.
        order: 3 (3M), 2 (2M), or 1.
        threshold: keeps x0_hat in the range of images, before it is extrapolated. None for no
            threshold.

    Returns:
        The sampler, for `sample`.

    Raises:
        ValueError: `order` outside 1 to 3, an unknown `predicts`, or eps where no signal is left at
            T - 1.
        NoClosedForm: a chain without modes.

    Example:
        >>> from ddpm_jax import samplers, schedules
        >>> def predict(x_t, t):  # a network, its parameters bound
        ...     return 0.0 * x_t
        >>> sampler = samplers.dpm_solver_pp(schedules.cosine(1000), predict, predicts="v")

    References:
        Lu et al. 2022, https://arxiv.org/abs/2211.01095
    """
    check_predicts(process, predicts)
    if order not in (1, 2, 3):
        raise ValueError(f"order is {order}; DPM-Solver++ is of order 1, 2 or 3")
    # The drift of the reverse diffusion forgets twice as fast: eq. (2) with 2 h in the place of h.
    pace = 2.0 if stochastic else 1.0

    def step(
        key: jax.Array, state: SamplerState, t: jax.Array, s: jax.Array
    ) -> tuple[SamplerState, StepInfo]:
        x_t, past = state
        t, s = both_times(x_t, t, s)
        h = half_log_snr_step(process, t, s)
        x0_hat = predict_x0(process, predict, x_t, t, predicts=predicts, threshold=threshold)
        value = process.basis.to_modes(x0_hat)
        weights = _past_weights(past.distances, h, pace)
        ahead = x0_hat + differences(process, weights, past.values, value).astype(x_t.dtype)
        if stochastic:
            mean, _ = q_posterior(process, ahead, x_t, t, s)
            noise = normal(key, x_t.shape, x_t.dtype)
            x_s = mean + mix(process, (posterior_deviation(process, t, s), noise))
        else:
            x_s = exponential_step(process, ahead, x_t, t, s)
        return SamplerState(x_s, remember(past, value, h)), StepInfo(x_s, x0_hat)

    return Sampler(prior_init(process, lambda x_t: no_past(process, x_t, order - 1)), step)


def _past_weights(distances: tuple[Array, ...], h: Array, pace: float) -> list[Array]:
    """Of the past x0_hat_j - x0_hat in D - x0_hat; of a straight line in the middle of the step."""
    near = [jnp.isfinite(distance) for distance in distances]
    nodes = [jnp.zeros_like(h), *(-pace * finite(distance) for distance in distances)]
    length = pace * finite(h)
    moments = exponential_moments(length, len(nodes))
    return polynomial_weights(nodes, near, moments, line=0.5 * length)[0]
