"""Ancestral sampling: the chain run backwards, noise added at every step."""

from typing import Literal

import jax
import jax.numpy as jnp

from ddpm_jax.forward import Predicts, per_example, q_posterior
from ddpm_jax.samplers.base import (
    Predict,
    Sampler,
    SamplerState,
    StepInfo,
    predict_x0,
    standard_normal_init,
)
from ddpm_jax.schedules import Schedule

__all__ = ["ancestral"]


def ancestral(
    schedule: Schedule,
    predict: Predict,
    *,
    predicts: Predicts = "eps",
    variance: Literal["small", "large"] = "small",
    clip_x0: bool = True,
) -> Sampler:
    """Draws x_s from q(x_s | x_t, x0_hat) (Ho et al. 2020, algorithm 2), for any s < t.

    Args:
        schedule: the tables.
        predict: `(x_t, t) -> prediction`.
        predicts: what `predict` returns.
        variance: "small" is the posterior's own, (1 - alpha_bar_s)(1 - SNR_t / SNR_s); "large" is
            the step's beta, 1 - alpha_bar_t / alpha_bar_s. They are the right ones for data of
            no variance and of unit variance (Ho et al. 2020, section 3.2). No noise is added on
            the last step, onto the data.
        clip_x0: keep x0_hat inside [-1, 1] at each step.

    Raises:
        ValueError: an unknown `variance`.
    """
    if variance not in ("small", "large"):
        raise ValueError(f"variance is {variance!r}; it is 'small' or 'large'")

    def step(
        key: jax.Array, state: SamplerState, t: jax.Array, s: jax.Array
    ) -> tuple[SamplerState, StepInfo]:
        x_t = state.x_t
        t, s = jnp.broadcast_to(t, x_t.shape[:1]), jnp.broadcast_to(s, x_t.shape[:1])
        x0_hat = predict_x0(schedule, predict, x_t, t, predicts=predicts, clip=clip_x0)
        mean, added = q_posterior(schedule, x0_hat, x_t, t, s)
        if variance == "large":
            beta = -jnp.expm1(schedule.log_alpha_bar_difference(t, s))
            added = jnp.where(s < 0, 0.0, beta)
        noise = jax.random.normal(key, x_t.shape, x_t.dtype)
        x_s = mean + per_example(jnp.sqrt(added), x_t) * noise
        return SamplerState(x_s), StepInfo(x_s, x0_hat)

    return Sampler(standard_normal_init, step)
