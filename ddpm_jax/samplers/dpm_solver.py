r"""DPM-Solver++ (2M): second order at one call of the network a step.

With lambda = log(a / b) = log SNR / 2 and h = lambda_s - lambda_t, the flow along a constant
x0_hat has a closed form, `base.exponential_step`, and so has the reverse diffusion: it is
`forward.q_posterior`. Of first order, these are DDIM with eta = 0 and with eta = 1. Of second
order, x0_hat is continued linearly in lambda to the middle of the step, from the step before,

    D = x0_hat + (h / (2 h_before)) (x0_hat - x0_hat_before),

and takes its place: algorithm 2 of Lu et al. 2022, and SDE-DPM-Solver++(2M) of the same paper
(https://arxiv.org/abs/2211.01095).
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
    """DPM-Solver++ in data prediction, one call of `predict` a step; see the module.

    The first step, the step onto the data and the step after one out of pure noise are of first
    order, since they lack one of their two steps in lambda; so is, in a mode whose SNR stayed as it
    was, the step after that.

    Args:
        process: a schedule, or another process of modes.
        predict: `(x_t, t) -> prediction`.
        predicts: what `predict` returns.
        stochastic: solve the reverse diffusion (SDE-DPM-Solver++) and not the flow.
        order: 2 (2M), or 1.
        threshold: what keeps x0_hat inside, before it is continued; None leaves it as it is.

    Raises:
        ValueError: `order` other than 1 or 2, an unknown `predicts`, or eps where no signal is
            left at T - 1.
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
