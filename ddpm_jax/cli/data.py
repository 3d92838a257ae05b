"""`ddpm-jax data`: convert public files of images, prepare data sets, convert Inception-v3."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from ddpm_jax.cli.arguments import DEFAULTS, parse_options
from ddpm_jax.config import Preparation
from ddpm_jax.data import OnBadImage, prepared_directory
from ddpm_jax.data.convert import Format
from ddpm_jax.data.convert import convert as convert_images
from ddpm_jax.errors import UserError
from ddpm_jax.terminal import say

__all__ = ["run"]

_USAGE = (
    "ddpm-jax data convert FORMAT SOURCE NPZ | ddpm-jax data prepare NAME | ddpm-jax data inception"
    " PTH NPZ"
)


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Prepares a data set of TensorFlow Datasets as array_record, and downloads it if needed."""

    name: tyro.conf.Positional[str]
    """Name of the data set: fashion_mnist, cifar10, downsampled_imagenet/64x64."""
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Folder of files that you have downloaded, in place of a download."""
    dir: str | None = None
    """Folder of prepared data sets. None: TFDS_DATA_DIR, or else ~/tensorflow_datasets."""
    overwrite: bool = False
    """Prepare the data set again if it exists."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """Options for reading images, as in a config's `data`."""

    on_bad_image: OnBadImage = "stop"
    """What to do with a file of a folder that cannot be decoded: "stop" ends the command, "skip"
    leaves the file out and reports it."""
    memory_gb: float = 4.0
    """Largest size of the pixels of a split, in gigabytes."""


@dataclasses.dataclass(frozen=True)
class Convert:
    """Converts public files of images to an .npz that --data archive --data.path TARGET reads."""

    format: tyro.conf.Positional[Format]
    """Format of the source: mnist and fashion_mnist are IDX files, cifar10 is the binary version,
    folder is a folder of images."""
    source: tyro.conf.Positional[Path]
    """The folder, or cifar-10-binary.tar.gz."""
    target: tyro.conf.Positional[Path]
    """The file to write; its name ends in .npz."""
    overwrite: bool = False
    """Replace the target if it exists."""
    preparation: Preparation = DEFAULTS.preparation
    """What is done to each image before it is written. Crops and flips are not."""
    data: Reading = Reading()


@dataclasses.dataclass(frozen=True)
class Inception:
    """Converts PyTorch's file of Inception-v3 to an .npz for `ddpm-jax evaluate`. Needed once."""

    weights: tyro.conf.Positional[Path]
    """The file pt_inception-2015-12-05-6726825d.pth; its SHA-256 is checked before it is read."""
    target: tyro.conf.Positional[Path]
    """The file to write; its name ends in .npz."""
    other_weights: bool = False
    """Accept another file of Inception-v3 weights. The results are then named after it."""


def run(arguments: Sequence[str], console: Console) -> None:
    """Writes a data set, or a file of weights."""
    match list(arguments):
        case ["-h" | "--help"]:
            say(console, f"usage: {_USAGE}")
        case ["convert", *rest]:
            _convert(parse_options(Convert, "ddpm-jax data convert", rest), console)
        case ["prepare", *rest]:
            _prepare(parse_options(Prepare, "ddpm-jax data prepare", rest), console)
        case ["inception", *rest]:
            _inception(parse_options(Inception, "ddpm-jax data inception", rest), console)
        case _:
            given = repr(arguments[0]) if arguments else "nothing"
            raise UserError(
                f"ddpm-jax data needs convert, prepare or inception, not {given}: {_USAGE}"
            )


def _convert(options: Convert, console: Console) -> None:
    sentence = convert_images(
        options.format,
        options.source,
        options.target,
        preparation=options.preparation.make(),
        on_bad_image=options.data.on_bad_image,
        memory_gb=options.data.memory_gb,
        overwrite=options.overwrite,
    )
    say(console, sentence)


def _prepare(options: Prepare, console: Console) -> None:
    from ddpm_jax.data.prepare import prepare

    folder = prepare(
        options.name,
        prepared_directory(options.dir),
        source=options.source,
        overwrite=options.overwrite,
        report=lambda sentence: say(console, sentence),
    )
    say(console, f"{options.name} is in {folder}")


def _inception(options: Inception, console: Console) -> None:
    from ddpm_jax.evaluation.inception_weights import convert

    say(console, convert(options.weights, options.target, other_weights=options.other_weights))
