r"""What do the KL's closed form, and each way of drawing t, buy?

**Two Gaussians.** KL(q || p) of each dimension, for a few pairs, by

    closed form           `gaussians.kl_diagonal`, for any two variances
    shared variance       `gaussians.kl_shared_variance`, where they are one
    quadrature            Gauss-Hermite of log q - log p with some nodes; exact up to rounding, as
                          log q - log p is a parabola, which 2 nodes integrate
    Monte Carlo           the mean of log q - log p over n draws of q

with the error against float64 on the host and the time for each dimension. As many dimensions run
at once as keep the device busy, so that the time is not that of dispatch.

**The ELBO of one batch**, in bits per dimension: all T times (`bits_per_dim`), or

    uniform, stratified         one time for each example
    importance, best p          p_t proportional to sqrt(E[L_t^2]), which is known here
    importance, history         p_t from 10 losses at each t, as training has it
    estimate, uniform, best p   `estimate_bits_per_dim`: some times for each example, independent

The variance is that of the batch's mean over many keys, with the same examples; what remains of it
for all T times is that of the noise. Losses are those of a perfect network for Gaussian data with
the mean and covariance of the config's images. The time is that of the config's own network, at
work for the same calls. Variance times seconds is what counts: halve it, and the same precision
takes half as long.

What it does not measure: the variance of gradients; networks that are not perfect, whose losses
may be spread otherwise over t; and the spread between examples, which more of them average out.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.results import Row, duration, find, number
from benchmarks.settings import Common, Say, check_positive
from benchmarks.timing import compiled, in_turns, spread
from ddpm_jax import (
    analytic,
    bits_per_dim,
    estimate_bits_per_dim,
    experiment,
    gaussians,
    q_sample,
    schedules,
    timesteps,
    vlb_terms,
)
from ddpm_jax.config import load
from ddpm_jax.data import to_model_range
from ddpm_jax.errors import UserError
from ddpm_jax.losses import prior_term

__all__ = ["COLUMNS", "PACKAGES", "PAIRS", "Settings", "notes", "run"]

PACKAGES: tuple[str, ...] = ()

PAIRS = {
    "means 0.1 apart": (0.0, 1.0, 0.1, 1.0),
    "nearly equal": (0.0, 1.001, 0.001, 1.0),
    "one apart, p twice as wide": (0.0, 1.0, 1.0, 4.0),
    "narrow q in a wide p": (0.0, 0.01, 0.5, 1.0),
}
"""Mean and variance of q, mean and variance of p."""

AT_ONCE = 1 << 22
"""Draws, or values of a closed form, that keep a device busy."""
CHUNK = 10_000
"""Draws of a dimension in memory at once."""


@dataclasses.dataclass(frozen=True)
class Settings(Common):
    """What `python -m benchmarks kl` takes."""

    samples: tuple[int, ...] = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
    """Draws of the Monte Carlo estimate: powers of ten."""
    nodes: tuple[int, ...] = (2, 8, 32)
    """Nodes of the quadrature."""
    config: Path = Path("configs/digits.py")
    """Images and network."""
    chains: tuple[Literal["config", "cosine"], ...] = ("config", "cosine")
    """The config's own chain, and a cosine schedule."""
    cosine_steps: int = 1000
    """T of the cosine schedule."""
    batch: int = 64
    """Examples of the ELBO."""
    num_times: int = 8
    """Times for each example that `estimate_bits_per_dim` draws."""
    keys: int = 200
    """Estimates whose variance is taken."""
    whole_keys: int = 16
    """Whole ELBOs whose variance is taken."""


def run(settings: Settings, say: Say) -> list[Row]:
    """Measures both parts.

    Raises:
        UserError: settings that cannot work.
    """
    check_positive(settings)
    for n in settings.samples:
        if n > CHUNK and n % CHUNK:
            raise UserError(f"--samples has {n}; above {CHUNK} it has to be a multiple of that")
    if min(settings.keys, settings.whole_keys, settings.num_times) < 2:
        raise UserError("--keys, --whole-keys and --num-times have to be at least 2")
    built = experiment.build(load(settings.config))
    rows: list[Row] = []
    for name, pair in PAIRS.items():
        say(f"two Gaussians, {name}")
        rows += _pair(settings, name, pair)
    for chain in settings.chains:
        named, schedule = built.config.schedule.name, built.schedule
        if chain == "cosine":
            named, schedule = "cosine", schedules.cosine(settings.cosine_steps)
        say(f"ELBO, {named}")
        rows += _elbo(settings, f"{named}, T = {schedule.num_steps}", schedule, built)
    return rows


# Two Gaussians.


def _pair(settings: Settings, name: str, pair: tuple[float, ...]) -> list[Row]:
    methods: list[tuple[str, int, int, Callable[..., Any]]] = [
        ("closed form", 0, AT_ONCE // 16, lambda key, *g: gaussians.kl_diagonal(*g))
    ]
    if pair[1] == pair[3]:
        methods.append(
            (
                "shared variance",
                0,
                AT_ONCE // 16,
                lambda key, mean_q, variance, mean_p, _: gaussians.kl_shared_variance(
                    mean_q, mean_p, variance
                ),
            )
        )
    for nodes in settings.nodes:
        methods.append(("quadrature", nodes, max(AT_ONCE // 16 // nodes, 1), _quadrature(nodes)))
    for n in settings.samples:
        methods.append(("Monte Carlo", n, min(max(AT_ONCE // n, 16), AT_ONCE // 16), _sampled(n)))

    key = jax.random.key(settings.seed)
    results: dict[int, np.ndarray] = {}
    variants, programs, exact = {}, [], []
    for index, (_, _, dims, function) in enumerate(methods):
        gaussian_pair = _spread_out(settings.seed, pair, dims)
        exact.append(_exact(*(np.asarray(part, np.float64) for part in gaussian_pair)))
        program = compiled(function, key, *gaussian_pair)
        programs.append(program)
        variants[index] = lambda call=program.call, g=gaussian_pair: call(key, *g)
    runs = in_turns(
        variants,
        repeats=settings.repeats,
        seconds=settings.seconds,
        look=lambda index, result: results.__setitem__(index, np.asarray(result, np.float64)),
    )
    rows = []
    for index, (method, n, dims, _) in enumerate(methods):
        error = math.sqrt(np.mean(np.square(results[index] - exact[index])))
        size = float(np.mean(exact[index]))
        numbers = {
            "dims": dims,
            "nats": size,
            "rms_error": error,
            "relative_error": error / size,
            "seconds_per_dimension": spread(runs[index]).median / dims,
        }
        case: dict[str, Any] = {"pair": name, "method": method} | ({"n": n} if n else {})
        rows.append(Row(case, runs[index], programs[index].compile_seconds, numbers))
    return rows


def _spread_out(seed: int, pair: tuple[float, ...], dims: int) -> list[jax.Array]:
    """The pair at other places and scales: the same KL in each dimension, but for rounding."""
    rng = np.random.default_rng(seed)
    place, scale = rng.uniform(-1.0, 1.0, dims), np.exp(rng.uniform(-2.0, 2.0, dims))
    mean_q, variance_q, mean_p, variance_p = pair
    parts = (
        *(place + scale * mean_q, scale**2 * variance_q),
        *(place + scale * mean_p, scale**2 * variance_p),
    )
    return [jnp.asarray(part, jnp.float32) for part in parts]


def _exact(
    mean_q: np.ndarray, variance_q: np.ndarray, mean_p: np.ndarray, variance_p: np.ndarray
) -> np.ndarray:
    excess = (variance_q - variance_p) / variance_p
    return 0.5 * (excess - np.log1p(excess) + (mean_q - mean_p) ** 2 / variance_p)


def _log_ratio(x: Any, *pair: Any) -> Any:
    """log q(x) - log p(x) of draws `[n, dims]`."""
    mean_q, variance_q, mean_p, variance_p = (jnp.broadcast_to(part, x.shape) for part in pair)
    log_q = gaussians.log_density_diagonal(x, mean_q, variance_q)
    return log_q - gaussians.log_density_diagonal(x, mean_p, variance_p)


def _quadrature(nodes: int) -> Callable[..., Any]:
    places, weights = np.polynomial.hermite_e.hermegauss(nodes)
    places, weights = places.astype(np.float32), (weights / weights.sum()).astype(np.float32)

    def kl(key: Any, mean_q: Any, variance_q: Any, mean_p: Any, variance_p: Any) -> Any:
        x = mean_q[None] + jnp.sqrt(variance_q)[None] * jnp.asarray(places)[:, None]
        ratio = _log_ratio(x, mean_q, variance_q, mean_p, variance_p)
        return jnp.sum(jnp.asarray(weights)[:, None] * ratio, axis=0)

    return kl


def _sampled(n: int) -> Callable[..., Any]:
    chunk = min(n, CHUNK)

    def kl(key: Any, mean_q: Any, variance_q: Any, mean_p: Any, variance_p: Any) -> Any:
        def some(total: Any, index: Any) -> tuple[Any, None]:
            z = jax.random.normal(jax.random.fold_in(key, index), (chunk, *mean_q.shape))
            x = mean_q[None] + jnp.sqrt(variance_q)[None] * z
            ratio = _log_ratio(x, mean_q, variance_q, mean_p, variance_p)
            return total + jnp.mean(ratio, axis=0), None

        total, _ = jax.lax.scan(some, jnp.zeros_like(mean_q), jnp.arange(n // chunk))
        return total / (n // chunk)

    return kl


# The ELBO.


class Way(NamedTuple):
    """A way to the mean ELBO of a batch."""

    name: str
    times: int
    """Network evaluations for each example."""
    keys: int
    of: Callable[[Any, Any, Any], Any]
    """`(predict, key, x0) -> bits per dimension`, a scalar."""


def _elbo(
    settings: Settings, name: str, schedule: schedules.Schedule, built: experiment.Experiment
) -> list[Row]:
    data, shape = _gaussian_of(built)
    key_data, key_p, key_time, key = jax.random.split(jax.random.key(settings.seed), 4)
    x0 = analytic.sample(data, key_data, (settings.batch, *shape))
    perfect = analytic.predictor(data, schedule, predicts="eps")
    params = jax.jit(built.model.init)(built.key("parameters"), x0[:1], jnp.zeros(1, jnp.int32))

    def network(x_t: Any, t: Any) -> Any:
        return built.bind(params)(x_t, t)

    losses = _losses_at_each_time(schedule, perfect, key_p, x0)
    ways = _ways(settings, schedule, losses, built.config.evaluation.batch_size)
    programs, found, variants = [], [], {}
    for index, way in enumerate(ways):
        perfectly = compiled(lambda key, x0, way=way: way.of(perfect, key, x0), key, x0)
        keys = jax.random.split(jax.random.fold_in(key, index), way.keys)
        bits = np.array([float(perfectly.call(k, x0)) for k in keys], np.float64)
        found.append(bits)
        program = compiled(lambda key, x0, way=way: way.of(network, key, x0), key_time, x0)
        programs.append(program)
        variants[index] = lambda call=program.call: call(key_time, x0)
    runs = in_turns(variants, repeats=settings.repeats, seconds=settings.seconds)
    whole = found[0]
    rows = []
    for index, (way, bits) in enumerate(zip(ways, found, strict=True)):
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


def _gaussian_of(built: experiment.Experiment) -> tuple[analytic.Mixture, tuple[int, ...]]:
    """Gaussian data with the mean and covariance of the images, their grey levels spread out."""
    images, levels = built.images.train, built.images.levels
    flat = np.asarray(to_model_range(jnp.asarray(images), levels), np.float64)
    flat = flat.reshape(len(images), -1)
    width = 2.0 / (levels - 1)
    covariance = np.cov(flat.T) + width**2 / 12.0 * np.eye(flat.shape[1])
    return analytic.gaussian(flat.mean(axis=0), covariance), images.shape[1:]


def _losses_at_each_time(
    schedule: schedules.Schedule, predict: Any, key: jax.Array, x0: jax.Array
) -> jax.Array:
    """L_t of the batch at every t, `[T, batch]`, in nats."""

    @jax.jit
    def at(t: Any, key: Any) -> Any:
        times = jnp.full(x0.shape[:1], t)
        eps = jax.random.normal(key, x0.shape)
        x_t = q_sample(schedule, x0, times, eps)
        return vlb_terms(schedule, predict(x_t, times), x0, x_t, times, predicts="eps", levels=None)

    keys = jax.random.split(key, schedule.num_steps)
    return jnp.stack([at(jnp.int32(t), keys[t]) for t in range(schedule.num_steps)])


def _ways(
    settings: Settings, schedule: schedules.Schedule, losses: jax.Array, rows_at_once: int
) -> list[Way]:
    num_steps, told = schedule.num_steps, {"predicts": "eps", "levels": None}
    best = jnp.sqrt(jnp.mean(jnp.square(losses), axis=1))
    best /= jnp.sum(best)
    history = timesteps.loss_history(num_steps)
    for column in range(history.losses.shape[1]):
        # Some example's loss, another one each time.
        of = (jnp.arange(num_steps) + column) % losses.shape[1]
        seen = jnp.take_along_axis(losses, of[:, None], axis=1)[:, 0]
        history = timesteps.update_history(history, jnp.arange(num_steps, dtype=jnp.int32), seen)
    learned = timesteps.probabilities(history)
    chunk = max(rows_at_once // settings.batch, 1)

    def whole(predict: Any, key: Any, x0: Any) -> Any:
        return jnp.mean(bits_per_dim(schedule, predict, key, x0, chunk=chunk, **told).total)

    def once(draw: Callable[[Any], tuple[Any, Any]]) -> Callable[[Any, Any, Any], Any]:
        def bits(predict: Any, key: Any, x0: Any) -> Any:
            key_t, key_eps = jax.random.split(key)
            t, weight = draw(key_t)
            eps = jax.random.normal(key_eps, x0.shape)
            x_t = q_sample(schedule, x0, t, eps)
            output = predict(x_t, schedule.network_time(t))
            nats = num_steps * weight * vlb_terms(schedule, output, x0, x_t, t, **told)
            return jnp.mean(prior_term(schedule, x0) + nats) / _nats_per_bit(x0)

        return bits

    def some(probabilities: Any) -> Callable[[Any, Any, Any], Any]:
        def bits(predict: Any, key: Any, x0: Any) -> Any:
            options = told | {"num_times": settings.num_times, "chunk": chunk}
            return jnp.mean(
                estimate_bits_per_dim(
                    schedule, predict, key, x0, probabilities=probabilities, **options
                ).total
            )

        return bits

    batch = settings.batch
    ones = jnp.ones(batch)
    return [
        Way("all T times", num_steps, settings.whole_keys, whole),
        Way(
            *("uniform", 1, settings.keys),
            once(lambda key: (timesteps.uniform(key, batch, num_steps), ones)),
        ),
        Way(
            *("stratified", 1, settings.keys),
            once(lambda key: (timesteps.stratified(key, batch, num_steps), ones)),
        ),
        Way(
            *("importance, best p", 1, settings.keys),
            once(lambda key: timesteps.importance(key, batch, best)),
        ),
        Way(
            *("importance, history", 1, settings.keys),
            once(lambda key: timesteps.importance(key, batch, learned)),
        ),
        Way("estimate, uniform", settings.num_times, settings.keys, some(None)),
        Way("estimate, best p", settings.num_times, settings.keys, some(best)),
    ]


def _nats_per_bit(x0: jax.Array) -> float:
    return math.prod(x0.shape[1:]) * math.log(2.0)


# What is said.


def _figure(key: str) -> Callable[[Row], str]:
    return lambda row: number(row.numbers.get(key))


COLUMNS: dict[str, Callable[[Row], str]] = {
    "pair, or chain": lambda row: str(row.case.get("pair") or row.case["chain"]),
    "method": lambda row: str(row.case.get("method") or row.case["way"]),
    "n": lambda row: number(row.case.get("n") or row.numbers.get("times_per_example")),
    "time": lambda row: duration(row.median),
    "quartiles": lambda row: " - ".join(
        duration(seconds) for seconds in (spread(row.seconds).lower, spread(row.seconds).upper)
    ),
    "per dimension": lambda row: duration(row.numbers.get("seconds_per_dimension")),
    "nats": _figure("nats"),
    "error, nats": _figure("rms_error"),
    "bits/dim": _figure("bits_per_dim"),
    "off, s.e.": _figure("off_errors"),
    "deviation": _figure("deviation"),
    "variance x s": _figure("variance_seconds"),
    "compile": lambda row: duration(row.compile_seconds),
}
"""Headers of the table, and what stands under them. n: draws, nodes, or times of each example."""


def notes(rows: list[Row]) -> list[str]:
    """What the numbers say."""
    said = [_note_of_pair(name, find(rows, pair=name)) for name in PAIRS]
    for chain in dict.fromkeys(row.case["chain"] for row in rows if "chain" in row.case):
        said += _notes_of_chain(str(chain), find(rows, chain=chain))
    return said


def _note_of_pair(name: str, rows: list[Row]) -> str:
    closed = find(rows, method="closed form")[0]
    sampled = max(find(rows, method="Monte Carlo"), key=lambda row: row.case["n"])
    slower = sampled.numbers["seconds_per_dimension"] / closed.numbers["seconds_per_dimension"]
    nearer = sampled.numbers["rms_error"] / max(closed.numbers["rms_error"], 1e-300)
    return (
        f"{name}: the closed form is off by {number(closed.numbers['relative_error'])} of the KL."
        f" {sampled.case['n']:,} draws take {number(slower)} times as long for each dimension, and"
        f" are off by {number(sampled.numbers['relative_error'])}, {number(nearer)} times as much."
    )


def _notes_of_chain(chain: str, rows: list[Row]) -> list[str]:
    uniform = find(rows, way="uniform")[0].numbers["variance_seconds"]
    gains = {str(row.case["way"]): uniform / row.numbers["variance_seconds"] for row in rows}
    ranked = sorted(gains.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{way} {number(gain)}" for way, gain in ranked if way != "uniform")
    said = [f"{chain}: seconds to the same precision, those of uniform times over: {listed}."]
    worst = max(rows, key=lambda row: row.numbers["off_errors"])
    said.append(
        f"{chain}: no way is biased that can be told: the farthest from all T times is"
        f" {worst.case['way']}, by {worst.numbers['off_errors']:.1f} standard errors."
        if worst.numbers["off_errors"] < 5.0
        else f"{chain}: BIASED: {worst.case['way']} is {worst.numbers['off_errors']:.1f} standard"
        " errors from all T times."
    )
    return said
