"""`ddpm-jax evaluate --samples SAMPLES --reference REFERENCE`."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh
from rich.console import Console

from ddpm_jax.cli.arguments import (
    DEFAULTS,
    ParamsName,
    check_at_least,
    check_seed,
    parse_options,
)
from ddpm_jax.cli.feature_options import FeatureOptions, feature_networks
from ddpm_jax.cli.help import SHORT, options_help
from ddpm_jax.cli.process_group import complain_once, process_group
from ddpm_jax.cli.score_tables import reference_lines, score_lines, score_table
from ddpm_jax.config import Hosts
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import FeatureNetwork, SampleSet, open_samples
from ddpm_jax.evaluation import classifier as classifiers
from ddpm_jax.experiment import RunDirectory, alone, restore_run
from ddpm_jax.experiment.evaluate_samples import evaluate_samples
from ddpm_jax.experiment.references import open_references
from ddpm_jax.experiment.run import RestoredRun
from ddpm_jax.experiment.sample_files import sample_into_files
from ddpm_jax.experiment.scoring import Compute, DrawnSamples
from ddpm_jax.parallel import hosts, replicated
from ddpm_jax.parallel.shares import local_mesh
from ddpm_jax.terminal import say

__all__ = ["run"]

_USAGE = "evaluate --samples SAMPLES --reference REFERENCE"
_NUM = 10_000


@dataclasses.dataclass(frozen=True)
class Arguments(FeatureOptions):
    """Compares images of any program with a reference, in the features of the named networks."""

    samples: Path
    """A folder of images, an .npz with `arr_0` or `images`, an .npy, or a run directory."""
    num: int | None = None
    """Number of samples that are drawn from a run; by default 10,000."""
    seed: int = 0
    """Seed of the samples of a run, in [0, 2^32)."""
    params: ParamsName = "ema"
    """Which parameters of a run: the moving average, or the raw ones."""
    batch_size: int = 128
    """Images in one call of a network. Lower it if memory runs out."""
    out: Path | None = None
    """Folder for results.json and stored results; by default beside the samples, with the ending
    .evaluation. Several processes need one that all of them see."""
    hosts: Hosts = DEFAULTS.hosts
    """The processes that share the work out, usually one on each host; each runs this command."""


def run(arguments: Sequence[str], console: Console) -> None:
    """Computes and prints; continues an interrupted evaluation."""
    if set(SHORT) & set(arguments):
        print(options_help(_USAGE, Arguments))
        return
    options: Arguments = parse_options(Arguments, "ddpm-jax evaluate", arguments)
    check_at_least(options, 1, "batch_size")
    check_at_least(options, 2, "num")
    check_seed(options.seed)
    is_run = (options.samples / "config.json").is_file()
    if options.num is not None and not is_run:
        raise UserError(
            f"--num is {options.num}; it is for a run, and {str(options.samples)!r} is none: all"
            " its images are compared"
        )
    if not options.reference:
        raise UserError("--reference is missing; name a file of statistics, or a folder of images")
    with process_group(options, console) as console:
        _evaluate(options, is_run, console)


def _evaluate(options: Arguments, is_run: bool, console: Console) -> None:
    mesh = local_mesh()
    opened: SampleSet | RestoredRun
    if is_run:
        opened = _restored(options)
    else:
        with hosts.together():
            opened = open_samples(options.samples, report=complain_once)
        hosts.check_same(f"images in {str(options.samples)!r}", opened.fingerprint)
    with hosts.together():
        networks = _networks(options, opened, mesh)
        references = open_references(
            options.reference, options.reference_kind, networks, complain_once
        )
    hosts.check_same("feature networks", [network.identity for network in networks])
    folder = options.out or _beside(options.samples)
    hosts.check_shared(folder)
    compute = Compute(folder / "cache", mesh, options.batch_size, functools.partial(say, console))
    samples = _drawn(options, opened, compute) if isinstance(opened, RestoredRun) else opened
    results = evaluate_samples(samples, networks, references, folder, compute)
    console.print(
        score_table(
            {"value": results["metrics"]},
            title=f"{results['images']:,} samples in {results['samples']}",
            caption="halves: one half of the reference's images, against the other half",
        )
    )
    for line in (*reference_lines(results), *score_lines(results)):
        say(console, line)
    say(console, f"results   {folder}")


def _networks(
    options: Arguments, opened: SampleSet | RestoredRun, mesh: Mesh
) -> list[FeatureNetwork]:
    """Those that are named."""
    shape = opened.experiment.spec.shape if isinstance(opened, RestoredRun) else opened.shape
    networks = feature_networks(options, replicated(mesh))
    if options.classifier is not None:
        networks.append(classifiers.stored_network(options.classifier, shape))
    if not networks:
        raise UserError(
            "no feature network is named; name at least one, such as --inception WEIGHTS"
        )
    return networks


def _beside(samples: Path) -> Path:
    samples = samples.resolve()
    return samples.with_name(f"{samples.name}.evaluation")


def _restored(options: Arguments) -> RestoredRun:
    run = RunDirectory(options.samples)
    config = alone(run.read_config(report=complain_once))
    return restore_run(
        run,
        config,
        with_images=False,
        only=options.params,
        devices=jax.local_devices(),
        report=complain_once,
    )


def _drawn(options: Arguments, restored: RestoredRun, compute: Compute) -> DrawnSamples:
    """Samples of the run, in the files of its own evaluations."""
    experiment, run = restored.experiment, RunDirectory(options.samples)
    num = _NUM if options.num is None else options.num
    compute.report(f"drawing {num} images, {options.params}, seed {options.seed}")
    files = sample_into_files(
        run.evaluation_of(restored.step) / "cache" / "samples",
        experiment,
        restored.params[options.params],
        count=num,
        sampler=experiment.config.sampler,
        seed=options.seed,
        batch_size=options.batch_size,
        report=compute.report,
    )
    return DrawnSamples(files, experiment.spec.levels)
