"""`ddpm-jax evaluate RUN`."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from rich.console import Console
from rich.table import Table

from ddpm_jax.cli import evaluate_samples
from ddpm_jax.cli.arguments import DEFAULTS, check_at_least, check_seed, parse_for_run
from ddpm_jax.cli.feature_options import FeatureOptions, feature_networks
from ddpm_jax.cli.help import SHORT, options_help
from ddpm_jax.cli.process_group import complain_once, process_group
from ddpm_jax.cli.score_tables import reference_lines, score_lines, score_table
from ddpm_jax.config import Config, Data, Evaluation, Hosts, Sampler
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import strip_times
from ddpm_jax.evaluation.pictures import plot_training
from ddpm_jax.experiment import Experiment, RunDirectory, alone, restore_run
from ddpm_jax.experiment.evaluate import EvaluationOptions, evaluate
from ddpm_jax.parallel import hosts, replicated
from ddpm_jax.terminal import say

__all__ = ["run"]

_MOST_SAMPLES = 10_000
_SHOWN_TIMES = 9


@dataclasses.dataclass(frozen=True)
class Arguments(FeatureOptions):
    """Measures bits per dimension on held-out images, and metrics of samples; draws pictures.

    With --samples in place of a run it compares any images: ddpm-jax evaluate --samples --help.
    """

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
    seeds: int = 1
    """Number of seeds, from --seed on. Each draws --num samples; of several, the mean and its
    standard error are printed."""
    evaluation: Evaluation = DEFAULTS.evaluation
    """The measurement on held-out images; by default that of the run. Its batch size is also used
    for samples and metrics; it changes results only by rounding."""
    data: Data = DEFAULTS.data
    """Place of the run's data set, if it has moved."""
    out: Path | None = None
    """Folder for pictures and results.json; by default evaluation/ in the run. Several processes
    need one that all of them see."""
    hosts: Hosts = DEFAULTS.hosts
    """The processes that share the work out, usually one on each host; each runs this command. The
    results are those of one process, except for rounding."""


def run(arguments: Sequence[str], console: Console) -> None:
    """Measures, draws and prints; continues an interrupted evaluation."""
    if any(argument.partition("=")[0] == "--samples" for argument in arguments):
        evaluate_samples.run(arguments, console)
        return
    if set(SHORT) & set(arguments):
        print(options_help("evaluate RUN", Arguments))
        return
    options: Arguments
    options, config = parse_for_run(Arguments, "ddpm-jax evaluate", arguments)
    check_at_least(options, 0, "num")
    if options.num == 1:
        raise UserError("--num is 1; it has to be 0, or at least 2 for a spread")
    check_at_least(options, 1, "seeds")
    check_seed(options.seed)
    if options.seed + options.seeds > 2**32:
        raise UserError(f"--seeds is {options.seeds}; the last seed has to be below 2^32")
    with process_group(options, console) as console:
        _evaluate(options, config, console)


def _evaluate(options: Arguments, config: Config, console: Console) -> None:
    directory = RunDirectory(options.run)
    restored = restore_run(
        directory,
        alone(config),
        only=None if options.params == "both" else options.params,
        devices=jax.local_devices(),
        report=complain_once,
        sigma_rel=options.sigma_rel,
        skip_missing_snapshots=options.skip_missing_snapshots,
    )
    experiment = restored.experiment
    names = ("ema", "raw") if options.params == "both" else (options.params,)
    params = {name: restored.params[name] for name in names if name in restored.params}
    lines = directory.read_metrics()  # early: a damaged file is reported before hours of work
    folder = options.out or directory.evaluation_of(restored.step)
    hosts.check_same(f"images in {experiment.images.name!r}", experiment.images.fingerprint)
    hosts.check_shared(folder)
    results = evaluate(
        experiment,
        params or restored.params,
        folder,
        _options(options, experiment),
        functools.partial(say, console),
        step=restored.step,
    )
    if lines and hosts.is_first():
        plot_training(folder / "training.png", lines, title=experiment.images.name)
    for name, values in results["params"].items():
        about = {"step": restored.step, "held_out_images": results["held_out_images"]}
        summary = {**about, **results["baselines"], **values["results"]}
        console.print(options.evaluation.table(summary, params=name))
    if all(values["per_time"] is not None for values in results["params"].values()):
        console.print(_per_time_table(results))
    if "no_metrics" in results:
        say(console, results["no_metrics"])
    else:
        console.print(_metrics_table(results))
    if "sampling" in results:
        for line in reference_lines(results):
            say(console, line)
        for name, values in results["params"].items():
            for line in score_lines(values):
                say(console, f"{name}: {line}")
    say(console, f"results and pictures   {folder}")


def _options(options: Arguments, experiment: Experiment) -> EvaluationOptions:
    num = min(len(experiment.images.train), _MOST_SAMPLES) if options.num is None else options.num
    return EvaluationOptions(
        num=num,
        sampler=experiment.config.sampler,
        seed=options.seed,
        evaluation=experiment.config.evaluation,
        classifier=options.classifier,
        networks=functools.partial(feature_networks, options, replicated(experiment.mesh)),
        references=options.reference,
        reference_kind=options.reference_kind,
        seeds=options.seeds,
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
    how = results["sampling"]
    seeds = f", {how['seeds']} seeds" if how["seeds"] > 1 else ""
    return score_table(
        {name: values["metrics"] for name, values in results["params"].items()},
        title=f"{results['dataset']}, {how['images']} samples by"
        f" {how['class'].rpartition(':')[2]} in {how['steps'] or 'all'} steps{seeds}",
        caption=f"held out: {results['held_out_images']} held-out images in place of samples;"
        " halves: one half of the images that samples are compared with, against the other half",
    )
