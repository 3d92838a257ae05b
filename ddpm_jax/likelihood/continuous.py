r"""Bits per dimension of a chain of infinitely many steps, from few noise levels of each example.

With the steps of a chain that preserves variance made ever smaller, between two fixed ends
lambda_max and lambda_min of log SNR, minus the ELBO becomes (Kingma et al. 2021, eq. 15 and 18)

.. math::

    \mathrm{prior} + \mathrm{decoder} + \tfrac12 \int_{\lambda_{\min}}^{\lambda_{\max}}
    \mathrm{E}\, |\epsilon - \hat\epsilon(x_\lambda, \lambda)|^2\, d\lambda \tag{1}

.. math::

    x_\lambda = a x_0 + b \epsilon, \qquad a^2 = \frac{1}{1 + e^{-\lambda}}, \qquad
    b^2 = \frac{1}{1 + e^{\lambda}} \tag{2}

The prior term is that of x at lambda_min, the decoder that of x at lambda_max: both are those of
every chain with these ends (`ddpm_jax.losses.elbo`). A schedule lambda(u), which falls from
lambda_max at u = 0 to lambda_min at u = 1, is a change of variable in the integral:

.. math::

    \tfrac12 \int_0^1 -\lambda'(u)\, \mathrm{E}\, |\epsilon - \hat\epsilon|^2\, du \tag{3}

(eq. 17 of the paper, whose gamma is -lambda). So the ELBO does not depend on the schedule between
the ends. The variance of an estimate does, and a schedule and a density of noise levels are the
same thing: p(lambda) = -1 / lambda'(u). With L the integrand of eq. (1) for one draw of noise, the
variance over independent draws of u is least for

.. math::

    p(\lambda) \propto \sqrt{\mathrm{E}[L^2]} \tag{4}

and over many strata of u for the standard deviation of L at lambda in the place of this root.

References:
    Kingma et al. 2021, https://arxiv.org/abs/2107.00630
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ddpm_jax.arrays import rows, split_as
from ddpm_jax.checks import check_float, check_key, check_result, check_scalar
from ddpm_jax.compiled import call_compiled
from ddpm_jax.forward import q_sample
from ddpm_jax.likelihood.exact import (
    as_rows,
    check_chunk,
    check_draws,
    checked_data,
    in_chunks,
    terms_at,
)
from ddpm_jax.losses import prior_term, weighted_loss
from ddpm_jax.losses.elbo import bits_per_nat
from ddpm_jax.predictions import Predicts
from ddpm_jax.processes import Modal, per_pixel
from ddpm_jax.schedules import linear_log_snr

__all__ = ["ContinuousBits", "continuous_bits_per_dim", "nats_per_log_snr"]

PredictAtLogSNR = Callable[[Float[Array, "rows *data"], Float[Array, " rows"]], Array]
LogSNR = Callable[[Float[Array, ""]], Float[Array, ""]]


class ContinuousBits(NamedTuple):
    """An estimate of minus the ELBO of infinitely many steps, in bits per dimension."""

    total: Float[Array, " batch"]
    """prior + kl + decoder, `[batch]`."""
    prior: Float[Array, " batch"]
    """KL of what is left at `log_snr_min` to the prior, which is exact, `[batch]`."""
    kl: Float[Array, " batch"]
    """The integral over log SNR, `[batch]`."""
    decoder: Float[Array, " batch"]
    """Grey levels given x at `log_snr_max`, the mean over its draws of noise, `[batch]`."""
    standard_error: Float[Array, " batch"]
    """Of `total`, `[batch]`, from the spread of the draws: of noise levels and of noise."""


def continuous_bits_per_dim(
    predict: PredictAtLogSNR,
    key: Key[Array, ""],
    x0: Float[Array, "batch *data"],
    *,
    log_snr_max: float,
    log_snr_min: float,
    predicts: Predicts,
    levels: int | None,
    num_times: int,
    log_snr: LogSNR | None = None,
    density: Float[Array, " cells"] | None = None,
    decoder_draws: int = 2,
    chunk: int = 1,
) -> ContinuousBits:
    r"""Minus the ELBO of a chain of infinitely many steps that preserves variance.

    .. math::

        \frac{1}{d \log 2} \Big( \mathrm{prior} + \mathrm{decoder} + \tfrac12
        \int_0^1 -\lambda'(u)\, \mathrm{E}\, |\epsilon - \hat\epsilon|^2\, du \Big)

    Eq. (1) and (3) of `ddpm_jax.likelihood.continuous`; Kingma et al. 2021, eq. 15 to 18. It is the
    limit of `bits_per_dim` on `schedules.linear_log_snr(T, log_snr_max, log_snr_min)`, from which a
    network of little error differs by a term of order 1 / T.

    The integral is estimated from `num_times` values of u for each example: two in each of
    num_times / 2 strata of equal length, of which the standard error is an unbiased estimate.

    The network is called at log SNRs between those of any chain. One that was trained with the
    integer times t of a chain cannot be used, because it has no output there. One that is
    conditioned on log SNR can: the inner network of `models.Preconditioned`, whose c_noise is -log
    SNR / 8, or a network of a learned schedule.

    Args:
        predict: `(x, log_snr) -> prediction`, the network with its parameters bound; log_snr is
            float32, one for each row.
        key: typed random key; draw i of u uses fold_in(key, i), and draw i of the decoder
            fold_in(key, num_times + i).
        x0: data, `[batch, ...]`, on the grid of `levels` values in [-1, 1].
        log_snr_max: log SNR at which the chain starts, natural logarithm.
        log_snr_min: log SNR of the prior, below `log_snr_max`.
        predicts: what `predict` returns, see `ddpm_jax.predictions`.
        levels: grey levels of the data, at least 2; None for continuous data.
        num_times: draws for each example, an even number.
        log_snr: the schedule lambda(u), a function of a scalar in [0, 1] that JAX can
            differentiate. It falls from `log_snr_max` to `log_snr_min`. None is the straight line.
            It changes the standard error only. Its ends are checked unless they are traced.
        density: in the place of `log_snr`, importance sampling: the density of log SNR in cells of
            equal length from `log_snr_max` down to `log_snr_min`, above 0. It is divided by its
            sum.
        decoder_draws: draws of noise for the decoder of each example, at least 2.
        chunk: how many draws one call of `predict` is given; changes the speed only.

    Returns:
        The parts, their sum, and its standard error, bits per dimension, `[batch]` each. NaN where
        `log_snr` rises, or where a traced `density` is not above 0.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name, an unknown name,
            ends that are not finite and falling, a `log_snr` with other ends, a density that is not
            above 0, both of them, or a number of draws that is odd or below 2.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ddpm_jax.likelihood import continuous_bits_per_dim
        >>> def predict(x, log_snr):  # a network, its parameters bound
        ...     return 0.0 * x
        >>> bits = continuous_bits_per_dim(
        ...     predict, jax.random.key(0), jnp.zeros((2, 4)), log_snr_max=7.0, log_snr_min=-8.0,
        ...     predicts="v", levels=None, num_times=16)
        >>> bits.total.shape, bits.standard_error.shape
        ((2,), (2,))

    References:
        Kingma et al. 2021, https://arxiv.org/abs/2107.00630
    """
    ends = linear_log_snr(2, log_snr_max, log_snr_min)  # has the exact prior and decoder
    x0 = checked_data(ends, x0, predicts=predicts, levels=levels)
    check_key("key", key)
    check_draws("num_times", num_times)
    if num_times % 2:
        raise ValueError(f"num_times is {num_times}; it has to be even, two in each stratum")
    check_draws("decoder_draws", decoder_draws)
    check_chunk(chunk)
    if log_snr is not None:
        if density is not None:
            raise ValueError("log_snr and density are both given; each of them says where to draw")
        _check_ends(log_snr, log_snr_max, log_snr_min)
    if density is not None:
        _check_density(density)
    to_bits = bits_per_nat(x0)

    def run(key: Array, x0: Array, density: Array | None) -> ContinuousBits:
        def noise(key: Array) -> Array:
            return jax.random.normal(key, x0.shape, x0.dtype)

        if density is not None:
            at = _quantile(density, log_snr_max, log_snr_min)
        elif log_snr is not None:
            at = jax.value_and_grad(log_snr)
        else:
            at = jax.value_and_grad(lambda u: log_snr_max + u * (log_snr_min - log_snr_max))

        def draw(index: Array) -> tuple[Array, Array, Array]:
            key_u, key_noise = jax.random.split(jax.random.fold_in(key, index))
            within = jax.random.uniform(key_u, x0.shape[:1], jnp.float32)
            stratum = (index // 2).astype(jnp.float32)
            value, slope = jax.vmap(at)((stratum + within) / (num_times // 2))
            return value, jnp.where(slope <= 0.0, -slope, jnp.nan), noise(key_noise)

        def integrand(indices: Array) -> Array:
            value, length, eps = jax.vmap(draw)(indices)
            return length * nats_per_log_snr(predict, x0, value, eps, predicts=predicts)

        def decode(indices: Array) -> Array:
            keys = jax.vmap(lambda i: jax.random.fold_in(key, num_times + i))(indices)
            return terms_at(
                ends,
                lambda x, t: predict(x, rows(ends.log_snr, t)),
                x0,
                jnp.zeros((indices.size, x0.shape[0]), jnp.int32),
                jax.vmap(noise)(keys),
                predicts=predicts,
                levels=levels,
                variance="small",
            )

        draws = in_chunks(integrand, num_times, chunk) * to_bits
        decoded = in_chunks(decode, decoder_draws, chunk) * to_bits
        prior = prior_term(ends, x0) * to_bits
        kl, decoder = jnp.mean(draws, axis=0), jnp.mean(decoded, axis=0)
        # Of the mean of two draws the variance is a quarter of their squared difference.
        of_kl = jnp.sum(jnp.square(draws[::2] - draws[1::2]), axis=0) / num_times**2
        of_decoder = jnp.var(decoded, axis=0, ddof=1) / decoder_draws
        error = jnp.sqrt(of_kl + of_decoder)
        return ContinuousBits(prior + kl + decoder, prior, kl, decoder, error)

    return call_compiled(run, key, x0, density)


def nats_per_log_snr(
    predict: PredictAtLogSNR, x0: Array, log_snr: Array, eps: Array, *, predicts: Predicts
) -> Array:
    """The integrand of eq. (1) for every example at each of its log SNRs, `[times, batch]`.

    `log_snr` is `[times, batch]`, `eps` `[times, batch, ...]`. As in `terms_at`, they go through
    the network as one batch whose rows of one example are neighbours.
    """
    times, batch = log_snr.shape

    x0 = as_rows(jnp.broadcast_to(x0[None], (times, *x0.shape)))
    log_snr, eps = split_as(as_rows(log_snr), x0), as_rows(eps)
    process = _ending_at(log_snr, x0.ndim - 1)
    last = split_as(jnp.ones(batch * times, jnp.int32), x0)
    x = q_sample(process, x0, last, eps)
    prediction = predict(x, log_snr)
    check_result("predict", prediction, x.shape)
    # SNR is the factor by which the squared error of eps exceeds that of x0.
    mean = weighted_loss(
        process, prediction, x0, last, eps, predicts=predicts, weighting=lambda q, t: 0.5 * q.snr(t)
    )
    return jnp.swapaxes((mean * math.prod(x0.shape[1:])).reshape(batch, times), 0, 1)


def _ending_at(log_snr: Array, axes: int) -> Modal:
    """A chain for each row, of two steps, of which the second ends at its log SNR: eq. (2)."""

    def table(last: Array) -> Array:
        steps = jnp.stack([last + 1.0, last], axis=1)
        return steps.reshape(*steps.shape, *(1,) * axes)

    return per_pixel(table, condition=log_snr)


def _quantile(
    density: Array, log_snr_max: float, log_snr_min: float
) -> Callable[[Array], tuple[Array, Array]]:
    """u -> the log SNR above which there is the share u of the density, and its derivative."""
    cell = (log_snr_min - log_snr_max) / density.size
    density = density.astype(jnp.float32)
    share = density / jnp.sum(density)
    share = jnp.where(jnp.all(share > 0.0), share, jnp.nan)
    ends = jnp.cumsum(share)

    def at(u: Array) -> tuple[Array, Array]:
        index = jnp.minimum(jnp.searchsorted(ends, u, side="right"), density.size - 1)
        inside = jnp.clip(1.0 - (ends[index] - u) / share[index], 0.0, 1.0)
        return log_snr_max + (index.astype(jnp.float32) + inside) * cell, cell / share[index]

    return at


def _check_ends(log_snr: LogSNR, log_snr_max: float, log_snr_min: float) -> None:
    """Raises ValueError where the ends of a schedule are known and others; traced ones are not."""
    for u, name, end in ((0.0, "log_snr_max", log_snr_max), (1.0, "log_snr_min", log_snr_min)):
        with jax.ensure_compile_time_eval():
            value = check_scalar(f"log_snr({u:g})", log_snr(jnp.float32(u)))
        if value is not None and not abs(value - end) < 1e-3:
            raise ValueError(f"log_snr({u:g}) is {value:g}; it has to be {name} = {end:g}")


def _check_density(density: Array) -> None:
    check_float("density", density)
    if density.ndim != 1 or not density.size:
        raise ValueError(f"density has shape {density.shape}; it has to be a vector of cells")
    if not isinstance(density, jax.core.Tracer):
        values = np.asarray(density)
        if not ((values > 0.0) & np.isfinite(values)).all():
            raise ValueError("density is not above 0 and finite in every cell of log SNR")
