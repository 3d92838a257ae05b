"""`ddpm-jax evaluate RUN`."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from ddpm_jax.cli.arguments import DEFAULTS, check_at_least, check_seed, parse_for_run
from ddpm_jax.cli.help import SHORT, options_help
from ddpm_jax.config import Data, Evaluation, Sampler
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import strip_times
from ddpm_jax.evaluation.pictures import plot_training
from ddpm_jax.experiment import Experiment, RunDirectory, alone, restore_run
from ddpm_jax.experiment.evaluate import EvaluationOptions, evaluate
from ddpm_jax.terminal import cell, complain, say

__all__ = ["run"]

_MOST_SAMPLES = 10_000
_SHOWN_TIMES = 9


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measures bits per dimension on held-out images, and metrics of samples; draws pictures."""

    run: tyro.conf.Positional[Path]
    """The run directory; the run may still be training."""
    params: Literal["both", "ema", "raw"] = "both"
    """Which parameters: the moving average, the raw ones, or both."""
    sigma_rel: float | None = None
    """Relative width of a post-hoc average to use in place of these parameters, for a run with
    averages PostHocEMA."""
    skip_missing_snapshots: bool = False
    """Make that average without the snapshots that are missing or damaged."""
    num: int | None = None
    """Number of samples for the metrics, 0 for no metrics; by default the number of training
    images, at most 10,000."""
    sampler: Sampler = DEFAULTS.sampler
    """The sampler; by default that of the run. --sampler ddim takes another one."""
    seed: int = 0
    """Seed of the samples, in [0, 2^32)."""
    evaluation: Evaluation = DEFAULTS.evaluation
    """The measurement on held-out images; by default that of the run. Its batch size is also used
    for samples and metrics; it changes results only by rounding."""
    classifier: Path | None = None
    """The classifier.npz of another evaluation on the same images; by default a classifier is
    trained."""
    inception: Path | None = None
    """Weights of Inception-v3, for FID, KID, precision, recall and Inception score: the public
    pt_inception-2015-12-05-6726825d.pth, or the .npz that `ddpm-jax data inception` made of it."""
    other_weights: bool = False
    """Accept another file of Inception-v3 weights. The results are then named after it."""
    data: Data = DEFAULTS.data
    """Place of the run's data set, if it has moved."""
    out: Path | None = None
    """Folder for pictures and results.json; by default evaluation/ in the run."""


def run(arguments: Sequence[str], console: Console) -> None:
    """Measures, draws and prints; continues an interrupted evaluation."""
    if set(SHORT) & set(arguments):
        print(options_help("evaluate RUN", Arguments))
        return
    options: Arguments
    options, config = parse_for_run(Arguments, "ddpm-jax evaluate", arguments)
    check_at_least(options, 0, "num")
    if options.num == 1:
        raise UserError("--num is 1; it has to be 0, or at least 2 for a spread")
    check_seed(options.seed)
    directory = RunDirectory(options.run)
    restored = restore_run(
        directory,
        alone(config),
        only=None if options.params == "both" else options.params,
        report=complain,
        sigma_rel=options.sigma_rel,
        skip_missing_snapshots=options.skip_missing_snapshots,
    )
    experiment = restored.experiment
    names = ("ema", "raw") if options.params == "both" else (options.params,)
    params = {name: restored.params[name] for name in names if name in restored.params}
    lines = directory.read_metrics()  # early: a damaged file is reported before hours of work
    folder = options.out or directory.evaluation / f"step_{restored.step:07d}"
    results = evaluate(
        experiment,
        params or restored.params,
        folder,
        _options(options, experiment),
        functools.partial(say, console),
    )
    if lines:
        plot_training(folder / "training.png", lines, title=experiment.images.name)
    for name, values in results["params"].items():
        summary = {"step": restored.step, **results["baselines"], **values["results"]}
        console.print(options.evaluation.table(summary, params=name))
    if all(values["per_time"] is not None for values in results["params"].values()):
        console.print(_per_time_table(results))
    if "no_metrics" in results:
        say(console, results["no_metrics"])
    else:
        console.print(_metrics_table(results))
    if "sampling" in results:
        for line in _neighbours(results):
            say(console, line)
    say(console, f"results and pictures   {folder}")


def _options(options: Arguments, experiment: Experiment) -> EvaluationOptions:
    inception = None
    if options.inception is not None:
        inception = functools.partial(
            _inception, options.inception, experiment, other_weights=options.other_weights
        )
    num = min(len(experiment.images.train), _MOST_SAMPLES) if options.num is None else options.num
    sampler, evaluation = experiment.config.sampler, experiment.config.evaluation
    return EvaluationOptions(num, sampler, options.seed, evaluation, options.classifier, inception)


def _inception(path: Path, experiment: Experiment, *, other_weights: bool) -> Any:
    from ddpm_jax.evaluation.inception_weights import inception_network
    from ddpm_jax.parallel import replicated

    return inception_network(
        path, other_weights=other_weights, sharding=replicated(experiment.mesh)
    )


def _per_time_table(results: dict[str, Any]) -> Table:
    """A selection of the terms; all of them are in results.json."""
    columns = [values["per_time"] for values in results["params"].values()]
    table = Table(title="terms of the ELBO, bits/dim")
    table.add_column("t", justify="right")
    for name in results["params"]:
        table.add_column(name, justify="right")
    times = [t for t, images in enumerate(columns[0]["images"]) if images]
    for place in strip_times(len(times), _SHOWN_TIMES):
        t = times[place]
        table.add_row(str(t), *(_term(terms, t) for terms in columns))
    return table


def _term(terms: dict[str, Any], t: int) -> str:
    mean, error = terms["mean"][t], terms["standard_error"][t]
    return f"{mean:.3g}" if error is None else f"{mean:.3g} +- {error:.1g}"


def _metrics_table(results: dict[str, Any]) -> Table:
    """A row for each metric, a column for each set of parameters, and columns to compare with."""
    how = results["sampling"]
    table = Table(
        title=cell(
            f"{results['dataset']}, {how['images']} samples by {how['class'].rpartition(':')[2]}"
            f" in {how['steps'] or 'all'} steps"
        ),
        caption=f"held out: {results['held_out_images']} held-out images in place of samples;"
        " halves: one half of the training images in place of samples, compared with the other",
    )
    table.add_column("metric")
    for heading in (*results["params"], "held out", "halves"):
        table.add_column(heading, justify="right", no_wrap=True)
    columns = [values["metrics"] for values in results["params"].values()]
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
    for name, values in results["params"].items():
        near = values["nearest_training_image"]
        lines.append(
            f"nearest training image, root mean square over pixels, median: {near['samples']:.3g}"
            f" grey levels from samples ({name}), {near['held_out']:.3g} from held-out images"
        )
    return lines
