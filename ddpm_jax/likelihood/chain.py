"""Bits per dimension: the whole ELBO over the whole chain, in one compiled call."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.arrays import widened
from ddpm_jax.checks import check_count, check_float, check_key, check_level_range, check_result
from ddpm_jax.compiled import call_compiled
from ddpm_jax.forward import Predicts, q_sample
from ddpm_jax.losses import prior_term, vlb_terms
from ddpm_jax.losses.elbo import nats_per_bit_dim
from ddpm_jax.processes import Modal
from ddpm_jax.reverse import Variance, check_predicts, split_output

__all__ = ["BitsPerDim", "bits_per_dim", "check_chunk", "in_chunks", "terms_at"]


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
    process: Modal,
    predict: Callable[[Float[Array, "rows *data"], Int[Array, " rows"]], Any],
    key: Key[Array, ""],
    x0: Float[Array, "batch *data"],
    *,
    predicts: Predicts,
    levels: int | None,
    chunk: int = 1,
    variance: Variance = "small",
) -> BitsPerDim:
    """Minus the ELBO of `x0`, every one of its T + 1 terms, an upper bound on -log2 p(x0) / dim.

    A scan over t calls `predict` for `chunk` times at once, so memory grows with `chunk` and not
    with T. Noise is the only randomness: the sum over t is complete, not sampled. Each time has
    noise of its own, and `chunk` decides nothing but speed: the result is the same up to rounding.

    Args:
        process: a schedule, or another process of modes.
        predict: `(x_t, t) -> prediction`, the network with its parameters bound, on batch * chunk
            rows. For the learned range, `(prediction, interpolation)`.
        key: typed random key; time t uses fold_in(key, t).
        x0: data on the grid of `levels` values in [-1, 1].
        predicts: what `predict` returns.
        levels: grey levels of the data, at least 2; 8-bit images have 256. None for continuous
            data: the bits are then those of a density, and can be negative.
        chunk: how many times one call of `predict` is given.
        variance: that of p(x_{t-1} | x_t), see `ddpm_jax.reverse`.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name, an unknown name,
            eps with a schedule of zero terminal SNR, or `chunk` below 1.
    """
    check_float("x0", x0)
    check_key("key", key)
    check_predicts(process, predicts)
    if levels is not None:
        check_level_range("x0", x0)
    x0 = widened(x0)  # x_t rounded to bfloat16 is not the chain's: the bound would not hold

    check_chunk(chunk)
    to_bits = 1.0 / nats_per_bit_dim(x0)

    def run(key: Array, x0: Array) -> BitsPerDim:
        def terms(times: Array) -> Array:
            t = jnp.broadcast_to(times[:, None], (times.size, x0.shape[0]))
            eps = jax.vmap(lambda t: _noise(jax.random.fold_in(key, t), x0))(times)
            return terms_at(
                process, predict, x0, t, eps, predicts=predicts, levels=levels, variance=variance
            )

        nats = in_chunks(terms, process.num_steps, chunk)
        per_step, prior = nats * to_bits, prior_term(process, x0) * to_bits
        kl, decoder = jnp.sum(per_step[1:], axis=0), per_step[0]
        return BitsPerDim(prior + kl + decoder, prior, kl, decoder, per_step)

    return call_compiled(run, key, x0)


def check_chunk(chunk: int) -> None:
    """Raises TypeError or ValueError unless `chunk` is a whole number, at least 1."""
    check_count("chunk", chunk)
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it has to be at least 1")


def in_chunks(function: Callable[[Array], Array], count: int, chunk: int) -> Array:
    """`function` of the indices 0 ... count - 1, given as vectors of `chunk`, stacked.

    Where `chunk` does not divide `count`, the last call gets the last index more than once, and
    what it says of the repeats is dropped: one trace of `function` serves all calls.
    """
    chunk = min(chunk, count)
    calls = -(-count // chunk)
    indices = jnp.minimum(jnp.arange(calls * chunk, dtype=jnp.int32), count - 1)
    _, stacked = jax.lax.scan(
        lambda _, group: (None, function(group)), None, indices.reshape(calls, chunk)
    )
    return stacked.reshape(calls * chunk, *stacked.shape[2:])[:count]


def terms_at(
    process: Modal,
    predict: Callable[[Array, Array], Any],
    x0: Array,
    t: Array,
    eps: Array,
    *,
    predicts: Predicts,
    levels: int | None,
    variance: Variance,
) -> Array:
    """The ELBO's terms of every example at each of its times, `[times, batch]`, in nats.

    `t` `[times, batch]` and `eps` `[times, batch, ...]` go through the network as one batch whose
    rows of one example are neighbours: on a mesh each of them stays where the example is.
    """
    times, batch = t.shape

    def as_rows(values: Array) -> Array:
        values = jnp.swapaxes(values, 0, 1)
        return values.reshape(batch * times, *values.shape[2:])

    x0 = as_rows(jnp.broadcast_to(x0[None], (times, *x0.shape)))
    t, eps = as_rows(t), as_rows(eps)
    x_t = q_sample(process, x0, t, eps)
    output = predict(x_t, process.network_time(t))
    prediction, interpolation = split_output(output, variance=variance)
    check_result("predict", prediction, x_t.shape)
    nats = vlb_terms(
        process,
        prediction,
        x0,
        x_t,
        t,
        predicts=predicts,
        levels=levels,
        variance=variance,
        interpolation=interpolation,
    )
    return jnp.swapaxes(nats.reshape(batch, times), 0, 1)


def _noise(key: Array, like: Array) -> Array:
    return jax.random.normal(key, like.shape, like.dtype)
