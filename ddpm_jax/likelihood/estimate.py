"""Bits per dimension from few times of each example, with the standard error."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.checks import check_float, check_key
from ddpm_jax.compiled import call_compiled
from ddpm_jax.likelihood.exact import (
    check_chunk,
    check_draws,
    checked_data,
    in_chunks,
    terms_at,
)
from ddpm_jax.losses import prior_term
from ddpm_jax.losses.elbo import bits_per_nat
from ddpm_jax.predictions import Predicts
from ddpm_jax.processes import Modal
from ddpm_jax.reverse import Variance
from ddpm_jax.timesteps import importance

__all__ = ["BitsEstimate", "estimate_bits_per_dim"]


class BitsEstimate(NamedTuple):
    """An estimate of minus the ELBO of each example, in bits per dimension."""

    total: Float[Array, " batch"]
    """The estimate, `[batch]`."""
    standard_error: Float[Array, " batch"]
    """Of `total`, `[batch]`, from the spread of the draws: of times and of noise."""


def estimate_bits_per_dim(
    process: Modal,
    predict: Callable[[Float[Array, "rows *data"], Int[Array, " rows"]], Any],
    key: Key[Array, ""],
    x0: Float[Array, "batch *data"],
    *,
    predicts: Predicts,
    levels: int | None,
    num_times: int,
    probabilities: Float[Array, " T"] | None = None,
    chunk: int = 1,
    variance: Variance = "small",
) -> BitsEstimate:
    r"""An estimate of `bits_per_dim` from `num_times` of the T terms of each example.

    .. math::

        \mathrm{prior} + \frac{1}{n} \sum_{i=1}^{n} \frac{L_{t_i}}{p_{t_i}}

    in bits per dimension, with independent times t_i drawn from p, and noise of its own for each.
    The prior term is exact. Unbiased for any p above 0; the standard error is least with p_t
    proportional to sqrt(E[L_t^2]) (Nichol & Dhariwal 2021, eq. 18).

    Args:
        process: a schedule, or another process of modes.
        predict: as for `bits_per_dim`.
        key: typed random key; draw i uses fold_in(key, i).
        x0: data, `[batch, ...]`, on the grid of `levels` values in [-1, 1].
        predicts: what `predict` returns, see `ddpm_jax.predictions`.
        levels: as for `bits_per_dim`.
        num_times: n, draws for each example, at least 2. The standard error is itself an estimate:
            with few draws it is too small if p is small where the terms are large.
        probabilities: p, float `[T]`, as `timesteps.probabilities` makes it; None is uniform.
        chunk: how many draws one call of `predict` is given; changes the speed only.
        variance: that of p(x_{t-1} | x_t), see `ddpm_jax.reverse`.

    Returns:
        The estimate and its standard error, bits per dimension, `[batch]` each.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name, an unknown name,
            eps with a schedule of zero terminal SNR, `num_times` below 2 or `chunk` below 1.
        NoClosedForm: a chain without modes.

    References:
        Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672
    """
    x0 = checked_data(process, x0, predicts=predicts, levels=levels)
    check_key("key", key)
    check_draws("num_times", num_times)
    num_steps = process.num_steps
    if probabilities is None:
        probabilities = jnp.full(num_steps, 1.0 / num_steps, jnp.float32)
    check_float("probabilities", probabilities)
    if probabilities.shape != (num_steps,):
        raise ValueError(
            f"probabilities has shape {probabilities.shape}; it has to be ({num_steps},), one for"
            " each t"
        )

    check_chunk(chunk)
    to_bits = bits_per_nat(x0)

    def run(key: Array, x0: Array, probabilities: Array) -> BitsEstimate:
        def draw(index: Array) -> tuple[Array, Array, Array]:
            key_times, key_noise = jax.random.split(jax.random.fold_in(key, index))
            # One each: `importance` spreads a batch.
            keys = jax.random.split(key_times, x0.shape[0])
            t, weight = jax.vmap(lambda key: importance(key, 1, probabilities))(keys)
            return t[:, 0], weight[:, 0], jax.random.normal(key_noise, x0.shape, x0.dtype)

        def weighted(indices: Array) -> Array:
            t, weight, eps = jax.vmap(draw)(indices)
            nats = terms_at(
                process, predict, x0, t, eps, predicts=predicts, levels=levels, variance=variance
            )
            return num_steps * weight.astype(nats.dtype) * nats

        draws = in_chunks(weighted, num_times, chunk) * to_bits
        total = prior_term(process, x0) * to_bits + jnp.mean(draws, axis=0)
        return BitsEstimate(total, jnp.std(draws, axis=0, ddof=1) / math.sqrt(num_times))

    return call_compiled(run, key, x0, probabilities)
