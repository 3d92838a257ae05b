r"""Trains DDPM's relatives on the same images, and compares them on one footing.

Each relative is a forward process. All have the same network, which predicts v from x_t, or where a
schedule does not preserve variance, v / r from x_t / r, with r^2 = a^2 + b^2. All have the same
training steps, batches, seed and loss, the ELBO. Two rows name the loss of a paper: they have its
loss, its distribution of times and its prediction instead (EDM's F, the velocity). The schedules of
DDPM have T = 1000, the others the T of the config. Measured are

    bits/dim     the bound on the likelihood of all held-out images, and its difference from the
                 first relative image by image, with standard errors over the choice of images
    distance     Frechet distance of samples from the training images, in the features of a small
                 classifier that is trained once; by several samplers and numbers of steps
    steps        the smallest of these numbers with which a sampler comes within the 95 % interval
                 of the ancestral sampler with the most steps
    seconds      of training, compilation included, and of drawing a batch of samples, 500 at most,
                 with the most steps

Runs are in the folder `--out`. A suite that was interrupted goes on where it was.

What it does not measure: other seeds, longer training, and hyperparameters that suit one relative
better than those of the config.
"""

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from benchmarks import columns
from benchmarks.columns import duration
from benchmarks.relatives_cases import cases_of
from benchmarks.results import Row, find
from benchmarks.settings import Common, Say, check_values
from ddpm_jax import config as configs
from ddpm_jax import train
from ddpm_jax.comparison.image_bits import (
    BitsPerImage,
    measure_bits_per_image,
    pair,
    read_bits_per_image,
)
from ddpm_jax.data import ImageSet, to_bytes
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import (
    Estimate,
    FeatureNetwork,
    Gaussian,
    frechet_interval,
    gaussian_of,
    moments_of,
)
from ddpm_jax.evaluation.classifier import (
    FEATURES,
    accuracy,
    classifier_network,
    train_classifier,
)
from ddpm_jax.experiment.run import Run, load_run
from ddpm_jax.experiment.sampling import make_drawer
from ddpm_jax.experiment.scoring import samples_of
from ddpm_jax.training import InterruptedTraining

__all__ = ["COLUMNS", "PACKAGES", "Settings", "notes", "run", "tables"]

PACKAGES: tuple[str, ...] = ()
SAMPLERS = ("ancestral", "ddim", "dpm-solver-pp")
_BATCH = 500


@dataclasses.dataclass(frozen=True)
class Settings(Common):
    """What `python -m benchmarks relatives` takes."""

    config: Path = Path("configs/digits.py")
    """Images, network and training. Its schedule is "linear in log SNR"."""
    names: tuple[str, ...] | None = None
    """Relatives to compare; all by default. The first is the one that others are compared with."""
    train_steps: int | None = None
    """Training steps; those of the config by default."""
    times: int | None = None
    """Terms of the bound that are measured of each image; by default all."""
    samples: int = 2000
    """Samples of each distance."""
    steps: tuple[int, ...] = (8, 16, 32, 100)
    """Numbers of sampling steps, rising."""


class Space(NamedTuple):
    """The features in which samples are compared."""

    network: FeatureNetwork
    training: Gaussian
    levels: int


def run(settings: Settings, say: Say) -> Iterator[Row]:
    """Yields a row for each relative, and one for each of its samplers.

    Raises:
        UserError: settings that cannot work.
    """
    check_values(settings, distinct=("names", "steps"))
    if list(settings.steps) != sorted(settings.steps):
        raise UserError(f"--steps is {' '.join(map(str, settings.steps))}; it has to rise")
    if settings.samples <= FEATURES:
        raise UserError(
            f"--samples is {settings.samples}; with {FEATURES} features, a distance has an interval"
            f" from {FEATURES + 1} samples on"
        )
    base = configs.load(settings.config)
    if not isinstance(base.evaluation, configs.BitsPerDim):
        raise UserError(
            f"evaluation is {type(base.evaluation).__name__}; this suite compares bits/dim, and"
            " needs BitsPerDim"
        )
    evaluation = dataclasses.replace(base.evaluation, likelihood_times=settings.times)
    length = settings.train_steps or base.train.steps
    base = dataclasses.replace(
        base, evaluation=evaluation, train=dataclasses.replace(base.train, steps=length)
    )
    cases = cases_of(base)
    names = tuple(cases) if settings.names is None else settings.names
    unknown = [name for name in names if name not in cases]
    if unknown:
        raise UserError(f"--names has {unknown[0]!r}; there are {', '.join(cases)}")
    for name in names:
        configs.validate(cases[name])
    shortest = min(cases[name].schedule.num_steps for name in names)
    if settings.steps[-1] > shortest:
        raise UserError(
            f"--steps has {settings.steps[-1]}; the shortest of these chains has {shortest} steps"
        )
    images = configs.load_images(base.data, base.preparation)
    space = _space(images, settings.seed, say)
    yield _held_out_row(space, images)
    first: BitsPerImage | None = None
    for name in names:
        workdir = settings.out / "relatives" / name.replace(" ", "_").replace(",", "")
        config = dataclasses.replace(cases[name], workdir=str(workdir), seed=settings.seed)
        say(f"{name}: training for {length} steps")
        start, fresh = time.perf_counter(), not workdir.exists()
        try:
            train(config, console=Console(quiet=True))
        except InterruptedTraining as stop:
            raise KeyboardInterrupt from stop
        seconds = time.perf_counter() - start
        say(f"{name}: bits/dim of all held-out images")
        bits = read_bits_per_image(measure_bits_per_image(workdir, "ema", say))
        first = bits if first is None else first
        trained = load_run(workdir, report=say)
        yield Row(
            case={"relative": name},
            seconds=[seconds] if fresh else [],
            numbers=_bits_numbers(bits, first) | _parts(trained),
        )
        for sampler in SAMPLERS:
            say(f"{name}: {settings.samples} samples by {sampler}")
            yield _sampler_row(name, sampler, trained, space, settings)


def _space(images: ImageSet, seed: int, say: Say) -> Space:
    say("training a classifier, in whose features samples are compared")
    params = train_classifier(images, jax.random.key(seed))
    network = classifier_network(images, params)
    say(f"the classifier is right for {accuracy(network, images):.1%} of the held-out images")
    rows = _features(network, samples_of(images, "train").batches())
    return Space(network, gaussian_of(moments_of(rows)), images.levels)


def _features(network: FeatureNetwork, batches: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(network.apply(jnp.asarray(b)).pooled) for b in batches])


def _distance(space: Space, batches: Iterable[np.ndarray]) -> Estimate:
    rows = _features(space.network, batches)
    return frechet_interval(rows, gaussian_of(moments_of(rows)), space.training, len(rows))


def _held_out_row(space: Space, images: ImageSet) -> Row:
    """What a perfect model would reach with as many samples as there are held-out images."""
    distance = _distance(space, samples_of(images, "held_out").batches())
    return Row(
        case={"relative": "held-out images"},
        numbers={"distance": _plain(distance), "images": len(images.held_out)},
    )


def _bits_numbers(bits: BitsPerImage, first: BitsPerImage) -> dict[str, Any]:
    numbers: dict[str, Any] = {"bits": bits.mean, "standard_error": bits.standard_error}
    if bits is not first:
        paired = pair(bits, first)
        if isinstance(paired, str):
            raise UserError(f"the runs cannot be compared: {paired}")
        numbers |= {"difference": paired.difference.value, "of_pairs": paired.standard_error}
    return numbers


def _parts(trained: Run) -> dict[str, float]:
    """The parts of the bound, as the end of training has measured them."""
    results = trained.results or {}
    return {name: results[name] for name in ("prior", "kl", "decoder")}


def _sampler_row(name: str, sampler: str, trained: Run, space: Space, settings: Settings) -> Row:
    kind: Any = configs.find_member(configs.Sampler, sampler, "sampler")
    distances, key = {}, jax.random.key(settings.seed)
    seconds: list[float] = []
    for steps in settings.steps:
        member, drawn, seconds = kind(steps=steps), [], []
        draw = make_drawer(trained.experiment, num=min(settings.samples, _BATCH), sampler=member)
        for first in range(0, settings.samples, _BATCH):
            start = time.perf_counter()
            drawn.append(to_bytes(draw(trained.params, key, first).images, space.levels))
            seconds.append(time.perf_counter() - start)
        images = np.concatenate(drawn)[: settings.samples]
        distances[steps] = _plain(_distance(space, [images]))
    compiling, *runs = seconds  # of the most steps
    return Row(
        case={"relative": name, "sampler": sampler},
        seconds=runs,
        compile_seconds=compiling - (float(np.median(runs)) if runs else 0.0),
        numbers={"distances": distances, "samples": settings.samples},
    )


def _plain(estimate: Estimate) -> list[float | None]:
    return [estimate.value, estimate.low, estimate.high]


def tables(rows: Sequence[Row]) -> list[tuple[list[Row], columns.Columns]]:
    """One of likelihoods and one of samples."""
    likelihoods = [row for row in rows if "bits" in row.numbers]
    samplers = [row for row in rows if "distances" in row.numbers]
    ladder = list(samplers[0].numbers["distances"]) if samplers else []
    return [
        (likelihoods, COLUMNS),
        (
            samplers,
            {
                "relative": columns.case("relative"),
                "sampler": columns.case("sampler"),
                **{f"{steps} steps": _distance_cell(steps) for steps in ladder},
                "to reach": lambda row: _reached_cell(row, rows),
                "a batch": columns.time,
            },
        ),
    ]


def notes(rows: Sequence[Row]) -> list[str]:
    """What a difference has to exceed, and the distance of real images."""
    (floor,) = find(rows, relative="held-out images")
    value, low, high = floor.numbers["distance"]
    first, *_ = find(rows, sampler=SAMPLERS[0])
    return [
        "+- is one standard error over the choice of held-out images; two runs of one relative"
        " with other seeds differ, too, by an amount that is not measured here.",
        f"The {floor.numbers['images']} held-out images themselves have a distance of {value:.2f}"
        f" ({low:.2f} to {high:.2f}); those above are of {first.numbers['samples']} samples. With"
        " fewer images a distance is larger on average.",
        "To reach: the fewest steps within the 95 % interval of ancestral sampling with the most.",
    ]


def _steps_to_reach(row: Row, rows: Sequence[Row]) -> int | None:
    """The fewest steps with which a sampler is as close as the longest ancestral chain."""
    (ancestral,) = find(rows, relative=row.case["relative"], sampler="ancestral")
    *_, (_, _, limit) = ancestral.numbers["distances"].values()
    distances = row.numbers["distances"].items()
    return next((int(steps) for steps, (value, *_) in distances if value <= limit), None)


def _distance_cell(steps: int) -> Any:
    return lambda row: f"{row.numbers['distances'][steps][0]:.2f}"


def _reached_cell(row: Row, rows: Sequence[Row]) -> str:
    steps = _steps_to_reach(row, rows)
    return "more" if steps is None else str(steps)


def _difference(row: Row) -> str:
    numbers = row.numbers
    if "difference" not in numbers:
        return ""
    return f"{numbers['difference']:+.4f} +- {numbers['of_pairs']:.4f}"


COLUMNS: columns.Columns = {
    "relative": columns.case("relative"),
    "bits/dim": lambda row: f"{row.numbers['bits']:.3f} +- {row.numbers['standard_error']:.3f}",
    "prior": lambda row: f"{row.numbers['prior']:.4f}",
    "KL": lambda row: f"{row.numbers['kl']:.3f}",
    "decoder": lambda row: f"{row.numbers['decoder']:.3f}",
    "difference": _difference,
    "training": lambda row: duration(row.seconds[0]) if row.seconds else "",
}
