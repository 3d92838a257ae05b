"""`ddpm-jax sample RUN --num 64 --sampler ddim --sampler.steps 50 --out grid.png`."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import tyro
from rich.console import Console

from ddpm_jax.cli.arguments import (
    DEFAULTS,
    ParamsName,
    check_at_least,
    check_seed,
    parse_for_run,
)
from ddpm_jax.cli.help import SHORT, options_help
from ddpm_jax.cli.process_group import complain_once, process_group
from ddpm_jax.config import Config, Data, Hosts, Sampler, member_name
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import image_grid, save_png
from ddpm_jax.experiment import Experiment, RunDirectory, alone, restore_run
from ddpm_jax.experiment.sample_archive import draw_into_archive
from ddpm_jax.experiment.sample_folder import Draw, draw_in_memory, draw_into_folder
from ddpm_jax.experiment.sampling import class_of
from ddpm_jax.terminal import say

__all__ = ["run"]

Kind = Literal["grid", "archive", "folder"]
_MOST_IN_GRID = 10_000


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Draws images from a finished or running run. The data set is not needed."""

    run: tyro.conf.Positional[Path]
    """The run directory."""
    num: int = 64
    """Number of images."""
    sampler: Sampler = DEFAULTS.sampler
    """The sampler; by default that of the run. --sampler ddim takes another one."""
    label: str | None = None
    """Class of all images, by name or number, for a run with classes. By default the classes follow
    each other."""
    batch_size: int | None = None
    """Images drawn at once; by default evaluation.batch_size of the run. The images are the same.
    Lower it if memory runs out."""
    out: Path = Path("samples.png")
    """Where the images go: a .png with a grid; an .npz with uint8 arrays `arr_0`, 0 to 255, and
    `arr_1`, the classes if there are some; or a folder, a name without an ending, in which each
    image is a PNG file. A folder or an .npz that is interrupted continues with the same command."""
    seed: int = 0
    """Seed of the images, in [0, 2^32)."""
    params: ParamsName = "ema"
    """Which parameters: the moving average, or the raw ones."""
    sigma_rel: float | None = None
    """Relative width of a post-hoc average to use in place of these parameters, for a run with
    averages PostHocEMA."""
    skip_missing_snapshots: bool = False
    """Make that average without the snapshots that are missing or damaged."""
    data: Data = DEFAULTS.data
    """Place of the run's data set, for a run without a record of it."""
    hosts: Hosts = DEFAULTS.hosts
    """The processes that share the images out, usually one on each host; each runs this command.
    They need a folder or an .npz on a disk that all of them see. The images are those of one
    process, except for rounding."""


def run(arguments: Sequence[str], console: Console) -> None:
    """Draws, and writes a file or a folder of files."""
    if set(SHORT) & set(arguments):
        print(options_help("sample RUN", Arguments))
        return
    options: Arguments
    options, config = parse_for_run(Arguments, "ddpm-jax sample", arguments)
    kind = _kind(options)
    check_seed(options.seed)
    check_at_least(options, 1, "num", "batch_size")
    with process_group(options, console) as console:
        _draw(options, kind, config, console)


def _draw(options: Arguments, kind: Kind, config: Config, console: Console) -> None:
    restored = restore_run(
        RunDirectory(options.run),
        alone(config),
        with_images=False,
        only=options.params,
        devices=jax.local_devices(),
        report=complain_once,
        sigma_rel=options.sigma_rel,
        skip_missing_snapshots=options.skip_missing_snapshots,
    )
    params = restored.params.get(options.params) or restored.params["sigma_rel"]
    experiment = restored.experiment.at(params)
    label = class_of(experiment, options.label, "--label")
    say(console, f"drawing {options.num} images of step {restored.step}")
    draw = Draw(
        experiment,
        params,
        options.num,
        options.sampler,
        options.seed,
        label,
        options.batch_size or experiment.config.evaluation.batch_size,
    )
    try:
        if kind == "grid":
            grid = image_grid(draw_in_memory(draw), levels=experiment.spec.levels)
            save_png(options.out, grid)
        elif kind == "archive":
            draw_into_archive(options.out, draw, functools.partial(say, console))
        else:
            draw_into_folder(options.out, draw, functools.partial(say, console))
    except KeyboardInterrupt:
        if kind != "grid":
            say(console, "the same command continues from the images that are there")
        raise
    steps = len(options.sampler.times(experiment.process))
    say(
        console,
        f"{options.num} images of step {restored.step} in {options.out}"
        f" ({member_name(type(options.sampler))}, {steps} steps{_class(label, experiment)})",
    )


def _kind(options: Arguments) -> Kind:
    """What `--out` is to be.

    Raises:
        UserError: it cannot be that.
    """
    out = options.out
    if not out.parent.is_dir():
        raise UserError(f"--out is {str(out)!r}; there is no folder {out.parent}")
    if out.suffix in (".png", ".npz"):
        if out.is_dir():
            raise UserError(f"--out is {str(out)!r}, which is a folder")
        if out.suffix == ".npz":
            return "archive"
        _check_grid(options)
        return "grid"
    if out.name.startswith(".") or (out.suffix[1:].isalpha() and not out.is_dir()):
        raise UserError(
            f"--out is {str(out)!r}; its name has to end in .png or .npz, or to have no ending, for"
            " a folder"
        )
    if out.exists() and not out.is_dir():
        raise UserError(f"--out is {str(out)!r}, which is a file; take the name of a folder")
    return "folder"


def _check_grid(options: Arguments) -> None:
    if options.num > _MOST_IN_GRID:
        raise UserError(
            f"--num is {options.num}; a grid has at most {_MOST_IN_GRID:,} images: take a folder or"
            " an .npz, as in --out samples.npz"
        )
    if options.hosts.several:
        raise UserError(
            f"--out is {str(options.out)!r}, a grid, which one process draws; leave out --hosts, or"
            " take a folder or an .npz"
        )


def _class(label: int | None, experiment: Experiment) -> str:
    """The class that was drawn, if `--label` names one."""
    names = experiment.spec.classes
    if label is None or names is None:
        return ""
    return f", class {label}, {names[label]!r}"
