r"""Bits per dimension: all terms of the ELBO, or those at chosen times, in one compiled call.

The terms are those of `ddpm_jax.losses.elbo`, eq. (1), over d dimensions:

.. math::

    \mathrm{bits\ per\ dim} = \frac{\mathrm{prior} + \sum_{t=0}^{T-1} L_t}{d \log 2} \tag{1}
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from ddpm_jax.arrays import normal, split_as, widened
from ddpm_jax.checks import (
    check_count,
    check_float,
    check_key,
    check_keys,
    check_level_range,
    check_result,
)
from ddpm_jax.compiled import call_compiled
from ddpm_jax.forward import q_sample
from ddpm_jax.losses import prior_term, vlb_terms
from ddpm_jax.losses.elbo import bits_per_nat
from ddpm_jax.predictions import Predicts
from ddpm_jax.processes import Modal
from ddpm_jax.reverse import Variance, check_predicts, split_output

__all__ = [
    "BitsAtTimes",
    "BitsPerDim",
    "as_rows",
    "bits_at_times",
    "bits_per_dim",
    "check_chunk",
    "check_draws",
    "checked_data",
    "in_chunks",
    "spread_times",
    "terms_at",
]


class BitsPerDim(NamedTuple):
    """Minus the ELBO of each example, in bits per dimension: the parts and their sum."""

    total: Float[Array, " batch"]
    """prior + kl + decoder, `[batch]`."""
    prior: Float[Array, " batch"]
    """KL of what the chain leaves to the prior, `process.prior`, `[batch]`."""
    kl: Float[Array, " batch"]
    """Sum of the T - 1 KL terms, t = 1 ... T - 1, `[batch]`."""
    decoder: Float[Array, " batch"]
    """Grey levels given x at t = 0, `[batch]`."""
    per_step: Float[Array, "T batch"]
    """The term at each t, `[T, batch]`: the decoder at index 0, then the KL terms."""


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
    r"""Minus the ELBO of `x0`, every one of its T + 1 terms, in bits per dimension.

    .. math::

        \frac{1}{d \log 2} \Big( \mathrm{prior} + \sum_{t=0}^{T-1} L_t \Big)

    Eq. (1) of `ddpm_jax.losses.elbo`, an upper bound on -log2 p(x0) / d. A scan over t calls
    `predict` for `chunk` times at once, so memory grows with `chunk` and not with T. Noise is the
    only randomness: the sum over t is complete, not sampled. Each time has noise of its own, and
    `chunk` changes the speed only: the result is the same up to rounding.

    Args:
        process: a schedule, or another process of modes.
        predict: `(x_t, t) -> prediction`, the network with its parameters bound, on batch * chunk
            rows. For the learned range, `(prediction, interpolation)`.
        key: typed random key; time t uses fold_in(key, t).
        x0: data, `[batch, ...]`, on the grid of `levels` values in [-1, 1].
        predicts: what `predict` returns, see `ddpm_jax.predictions`.
        levels: grey levels of the data, at least 2; 8-bit images have 256. None for continuous
            data: the bits are then those of a density, and can be negative.
        chunk: how many times one call of `predict` is given.
        variance: that of p(x_{t-1} | x_t), see `ddpm_jax.reverse`.

    Returns:
        The parts and their sum, bits per dimension, `[batch]` each.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name, an unknown name,
            eps with a schedule of zero terminal SNR, or `chunk` below 1.
        NoClosedForm: a chain without modes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ddpm_jax import bits_per_dim, schedules
        >>> def predict(x_t, t):  # a network, its parameters bound
        ...     return 0.0 * x_t
        >>> x0 = jnp.zeros((2, 4))
        >>> bits = bits_per_dim(
        ...     schedules.cosine(10), predict, jax.random.key(0), x0, predicts="v", levels=None)
        >>> bits.total.shape, bits.per_step.shape
        ((2,), (10, 2))

    References:
        Ho et al. 2020, https://arxiv.org/abs/2006.11239
    """
    x0 = checked_data(process, x0, predicts=predicts, levels=levels)
    check_key("key", key)
    check_chunk(chunk)
    to_bits = bits_per_nat(x0)

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


class BitsAtTimes(NamedTuple):
    """Some of the parts of minus the ELBO of each example, in bits per dimension."""

    prior: Float[Array, " batch"]
    """The prior term, which is exact, `[batch]`."""
    per_time: Float[Array, "times batch"]
    """The term at each of an example's times, `[times, batch]`: the decoder at t = 0, else a KL."""


def bits_at_times(
    process: Modal,
    predict: Callable[[Float[Array, "batch *data"], Int[Array, " batch"]], Any],
    key: Key[Array, "*batch"],
    x0: Float[Array, "batch *data"],
    times: Int[Array, "times batch"],
    *,
    predicts: Predicts,
    levels: int | None,
    variance: Variance = "small",
) -> BitsAtTimes:
    """The ELBO's terms of each example at times of its own, and its prior term, which is exact.

    `bits_per_dim` is the sum of all of them; with the times and weights of `spread_times` the
    weighted sum is an estimate of it.

    Args:
        process: a schedule, or another process of modes.
        predict: `(x_t, t) -> prediction`, as for `bits_per_dim`; called once for each row of times.
        key: typed random key, which is split, or one for each example, `[batch]`; an example's term
            at time t uses fold_in(its key, t).
        x0: data, `[batch, ...]`, on the grid of `levels` values in [-1, 1].
        times: 0 <= t < T, integers `[times, batch]`.
        predicts: what `predict` returns, see `ddpm_jax.predictions`.
        levels: as for `bits_per_dim`.
        variance: that of p(x_{t-1} | x_t), see `ddpm_jax.reverse`.

    Returns:
        The prior term `[batch]` and the terms `[times, batch]`, in bits per dimension.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name, an unknown name, or
            eps with a schedule of zero terminal SNR.
        NoClosedForm: a chain without modes.
    """
    x0 = checked_data(process, x0, predicts=predicts, levels=levels)
    check_keys("key", key, x0.shape[0])
    _check_times(times, x0.shape[0])
    to_bits = bits_per_nat(x0)

    def run(key: Array, x0: Array, times: Array) -> BitsAtTimes:
        keys = split_as(key if key.ndim else jax.random.split(key, x0.shape[0]), x0)

        def terms(_: None, t: Array) -> tuple[None, Array]:
            t = split_as(t, x0)
            noise_keys = jax.vmap(jax.random.fold_in)(keys, t)
            eps = normal(noise_keys, x0.shape, x0.dtype)
            nats = terms_at(
                process,
                predict,
                x0,
                t[None],
                eps[None],
                predicts=predicts,
                levels=levels,
                variance=variance,
            )
            return None, nats[0]

        _, nats = jax.lax.scan(terms, None, times)
        return BitsAtTimes(prior_term(process, x0) * to_bits, nats * to_bits)

    return call_compiled(run, key, x0, times)


def _check_times(times: Array, batch: int) -> None:
    if not hasattr(times, "ndim"):
        raise TypeError(f"times is a {type(times).__name__}; it has to be an array")
    if not np.issubdtype(times.dtype, np.integer):
        raise TypeError(f"times has dtype {times.dtype}; times are integers")
    if times.ndim != 2 or times.shape[1] != batch or not times.shape[0]:
        raise ValueError(
            f"times has shape {times.shape}; it has to be one or more rows of {batch}, a time for"
            " each example"
        )


def spread_times(
    num_steps: int,
    num_times: int,
    examples: int,
    *,
    seed: int,
    sizes: Float[np.ndarray, " T"] | None = None,
) -> tuple[Int[np.ndarray, "times examples"], Int[np.ndarray, "times examples"]]:
    r"""Times in 0 ... T - 1 for each of many examples, and how many times each stands for.

    Time 0, the decoder, is one of them, and the T - 1 others are divided into `num_times` - 1
    stretches of about equal length, or of about equal sums of `sizes`. An example has one time in
    each stretch: a random one for the first example, and for each further example the next one,
    cyclically; the examples after the last whole round are spread over all of the stretch. So each
    of an example's times t_j is uniform in its stretch, of length n_j, and

    .. math::

        \sum_j n_j L_{t_j}

    has the whole sum over t as its expectation (systematic sampling; Cochran 1977, chapter 8). All
    examples together have every t as often as any other of its stretch, give or take one. With
    `num_times` = T it is the whole sum.

    Args:
        num_steps: T, the number of steps.
        num_times: 2 to T.
        examples: how many.
        seed: of the random beginnings.
        sizes: expected size of the term at each t, not negative, `[T]`; the one at t = 0 is not
            used. By default the terms are taken to be equal.

    Returns:
        The times and the lengths of their stretches, int32 `[num_times, examples]` each.

    Raises:
        TypeError, ValueError: a count that is no whole number, `num_times` outside 2 to T, or
            `sizes` of another shape, or with a value that is negative or not finite.

    Example:
        >>> from ddpm_jax.likelihood import spread_times
        >>> times, lengths = spread_times(101, 5, 1000, seed=0)
        >>> times[0].max().item(), lengths[:, 0].tolist()
        (0, [1, 25, 25, 25, 25])

    References:
        Cochran 1977, Sampling Techniques, 3rd edition, Wiley
    """
    check_count("num_times", num_times)
    check_count("examples", examples)
    if not 2 <= num_times <= num_steps:
        raise ValueError(f"num_times is {num_times}; it has to be 2 to T = {num_steps}")
    bounds = _stretches(num_steps, num_times - 1, sizes)
    first = np.concatenate([[0], bounds[:-1]])[:, None]
    length = np.concatenate([[1], np.diff(bounds)])[:, None]
    begin = np.random.default_rng(seed).integers(0, length)
    number, in_rounds = np.arange(examples), examples // length * length
    left = np.maximum(examples - in_rounds, 1)
    spread = np.where(number < in_rounds, number, (number - in_rounds) * length // left)
    times = first + (begin + spread) % length
    return times.astype(np.int32), np.broadcast_to(length, times.shape).astype(np.int32)


def _stretches(num_steps: int, stretches: int, sizes: np.ndarray | None) -> np.ndarray:
    """Bounds of the stretches of 1 ... T - 1, `[stretches + 1]`; none of them is empty."""
    number = np.arange(stretches + 1)
    equal = 1 + number * (num_steps - 1) // stretches
    if sizes is None:
        return equal
    sizes = np.asarray(sizes, np.float64)
    if sizes.shape != (num_steps,):
        raise ValueError(
            f"sizes has shape {sizes.shape}; it has to be ({num_steps},), one for each t"
        )
    if not (np.isfinite(sizes) & (sizes >= 0.0)).all():
        raise ValueError("sizes has values that are negative or not finite")
    sums = np.cumsum(sizes[1:])
    bounds = 1 + np.searchsorted(sums, sums[-1] * number / stretches, side="right")
    bounds = number + np.maximum.accumulate(bounds - number)  # at least one time in each
    bounds = np.clip(bounds, 1 + number, num_steps - stretches + number)
    bounds[0], bounds[-1] = 1, num_steps  # whatever the sizes and their rounding
    return bounds


def checked_data(
    process: Modal, x0: Float[Array, "batch *data"], *, predicts: Predicts, levels: int | None
) -> Float[Array, "batch *data"]:
    """`x0` in float32 at least: x_t rounded to bfloat16 is not the chain's, and the bound not one.

    Raises:
        TypeError, ValueError: `x0` not floating point, or beyond the outer levels; or a `predicts`
            that the process cannot use.
    """
    check_float("x0", x0)
    check_predicts(process, predicts)
    if levels is not None:
        check_level_range("x0", x0)
    return widened(x0)


def check_chunk(chunk: int) -> None:
    """Raises TypeError or ValueError unless `chunk` is a whole number, at least 1."""
    check_count("chunk", chunk)
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it has to be at least 1")


def check_draws(name: str, count: int) -> None:
    """Raises TypeError or ValueError unless `count` draws have a spread: a whole number from 2."""
    check_count(name, count)
    if count < 2:
        raise ValueError(f"{name} is {count}; a standard error takes at least 2 draws")


def in_chunks(function: Callable[[Array], Array], count: int, chunk: int) -> Array:
    """`function` of the indices 0 ... count - 1, given as vectors of `chunk`, stacked.

    Where `chunk` does not divide `count`, the last call gets the last index more than once, and its
    results for the repeats are dropped: all calls share one trace of `function`.
    """
    chunk = min(chunk, count)
    calls = -(-count // chunk)
    indices = jnp.minimum(jnp.arange(calls * chunk, dtype=jnp.int32), count - 1)
    _, stacked = jax.lax.scan(
        lambda _, group: (None, function(group)), None, indices.reshape(calls, chunk)
    )
    return stacked.reshape(calls * chunk, *stacked.shape[2:])[:count]


def as_rows(values: Shaped[Array, "times batch *data"]) -> Shaped[Array, "rows *data"]:
    """Values of every example at each of its times as one batch, neighbours of one example."""
    times, batch = values.shape[:2]
    return jnp.swapaxes(values, 0, 1).reshape(batch * times, *values.shape[2:])


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
