"""Bits per dimension: the whole ELBO over the whole chain, in one compiled call."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.checks import check_float, check_key
from ddpm_jax.forward import Predicts, q_sample
from ddpm_jax.losses import prior_term, vlb_terms
from ddpm_jax.schedules import Schedule

__all__ = ["BitsPerDim", "bits_per_dim"]


class BitsPerDim(NamedTuple):
    """Minus the ELBO of each example, in bits per dimension: the parts and their sum."""

    total: Float[Array, " batch"]
    prior: Float[Array, " batch"]
    """KL of what the chain leaves to the standard normal."""
    kl: Float[Array, " batch"]
    """Sum of the T - 1 KL terms, t = 1 ... T - 1."""
    decoder: Float[Array, " batch"]
    """Grey levels given x at t = 0."""
    per_step: Float[Array, "T batch"]
    """The term at each t: the decoder at index 0, then the KL terms."""


def bits_per_dim(
    schedule: Schedule,
    predict: Callable[[Float[Array, "batch *data"], Int[Array, " batch"]], Array],
    key: Key[Array, ""],
    x0: Float[Array, "batch *data"],
    *,
    predicts: Predicts,
    levels: int,
) -> BitsPerDim:
    """Minus the ELBO of `x0`, every one of its T + 1 terms, an upper bound on -log2 p(x0) / dim.

    A scan over t calls `predict` once for each time with fresh noise, so memory does not grow
    with T. Noise is the only randomness: the sum over t is complete, not sampled.

    Args:
        schedule: the tables.
        predict: `(x_t, t) -> prediction`, the network with its parameters bound.
        key: typed random key; time t uses fold_in(key, t).
        x0: data on the grid of `levels` values in [-1, 1].
        predicts: what `predict` returns.
        levels: grey levels of the data, at least 2; 8-bit images have 256.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name.
    """
    check_float("x0", x0)
    check_key("key", key)

    def term(_: None, t: jax.Array) -> tuple[None, jax.Array]:
        times = jnp.broadcast_to(t, x0.shape[:1])
        eps = jax.random.normal(jax.random.fold_in(key, t), x0.shape, x0.dtype)
        x_t = q_sample(schedule, x0, times, eps)
        prediction = predict(x_t, schedule.network_time(times))
        return None, vlb_terms(
            schedule, prediction, x0, x_t, times, predicts=predicts, levels=levels
        )

    _, nats = jax.lax.scan(term, None, jnp.arange(schedule.num_steps, dtype=jnp.int32))
    to_bits = 1.0 / (math.prod(x0.shape[1:]) * math.log(2.0))
    per_step, prior = nats * to_bits, prior_term(schedule, x0) * to_bits
    kl, decoder = jnp.sum(per_step[1:], axis=0), per_step[0]
    return BitsPerDim(prior + kl + decoder, prior, kl, decoder, per_step)
