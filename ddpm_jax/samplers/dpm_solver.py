r"""DPM-Solver++ (2M): second order at one call of the network a step.

With lambda = log(a / b) = log SNR / 2 and h = lambda_s - lambda_t, the flow along a constant x0_hat
has a closed form, eq. (1) of `ddpm_jax.samplers.base`, and so has the reverse diffusion: it is
`forward.q_posterior`. Of first order, these are DDIM with eta = 0 and with eta = 1. Of second
order, x0_hat is continued linearly in lambda to the middle of the step, from the step before,

.. math::

    D = \hat{x}_0 + \frac{h}{2 h_{\mathrm{before}}}
    \big(\hat{x}_0 - \hat{x}_{0,\mathrm{before}}\big) \tag{1}

and takes its place: algorithm 2 of Lu et al. 2022, and SDE-DPM-Solver++(2M) of the same paper.

References:
    Lu et al. 2022, https://arxiv.org/abs/2211.01095
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.arrays import normal
from ddpm_jax.forward import Predicts, q_posterior
from ddpm_jax.processes.modal import Modal, mix
from ddpm_jax.reverse import check_predicts
from ddpm_jax.samplers.base import (
    Predict,
    Sampler,
    SamplerState,
    StepInfo,
    both_times,
    everywhere,
    exponential_step,
    half_log_snr_step,
    posterior_deviation,
    predict_x0,
    prior_init,
)
from ddpm_jax.samplers.thresholds import Threshold, static_threshold

__all__ = ["dpm_solver_pp"]


class Before(NamedTuple):
    """The step before; of no weight in modes where it had no length or was infinite.

    It is infinite if there was none, or one out of pure noise.
    """

    x0_hat: Float[Array, "batch *data"]
    h: Float[Array, "batch *modes"]


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

    with D of eq. (1) of `ddpm_jax.samplers.dpm_solver` (Lu et al. 2022, algorithm 2); if
    `stochastic`, a draw of q(x_s | x_t, D) instead. The first step, the step onto the data and the
    step after one out of pure noise are of first order, since they lack one of their two steps in
    lambda; so is, in a mode whose SNR stayed as it was, the step after that.

    Args:
        process: a schedule, or another process of modes.
        predict: `(x_t, t) -> prediction`.
        predicts: what `predict` returns, "eps", "x0" or "v".
        stochastic: solve the reverse diffusion (SDE-DPM-Solver++) and not the flow.
        order: 2 (2M), or 1.
        threshold: keeps x0_hat in the range of images, before it is extrapolated. None for no
            threshold.

    Returns:
        The sampler, for `sample`.

    Raises:
        ValueError: `order` other than 1 or 2, an unknown `predicts`, or eps where no signal is left
            at T - 1.
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
    if order not in (1, 2):
        raise ValueError(f"order is {order}; DPM-Solver++ is of order 1 or 2")

    def init(key: Array, shape: tuple[int, ...], start: Array | None = None) -> SamplerState:
        state = prior_init(process)(key, shape, start)
        never = everywhere(process, shape[0], jnp.inf)
        return state._replace(memory=Before(jnp.zeros_like(state.x_t), never))

    def step(
        key: jax.Array, state: SamplerState, t: jax.Array, s: jax.Array
    ) -> tuple[SamplerState, StepInfo]:
        x_t, before = state
        t, s = both_times(x_t, t, s)
        h = half_log_snr_step(process, t, s)
        x0_hat = predict_x0(process, predict, x_t, t, predicts=predicts, threshold=threshold)
        ahead = x0_hat
        if order == 2:
            stood = before.h == 0.0
            ratio = jnp.where(jnp.isinf(h) | stood, 0.0, h) / jnp.where(stood, 1.0, before.h)
            ahead = x0_hat + mix(process, (0.5 * ratio, x0_hat - before.x0_hat))
        if stochastic:
            mean, _ = q_posterior(process, ahead, x_t, t, s)
            noise = normal(key, x_t.shape, x_t.dtype)
            x_s = mean + mix(process, (posterior_deviation(process, t, s), noise))
        else:
            x_s = exponential_step(process, ahead, x_t, t, s)
        return SamplerState(x_s, Before(x0_hat, h)), StepInfo(x_s, x0_hat)

    return Sampler(init, step)
