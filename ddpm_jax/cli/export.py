"""`ddpm-jax export RUN --sampler ddim --steps 50 --out sampler.bin`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.console import Console

from ddpm_jax.cli.arguments import DEFAULTS, ParamsName, parse_for_run
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
from ddpm_jax.experiment.sampling import class_of
from ddpm_jax.terminal import complain, say

__all__ = ["run"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Writes the sampler of a run as one program that needs only JAX."""

    run: tyro.conf.Positional[Path]
    """The run directory."""
    sampler: Sampler = DEFAULTS.sampler
    """The sampler; by default that of the run. --sampler ddim takes another one."""
    steps: int | None = None
    """Short for --sampler.steps."""
    label: str | None = None
    """Class of all images, by name or number. By default the classes are an argument of the
    program, for a run with classes."""
    out: Path = Path("sampler.bin")
    """File to write, a .bin. README.md, with an example, is written beside it."""
    parameters: Placement = "inside"
    """Place of the parameters: inside the program, or in a .safetensors file beside it."""
    platforms: tuple[str, ...] = PLATFORMS
    """Platforms that can run the program: some of cpu, cuda, rocm, tpu."""
    params: ParamsName = "ema"
    """Which parameters: the moving average, or the raw ones."""
    sigma_rel: float | None = None
    """Relative width of a post-hoc average to use in place of these parameters, for a run with
    averages PostHocEMA."""
    skip_missing_snapshots: bool = False
    """Make that average without the snapshots that are missing or damaged."""
    data: Data = DEFAULTS.data
    """Place of the run's data set, for a run without a record of it."""


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
    label = class_of(experiment, options.label, "--label")
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
        f" for {', '.join(platforms)}; {size:,} bytes; {files.readme} explains how to run it",
    )


def _sampler(options: Arguments, arguments: Sequence[str]) -> Sampler:
    """The sampler with `--steps`."""
    if options.steps is None:
        return options.sampler
    if any(argument.partition("=")[0] == "--sampler.steps" for argument in arguments):
        raise UserError("--steps is short for --sampler.steps; give only one of them")
    return dataclasses.replace(options.sampler, steps=options.steps)
