"""`ddpm-jax evaluate RUN`."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from ddpm_jax.cli.arguments import check_at_least, check_sampling, check_seed
from ddpm_jax.cli.restored import restore_run
from ddpm_jax.cli.results import likelihood_table
from ddpm_jax.config import SamplerName
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import strip_times
from ddpm_jax.evaluation.plots import plot_training
from ddpm_jax.experiment import Experiment, RunDirectory, sampling_of, say
from ddpm_jax.experiment.assess import Asked, assess
from ddpm_jax.samplers import Spacing

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
    """Images at once, over all devices; by default evaluation.batch_size of the run."""
    classifier: Path | None = None
    """The classifier.npz of another evaluation on these images, in place of one of its own."""
    inception: Path | None = None
    """Weights of Inception-v3, for FID, KID, precision, recall and Inception score: the public
    pt_inception-2015-12-05-6726825d.pth, or what `ddpm-jax data inception` made of it."""
    other_weights: bool = False
    """Take another file of such weights, too; its numbers are then named after it."""
    data_dir: str | None = None
    """Where the dataset is, if not where the run found it."""
    out: Path | None = None
    """A folder for pictures and results.json; by default evaluation/ in the run."""


def run(arguments: Sequence[str], console: Console) -> None:
    """Measures, draws and prints; goes on with an evaluation that was interrupted."""
    asked = tyro.cli(Arguments, prog="ddpm-jax evaluate", args=arguments)
    check_at_least(asked, 0, "num")
    if asked.num == 1:
        raise UserError("--num is 1; a spread takes at least 2 samples")
    check_at_least(asked, 1, "batch_size")
    check_seed(asked.seed)
    restored = restore_run(asked.run, asked.data_dir, asked.sigma_rel, asked.likelihood_times)
    experiment = restored.experiment
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
    if "networks" in results:
        console.print(_metrics_table(results))
        for line in _neighbours(results):
            say(console, line)
    say(console, f"results and pictures   {folder}")


def _asked(asked: Arguments, experiment: Experiment) -> Asked:
    told = {name: getattr(asked, name) for name in ("sampler", "steps", "spacing", "guidance")}
    how = sampling_of(experiment.config.evaluation)
    how = how._replace(**{name: value for name, value in told.items() if value is not None})
    check_sampling(how, experiment)
    inception = None
    if asked.inception is not None:
        inception = functools.partial(
            _inception, asked.inception, experiment, other_weights=asked.other_weights
        )
    num = min(len(experiment.images.train), _MOST_SAMPLES) if asked.num is None else asked.num
    batch_size = asked.batch_size or experiment.config.evaluation.batch_size
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
        cells = [f"{terms['mean'][t]:.3g} +- {terms['standard_error'][t]:.1g}" for terms in columns]
        table.add_row(str(t), *cells)
    return table


def _metrics_table(results: dict[str, Any]) -> Table:
    """One row a metric, one column a set of parameters, and what has to stand beside them."""
    how = results["sampling"]
    table = Table(
        title=f"{results['dataset']}, {how['images']} samples by {how['sampler']}"
        f" in {how['steps'] or 'all'} steps",
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
        table.add_row(row[0]["name"], *values, *floors)
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
