"""The terms of the ELBO at chosen times, and a choice that costs little and covers the chain."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.arrays import normal, split_as, widened
from ddpm_jax.checks import check_count, check_float, check_keys, check_level_range
from ddpm_jax.compiled import call_compiled
from ddpm_jax.forward import Predicts
from ddpm_jax.likelihood.chain import terms_at
from ddpm_jax.losses import prior_term
from ddpm_jax.losses.elbo import nats_per_bit_dim
from ddpm_jax.processes import Modal
from ddpm_jax.reverse import Variance, check_predicts

__all__ = ["BitsAtTimes", "bits_at_times", "spread_times"]


class BitsAtTimes(NamedTuple):
    """Some of the parts of minus the ELBO of each example, in bits per dimension."""

    prior: Float[Array, " batch"]
    per_time: Float[Array, "times batch"]
    """The term at each of an example's times: the decoder at t = 0, else a KL."""


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
        key: typed random key, which is split, or one for each example; an example's term at time t
            uses fold_in(its key, t).
        x0: data on the grid of `levels` values in [-1, 1].
        times: 0 <= t < T.
        predicts: what `predict` returns.
        levels: as for `bits_per_dim`.
        variance: that of p(x_{t-1} | x_t), see `ddpm_jax.reverse`.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name, an unknown name, or
            eps with a schedule of zero terminal SNR.
    """
    check_float("x0", x0)
    check_keys("key", key, x0.shape[0])
    _check_times(times, x0.shape[0])
    check_predicts(process, predicts)
    if levels is not None:
        check_level_range("x0", x0)
    x0 = widened(x0)

    to_bits = 1.0 / nats_per_bit_dim(x0)

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
    num_steps: int, num_times: int, examples: int, *, seed: int
) -> tuple[Int[np.ndarray, "times examples"], Int[np.ndarray, "times examples"]]:
    """Times in 0 ... T - 1 for each of many examples, and how many times each stands for.

    Time 0, the decoder, is one of them, and the T - 1 others are divided into `num_times` - 1
    stretches as long as each other, give or take one. An example has one time in each stretch: the
    first example one at random, and each further one the next, beginning anew at the end. So each
    of an example's times is uniform in its stretch, and

        sum over its times of (length of the stretch) * L_t

    has the whole sum over t as its expectation (systematic sampling; Cochran 1977, chapter 8); and
    all examples together have every t as often as any other of its stretch, give or take one. With
    `num_times` = T it is the whole sum.

    Args:
        num_steps: T.
        num_times: 2 to T.
        examples: how many.
        seed: of the random beginnings.

    Returns:
        The times and the lengths of their stretches.

    Raises:
        TypeError, ValueError: a count that is no whole number, or `num_times` outside 2 to T.

    Example:
        >>> from ddpm_jax.likelihood import spread_times
        >>> times, lengths = spread_times(101, 5, 1000, seed=0)
        >>> times[0].max().item(), lengths[:, 0].tolist()
        (0, [1, 25, 25, 25, 25])
    """
    check_count("num_times", num_times)
    check_count("examples", examples)
    if not 2 <= num_times <= num_steps:
        raise ValueError(f"num_times is {num_times}; it has to be 2 to T = {num_steps}")
    stretches = num_times - 1
    bounds = 1 + np.arange(stretches + 1) * (num_steps - 1) // stretches
    first = np.concatenate([[0], bounds[:-1]])[:, None]
    length = np.concatenate([[1], np.diff(bounds)])[:, None]
    begin = np.random.default_rng(seed).integers(0, length)
    times = first + (begin + np.arange(examples)) % length
    return times.astype(np.int32), np.broadcast_to(length, times.shape).astype(np.int32)
