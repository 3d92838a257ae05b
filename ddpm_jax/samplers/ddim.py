"""DDIM: the same marginals with less noise, or none, so that few steps do."""

import jax
import jax.numpy as jnp

from ddpm_jax.forward import Predicts, convert, per_example, q_posterior
from ddpm_jax.samplers.base import (
    Predict,
    Sampler,
    SamplerState,
    StepInfo,
    predict_x0,
    standard_normal_init,
)
from ddpm_jax.schedules import Schedule

__all__ = ["ddim"]


def ddim(
    schedule: Schedule,
    predict: Predict,
    *,
    predicts: Predicts = "eps",
    eta: float = 0.0,
    clip_x0: bool = True,
) -> Sampler:
    """Moves x_t to x_s along the predicted noise (Song et al. 2021, eq. 12 and 16).

        x_s = sqrt(alpha_bar_s) x0_hat + sqrt(1 - alpha_bar_s - sigma^2) eps_hat + sigma noise
        sigma^2 = eta^2 (1 - alpha_bar_s)(1 - SNR_t / SNR_s)

    https://arxiv.org/abs/2010.02502. `eta` = 0 is deterministic, a first-order solver of the
    probability-flow ODE; `eta` = 1 adds the posterior's noise and is ancestral sampling.

    Args:
        schedule: the tables.
        predict: `(x_t, t) -> prediction`.
        predicts: what `predict` returns.
        eta: share of the posterior's standard deviation that is drawn afresh, in [0, 1].
        clip_x0: keep x0_hat inside [-1, 1]; eps_hat is then the noise that agrees with it.

    Raises:
        ValueError: `eta` outside [0, 1].
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta is {eta}; it has to be in [0, 1]")

    def step(
        key: jax.Array, state: SamplerState, t: jax.Array, s: jax.Array
    ) -> tuple[SamplerState, StepInfo]:
        x_t = state.x_t
        t, s = jnp.broadcast_to(t, x_t.shape[:1]), jnp.broadcast_to(s, x_t.shape[:1])
        x0_hat = predict_x0(schedule, predict, x_t, t, predicts=predicts, clip=clip_x0)
        eps_hat = convert(schedule, x0_hat, x_t, t, source="x0", target="eps")
        _, posterior_variance = q_posterior(schedule, x0_hat, x_t, t, s)
        added = eta**2 * posterior_variance
        kept = schedule.noise_variance(s) - added
        x_s = per_example(schedule.signal(s), x_t) * x0_hat
        x_s = x_s + per_example(jnp.sqrt(jnp.maximum(kept, 0.0)), x_t) * eps_hat
        if eta > 0.0:
            noise = jax.random.normal(key, x_t.shape, x_t.dtype)
            x_s = x_s + per_example(jnp.sqrt(added), x_t) * noise
        return SamplerState(x_s), StepInfo(x_s, x0_hat)

    return Sampler(standard_normal_init, step)
