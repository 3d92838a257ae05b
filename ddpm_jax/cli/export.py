"""`ddpm-jax export RUN --sampler ddim --steps 50 --out sampler.bin`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.console import Console

from ddpm_jax.cli.arguments import DEFAULTS, ParamsName, check_label, parse_for_run
from ddpm_jax.config import Data, Sampler, member_name
from ddpm_jax.errors import UserError
from ddpm_jax.experiment import (
    PLATFORMS,
    Placement,
    RunDirectory,
    alone,
    check_platforms,
    export_sampler,
    restore_run,
    sampler_files,
)
from ddpm_jax.terminal import complain, say

__all__ = ["run"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Writes the whole sampler of a run as one program, which runs on JAX alone."""

    run: tyro.conf.Positional[Path]
    """The run directory."""
    sampler: Sampler = DEFAULTS.sampler
    """--sampler ddim takes another one; by default it is that of the run."""
    steps: int | None = None
    """Short for --sampler.steps."""
    label: str | None = None
    """The class of all images, by its name or its number, of a run with classes; by default the
    program takes the classes as an argument."""
    out: Path = Path("sampler.bin")
    """The file, a .bin. README.md, with an example that runs, is written beside it."""
    parameters: Placement = "inside"
    """Whether the program holds the parameters, or takes them as an argument: they are in a file
    .safetensors beside it then."""
    platforms: tuple[str, ...] = PLATFORMS
    """Where it will run: some of cpu, cuda, rocm, tpu. None of them has to be here."""
    params: ParamsName = "ema"
    """The moving average of the parameters, or the raw ones."""
    sigma_rel: float | None = None
    """In their place an average of this relative width, of a run with averages PostHocEMA."""
    skip_missing_snapshots: bool = False
    """Makes that average of the snapshots that are sound, where others are missing or damaged."""
    data: Data = DEFAULTS.data
    """Where the run's data set is now, for a run that has not recorded what it needs of it."""


def run(arguments: Sequence[str], console: Console) -> None:
    """Writes two files, or three."""
    options: Arguments
    options, config = parse_for_run(Arguments, "ddpm-jax export", arguments)
    platforms = [name for text in options.platforms for name in text.split(",") if name]
    check_platforms(platforms, "--platforms")
    sampler_files(options.out, options.parameters, "--out")
    sampler = _sampler(options, arguments)
    restored = restore_run(
        RunDirectory(options.run),
        alone(dataclasses.replace(config, sampler=sampler)),
        with_images=False,
        only=options.params,
        report=complain,
        sigma_rel=options.sigma_rel,
        skip_missing_snapshots=options.skip_missing_snapshots,
    )
    experiment = restored.experiment
    name = "sigma_rel" if options.sigma_rel is not None else options.params
    label = check_label(options.label, experiment)
    files = export_sampler(
        experiment,
        restored.params[name],
        options.out,
        sampler=sampler,
        label=label,
        parameters=options.parameters,
        platforms=platforms,
        origin=f"run {options.run.resolve().name}, step {restored.step}, parameters"
        f" {name if options.sigma_rel is None else f'{name} {options.sigma_rel}'}",
    )
    steps = len(sampler.times(experiment.process))
    size = files.program.stat().st_size
    say(
        console,
        f"{files.program}: {member_name(type(sampler))}, {steps} steps, of step {restored.step},"
        f" for {', '.join(platforms)}; {size:,} bytes; {files.readme} says how to run it",
    )


def _sampler(options: Arguments, arguments: Sequence[str]) -> Sampler:
    """With `--steps`."""
    if options.steps is None:
        return options.sampler
    if any(argument.partition("=")[0] == "--sampler.steps" for argument in arguments):
        raise UserError("--steps is short for --sampler.steps; give one of them")
    return dataclasses.replace(options.sampler, steps=options.steps)
