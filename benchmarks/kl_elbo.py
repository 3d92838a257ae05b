"""Ways to the ELBO of a batch: all T times, or some, drawn in one way or another."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from benchmarks.results import Row
from benchmarks.timing import compiled, in_turns, spread
from ddpm_jax import (
    analytic,
    bits_per_dim,
    estimate_bits_per_dim,
    q_sample,
    timesteps,
    vlb_terms,
)
from ddpm_jax.data import to_model_range
from ddpm_jax.experiment import Experiment
from ddpm_jax.losses import prior_term
from ddpm_jax.models import init_params
from ddpm_jax.processes import Modal

__all__ = ["WAYS", "Sizes", "WayName", "measured"]


WayName = Literal[
    "all", "uniform", "stratified", "best", "history", "estimate_uniform", "estimate_best"
]
WAYS: tuple[WayName, ...] = get_args(WayName)


class Way(NamedTuple):
    """A way to the mean ELBO of a batch."""

    name: WayName
    times: int
    """Network evaluations for each example."""
    keys: int
    of: Callable[[Any, Any, Any], Any]
    """`(predict, key, x0) -> bits per dimension`, a scalar."""


class Sizes(NamedTuple):
    """How many of each."""

    batch: int
    num_times: int
    keys: int
    whole_keys: int


def measured(
    name: str,
    process: Modal,
    built: Experiment,
    sizes: Sizes,
    names: Sequence[WayName],
    *,
    seed: int,
    repeats: int,
    seconds: float,
) -> list[Row]:
    """A row for each way to the ELBO on one chain; they run by turns."""
    key_p, key_time, key = jax.random.split(jax.random.key(seed), 3)
    levels = built.images.levels
    x0 = to_model_range(jnp.asarray(built.images.held_out[np.arange(sizes.batch)].images), levels)
    linear = analytic.predictor(_gaussian_of(built), process, predicts="eps")
    params = jax.jit(lambda key: meta.unbox(init_params(built.model, key, x0.shape[1:])))(
        built.key("parameters")
    )

    losses = _losses_at_each_time(process, linear, key_p, x0, levels)
    chunk = max(built.config.evaluation.batch_size // sizes.batch, 1)
    ways = _ways(sizes, process, losses, chunk, levels)
    ways = [way for way in ways if way.name in ("all", *names)]
    programs, estimates, variants = [], [], {}
    for index, way in enumerate(ways):
        linearly = compiled(lambda key, x0, way=way: way.of(linear, key, x0), key, x0)
        keys = jax.random.split(jax.random.fold_in(key, index), way.keys)
        bits = np.array([float(linearly.call(k, x0)) for k in keys], np.float64)
        estimates.append(bits)
        program = compiled(
            lambda params, key, x0, way=way: way.of(built.bind(params), key, x0),
            *(params, key_time, x0),
        )
        programs.append(program)
        variants[index] = functools.partial(program.call, params, key_time, x0)
    runs = in_turns(variants, repeats=repeats, seconds=seconds)
    whole = estimates[0]
    rows = []
    for index, (way, bits) in enumerate(zip(ways, estimates, strict=True)):
        variance, median = float(np.var(bits, ddof=1)), spread(runs[index]).median
        off = float(np.mean(bits) - np.mean(whole))
        standard_error = math.sqrt(variance / len(bits) + np.var(whole, ddof=1) / len(whole))
        numbers = {
            "times_per_example": way.times,
            "keys": way.keys,
            "bits_per_dim": float(np.mean(bits)),
            "off_errors": abs(off) / standard_error if index else 0.0,
            "deviation": math.sqrt(variance),
            "variance_seconds": variance * median,
        }
        case: dict[str, Any] = {"chain": name, "way": way.name}
        rows.append(Row(case, runs[index], programs[index].compile_seconds, numbers))
    return rows


def _gaussian_of(built: Experiment) -> analytic.Mixture:
    """Gaussian data with the mean and covariance of the images, their grey levels spread out."""
    levels = built.images.levels
    images, _ = built.images.train[np.arange(len(built.images.train))]
    flat = np.asarray(to_model_range(jnp.asarray(images), levels), np.float64)
    flat = flat.reshape(len(images), -1)
    width = 2.0 / (levels - 1)
    covariance = np.cov(flat.T) + width**2 / 12.0 * np.eye(flat.shape[1])
    return analytic.gaussian(flat.mean(axis=0), covariance)


def _losses_at_each_time(
    process: Modal, predict: Any, key: jax.Array, x0: jax.Array, levels: int
) -> jax.Array:
    """L_t of the batch at every t, `[T, batch]`, in nats."""

    @jax.jit
    def at(t: Any, key: Any) -> Any:
        times = jnp.full(x0.shape[:1], t)
        eps = jax.random.normal(key, x0.shape)
        x_t = q_sample(process, x0, times, eps)
        output = predict(x_t, times)
        return vlb_terms(process, output, x0, x_t, times, predicts="eps", levels=levels)

    keys = jax.random.split(key, process.num_steps)
    return jnp.stack([at(jnp.int32(t), keys[t]) for t in range(process.num_steps)])


def _ways(sizes: Sizes, process: Modal, losses: jax.Array, chunk: int, levels: int) -> list[Way]:
    num_steps = process.num_steps
    options: dict[str, Any] = {"predicts": "eps", "levels": levels}
    best = jnp.sqrt(jnp.mean(jnp.square(losses), axis=1))
    best /= jnp.sum(best)
    history = timesteps.loss_history(num_steps)
    for column in range(history.losses.shape[1]):
        # Some example's loss, another one each time.
        of = (jnp.arange(num_steps) + column) % losses.shape[1]
        seen = jnp.take_along_axis(losses, of[:, None], axis=1)[:, 0]
        history = timesteps.update_history(history, jnp.arange(num_steps, dtype=jnp.int32), seen)
    learned = timesteps.probabilities(history)

    def whole(predict: Any, key: Any, x0: Any) -> Any:
        return jnp.mean(bits_per_dim(process, predict, key, x0, chunk=chunk, **options).total)

    def once(draw: Callable[[Any], tuple[Any, Any]]) -> Callable[[Any, Any, Any], Any]:
        def bits(predict: Any, key: Any, x0: Any) -> Any:
            key_t, key_eps = jax.random.split(key)
            t, weight = draw(key_t)
            eps = jax.random.normal(key_eps, x0.shape)
            x_t = q_sample(process, x0, t, eps)
            output = predict(x_t, process.network_time(t))
            nats = num_steps * weight * vlb_terms(process, output, x0, x_t, t, **options)
            return jnp.mean(prior_term(process, x0) + nats) / _nats_per_bit(x0)

        return bits

    def some(probabilities: Any) -> Callable[[Any, Any, Any], Any]:
        def bits(predict: Any, key: Any, x0: Any) -> Any:
            bits_of_each = estimate_bits_per_dim(
                *(process, predict, key, x0),
                num_times=sizes.num_times,
                probabilities=probabilities,
                chunk=chunk,
                **options,
            )
            return jnp.mean(bits_of_each.total)

        return bits

    batch = sizes.batch
    ones = jnp.ones(batch)
    draws: dict[WayName, Callable[[Any], tuple[Any, Any]]] = {
        "uniform": lambda key: (timesteps.uniform(key, batch, num_steps), ones),
        "stratified": lambda key: (timesteps.stratified(key, batch, num_steps), ones),
        "best": lambda key: timesteps.importance(key, batch, best),
        "history": lambda key: timesteps.importance(key, batch, learned),
    }
    return [
        Way("all", num_steps, sizes.whole_keys, whole),
        *(Way(name, 1, sizes.keys, once(draw)) for name, draw in draws.items()),
        Way("estimate_uniform", sizes.num_times, sizes.keys, some(None)),
        Way("estimate_best", sizes.num_times, sizes.keys, some(best)),
    ]


def _nats_per_bit(x0: jax.Array) -> float:
    return math.prod(x0.shape[1:]) * math.log(2.0)
