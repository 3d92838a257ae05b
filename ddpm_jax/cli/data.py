"""`ddpm-jax data prepare NAME` and `ddpm-jax data inception WEIGHTS.pth WEIGHTS.npz`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from ddpm_jax.cli.arguments import parse_options
from ddpm_jax.data import prepared_directory
from ddpm_jax.errors import UserError
from ddpm_jax.terminal import say

__all__ = ["run"]


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Prepares a data set of TensorFlow Datasets as array_record, downloading it if need be."""

    name: tyro.conf.Positional[str]
    """As data.name has it: fashion_mnist, cifar10, downsampled_imagenet/64x64."""
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """A folder of files that were downloaded by hand, in place of a download."""
    dir: str | None = None
    """Where prepared data sets are; by default TFDS_DATA_DIR or ~/tensorflow_datasets."""
    overwrite: bool = False
    """Make it anew if it is there."""


@dataclasses.dataclass(frozen=True)
class Inception:
    """Converts PyTorch's file of Inception-v3 into an .npz, once, for `ddpm-jax evaluate`."""

    weights: tyro.conf.Positional[Path]
    """pt_inception-2015-12-05-6726825d.pth; its sha256 is compared before it is read."""
    target: tyro.conf.Positional[Path]
    """The file to write; it ends in .npz."""
    other_weights: bool = False
    """Take another file of such weights, too; its numbers are then named after it."""


def run(arguments: Sequence[str], console: Console) -> None:
    """Writes a data set, or a file of weights."""
    match list(arguments):
        case ["-h" | "--help"]:
            say(console, "usage: ddpm-jax data prepare NAME | ddpm-jax data inception PTH NPZ")
        case ["prepare", *rest]:
            _prepare(parse_options(Prepare, "ddpm-jax data prepare", rest), console)
        case ["inception", *rest]:
            _inception(parse_options(Inception, "ddpm-jax data inception", rest), console)
        case _:
            given = repr(arguments[0]) if arguments else "nothing"
            raise UserError(
                f"ddpm-jax data wants prepare or inception, not {given}: ddpm-jax data prepare"
                " cifar10"
            )


def _prepare(asked: Prepare, console: Console) -> None:
    from ddpm_jax.data.prepare import prepare

    written = prepare(
        asked.name,
        prepared_directory(asked.dir),
        source=asked.source,
        overwrite=asked.overwrite,
        tell=lambda sentence: say(console, sentence),
    )
    say(console, f"{asked.name} is in {written}")


def _inception(asked: Inception, console: Console) -> None:
    from ddpm_jax.evaluation.inception_weights import convert

    say(console, convert(asked.weights, asked.target, other_weights=asked.other_weights))
