"""`ddpm-jax evaluate RUN`."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from ddpm_jax.cli.arguments import check_at_least, check_seed, parse_options, sampling_from
from ddpm_jax.cli.restored import DataPlace, restore_run
from ddpm_jax.cli.results import likelihood_table
from ddpm_jax.config import SamplerName
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import strip_times
from ddpm_jax.evaluation.plots import plot_training
from ddpm_jax.experiment import Experiment, RunDirectory
from ddpm_jax.experiment.assess import Asked, assess
from ddpm_jax.samplers import Spacing
from ddpm_jax.terminal import cell, say

__all__ = ["run"]

_MOST_SAMPLES = 10_000
_SHOWN_TIMES = 9


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Bits per dimension on held-out images, and metrics and pictures of samples."""

    run: tyro.conf.Positional[Path]
    """The run directory; it may still be trained in."""
    params: Literal["both", "ema", "raw"] = "both"
    """The moving average of the parameters, the raw ones, or one after the other."""
    sigma_rel: float | None = None
    """In their place an average of this relative width, of a run with train.post_hoc_ema."""
    skip_missing_snapshots: bool = False
    """Makes that average of the snapshots that are sound, where others are missing or damaged."""
    num: int | None = None
    """Samples for the metrics, 0 for none; by default as many as there are training images, at most
    10,000."""
    sampler: SamplerName | None = None
    """By default that of the run's config, and so are steps, spacing and guidance."""
    steps: int | None = None
    spacing: Spacing | None = None
    guidance: float | None = None
    seed: int = 0
    """Of the samples."""
    likelihood_times: int | None = None
    """ELBO terms of each held-out image; by default as the run's config says."""
    batch_size: int | None = None
    """Images at once, over all devices, for the likelihood, samples and metrics; by default
    evaluation.batch_size of the run. Results do not depend on it but for rounding."""
    classifier: Path | None = None
    """The classifier.npz of another evaluation on these images, in place of one of its own."""
    inception: Path | None = None
    """Weights of Inception-v3, for FID, KID, precision, recall and Inception score: the public
    pt_inception-2015-12-05-6726825d.pth, or what `ddpm-jax data inception` made of it."""
    other_weights: bool = False
    """Take another file of such weights, too; its numbers are then named after it."""
    data: DataPlace = dataclasses.field(default_factory=DataPlace)
    out: Path | None = None
    """A folder for pictures and results.json; by default evaluation/ in the run."""


def run(arguments: Sequence[str], console: Console) -> None:
    """Measures, draws and prints; goes on with an evaluation that was interrupted."""
    asked: Arguments = parse_options(Arguments, "ddpm-jax evaluate", arguments)
    check_at_least(asked, 0, "num")
    if asked.num == 1:
        raise UserError("--num is 1; a spread takes at least 2 samples")
    check_at_least(asked, 1, "batch_size")
    check_seed(asked.seed)
    restored = restore_run(
        asked.run,
        data=asked.data,
        sigma_rel=asked.sigma_rel,
        likelihood_times=asked.likelihood_times,
        skip_missing_snapshots=asked.skip_missing_snapshots,
    )
    experiment = _with_batch_size(restored.experiment, asked.batch_size)
    names = ("ema", "raw") if asked.params == "both" else (asked.params,)
    params = {name: restored.params[name] for name in names if name in restored.params}
    directory = RunDirectory(asked.run)
    lines = directory.read_metrics()  # a damaged one is known before hours of work
    folder = asked.out or directory.evaluation / f"step_{restored.step:07d}"
    results = assess(
        experiment,
        params or restored.params,
        folder,
        _asked(asked, experiment),
        functools.partial(say, console),
    )
    if lines:
        plot_training(folder / "training.png", lines, title=experiment.images.name)
    for name, found in results["params"].items():
        summary = {"step": restored.step, **results["baselines"], **found["likelihood"]}
        console.print(likelihood_table(summary, params=name))
    console.print(_per_time_table(results))
    if "no_metrics" in results:
        say(console, results["no_metrics"])
    else:
        console.print(_metrics_table(results))
    if "sampling" in results:
        for line in _neighbours(results):
            say(console, line)
    say(console, f"results and pictures   {folder}")


def _with_batch_size(experiment: Experiment, batch_size: int | None) -> Experiment:
    """As if the run's config had this evaluation.batch_size."""
    if batch_size is None:
        return experiment
    evaluation = dataclasses.replace(experiment.config.evaluation, batch_size=batch_size)
    config = dataclasses.replace(experiment.config, evaluation=evaluation)
    return dataclasses.replace(experiment, config=config)


def _asked(asked: Arguments, experiment: Experiment) -> Asked:
    how = sampling_from(asked, experiment)
    inception = None
    if asked.inception is not None:
        inception = functools.partial(
            _inception, asked.inception, experiment, other_weights=asked.other_weights
        )
    num = min(len(experiment.images.train), _MOST_SAMPLES) if asked.num is None else asked.num
    batch_size = experiment.config.evaluation.batch_size
    return Asked(num, how, asked.seed, batch_size, asked.classifier, inception)


def _inception(path: Path, experiment: Experiment, *, other_weights: bool) -> Any:
    from ddpm_jax.evaluation.inception_weights import inception_network
    from ddpm_jax.parallel import replicated

    return inception_network(
        path, other_weights=other_weights, sharding=replicated(experiment.mesh)
    )


def _per_time_table(results: dict[str, Any]) -> Table:
    """Some of the terms; all of them are in results.json."""
    columns = [found["per_time"] for found in results["params"].values()]
    table = Table(title="terms of the ELBO, bits/dim")
    table.add_column("t", justify="right")
    for name in results["params"]:
        table.add_column(name, justify="right")
    asked = [t for t, images in enumerate(columns[0]["images"]) if images]
    for place in strip_times(len(asked), _SHOWN_TIMES):
        t = asked[place]
        table.add_row(str(t), *(_term(terms, t) for terms in columns))
    return table


def _term(terms: dict[str, Any], t: int) -> str:
    mean, error = terms["mean"][t], terms["standard_error"][t]
    return f"{mean:.3g}" if error is None else f"{mean:.3g} +- {error:.1g}"


def _metrics_table(results: dict[str, Any]) -> Table:
    """One row a metric, one column a set of parameters, and what has to stand beside them."""
    how = results["sampling"]
    table = Table(
        title=cell(
            f"{results['dataset']}, {how['images']} samples by {how['sampler']}"
            f" in {how['steps'] or 'all'} steps"
        ),
        caption=f"held out: {results['held_out_images']} held-out images in place of samples;"
        " halves: one half of the training images in place of samples, against the other",
    )
    table.add_column("metric")
    for heading in (*results["params"], "held out", "halves"):
        table.add_column(heading, justify="right", no_wrap=True)
    columns = [found["metrics"] for found in results["params"].values()]
    for row in zip(*columns, strict=True):
        values = [_number(score["value"], score["spread"]) for score in row]
        floors = [_number(row[0][floor]) for floor in ("held_out", "halves")]
        table.add_row(cell(row[0]["name"]), *values, *floors)
    return table


def _number(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if spread is None else f"{value:.4g} +- {spread:.2g}"


def _neighbours(results: dict[str, Any]) -> list[str]:
    lines = []
    for name, found in results["params"].items():
        near = found["nearest_training_image"]
        lines.append(
            f"nearest training image, root mean square over pixels, median: {near['samples']:.3g}"
            f" grey levels from samples ({name}), {near['held_out']:.3g} from held-out images"
        )
    return lines
