r"""Measures what the closed form of the KL, and each way of drawing t, save.

**Two Gaussians.** KL(q || p) of each dimension, for a few pairs, by

    closed form           `gaussians.kl_diagonal`, for any two variances
    shared variance       `gaussians.kl_shared_variance`, where they are one
    quadrature            Gauss-Hermite of log q - log p with some nodes; exact up to rounding, as
                          log q - log p is a parabola, which 2 nodes integrate
    Monte Carlo           the mean of log q - log p over n draws of q

with the error against float64 on the host and the time for each dimension. As many dimensions run
at once as keep the device busy, so that the time is not that of dispatch.

**The ELBO of one batch**, in bits per dimension: all T times (`bits_per_dim`), or

    uniform, stratified              one time for each example
    best, history                    the same by importance: p_t proportional to sqrt(E[L_t^2]),
                                     which is known here, or made of 10 losses at each t
    estimate_uniform, estimate_best  `estimate_bits_per_dim`, some independent times for each

The examples are held-out images of the config's dataset, the same for all keys, and the variance is
that of their mean over the keys; what is left of it for all T times is that of the noise. Losses
are those of the best linear denoiser, which knows the images' mean and covariance and needs no
training. The time is that of the config's own network, at work for the same calls. Variance times
seconds is what counts: halve it, and the same precision takes half as long.

What it does not measure: the variance of gradients; trained networks, whose losses may be spread
otherwise over t; and the spread between examples, which more of them average out.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from benchmarks import columns, kl_elbo, kl_pairs
from benchmarks.columns import duration, number
from benchmarks.results import Row, find
from benchmarks.settings import Common, Say, check_values
from ddpm_jax import experiment, schedules
from ddpm_jax.config import Isotropic, Member, load, member_name
from ddpm_jax.errors import UserError

__all__ = ["COLUMNS", "PACKAGES", "Settings", "notes", "run"]

PACKAGES: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Settings(Common):
    """What `python -m benchmarks kl` takes."""

    samples: tuple[int, ...] = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
    """Draws of the Monte Carlo estimate: powers of ten."""
    nodes: tuple[int, ...] = (2, 8, 32)
    """Nodes of the quadrature."""
    at_once: int = 4_194_304
    """Draws in all dimensions together that keep the device busy."""
    config: Path = Path("configs/digits.py")
    """Images and network."""
    chains: tuple[Literal["config", "cosine"], ...] = ("config", "cosine")
    """The config's own chain, and a cosine schedule."""
    cosine_steps: int = 1000
    """T of the cosine schedule."""
    ways: tuple[kl_elbo.WayName, ...] = kl_elbo.WAYS
    """Ways to the ELBO; all T times are always among them, to compare with."""
    batch: int = 64
    """Examples of the ELBO."""
    num_times: int = 8
    """Times for each example that `estimate_bits_per_dim` draws."""
    keys: int = 200
    """Estimates whose variance is taken."""
    whole_keys: int = 16
    """Whole ELBOs whose variance is taken."""


def run(settings: Settings, say: Say) -> Iterator[Row]:
    """Yields the rows of each pair and chain as they are measured.

    Raises:
        UserError: settings that cannot work.
    """
    check_values(settings, distinct=("samples", "nodes", "chains", "ways"))
    for n in settings.samples:
        if n > kl_pairs.CHUNK and n % kl_pairs.CHUNK:
            raise UserError(
                f"--samples has {n}; above {kl_pairs.CHUNK} it has to be a multiple of that"
            )
    if min(settings.keys, settings.whole_keys, settings.num_times) < 2:
        raise UserError("--keys, --whole-keys and --num-times have to be at least 2")
    built = experiment.build(load(settings.config))
    if settings.batch > len(built.images.held_out):
        raise UserError(
            f"--batch is {settings.batch}; there are {len(built.images.held_out)} held-out images"
        )
    say("two Gaussians: compiling")
    methods = kl_pairs.make_methods(settings.samples, settings.nodes, settings.at_once)
    measured: dict[str, Any] = {
        "seed": settings.seed,
        "repeats": settings.repeats,
        "seconds": settings.seconds,
    }
    for name in kl_pairs.PAIRS:
        say(f"two Gaussians, {name}")
        yield from kl_pairs.measured(name, methods, **measured)
    for chain in settings.chains:
        named, process = _named(built.config.schedule), built.process
        if not isinstance(built.config.process, Isotropic):
            named += f", {_named(built.config.process)}"
        if chain == "cosine":
            named, process = "cosine", schedules.cosine(settings.cosine_steps)
        say(f"ELBO, {named}")
        sizes = kl_elbo.Sizes(
            settings.batch, settings.num_times, settings.keys, settings.whole_keys
        )
        called = f"{named}, T = {process.num_steps}"
        yield from kl_elbo.measured(called, process, built, sizes, settings.ways, **measured)


def _named(member: Member) -> str:
    return member_name(type(member)).replace("-", "_")


COLUMNS: columns.Columns = {
    "pair, or chain": lambda row: str(row.case.get("pair") or row.case["chain"]),
    "method": lambda row: str(row.case.get("method") or row.case["way"]),
    "n": lambda row: number(row.case.get("n") or row.numbers.get("times_per_example")),
    "time": columns.time,
    "quartiles": columns.quartiles,
    "per dimension": lambda row: duration(row.numbers.get("seconds_per_dimension")),
    "nats": columns.figure("nats"),
    "error, nats": columns.figure("rms_error"),
    "bits/dim": columns.figure("bits_per_dim"),
    "off, s.e.": columns.figure("off_errors"),
    "deviation": columns.figure("deviation"),
    "variance x s": columns.figure("variance_seconds"),
    "compile": columns.compiling,
}
"""Headers of the table, and what stands under them. n: draws, nodes, or times of each example."""


def notes(rows: list[Row]) -> list[str]:
    """What the numbers say."""
    sentences = [_note_of_pair(name, find(rows, pair=name)) for name in kl_pairs.PAIRS]
    for chain in dict.fromkeys(row.case["chain"] for row in rows if "chain" in row.case):
        sentences += _notes_of_chain(str(chain), find(rows, chain=chain))
    return sentences


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
    whole = find(rows, way="all")[0].numbers["variance_seconds"]
    gains = {row.case["way"]: whole / row.numbers["variance_seconds"] for row in rows}
    ranked = sorted(gains.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{way} {number(1.0 / gain)}" for way, gain in ranked)
    sentences = [f"{chain}: seconds to the same precision, over those of all T times: {listed}."]
    worst = max(rows, key=lambda row: row.numbers["off_errors"])
    sentences.append(
        f"{chain}: no way has a visible bias: the farthest from all T times is"
        f" {worst.case['way']}, by {worst.numbers['off_errors']:.1f} standard errors."
        if worst.numbers["off_errors"] < 5.0
        else f"{chain}: BIASED: {worst.case['way']} is {worst.numbers['off_errors']:.1f} standard"
        " errors from all T times."
    )
    return sentences
