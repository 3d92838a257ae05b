"""The record of a run's data set, `images.json`, with which sampling needs no images.

It is written once, when the run begins: shape, grey levels and classes of the images, and what the
process has measured, if it depends on the images. The counts and a fingerprint of the content show
whether another data set is the same one.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.data import ImageSet, ImageSpec
from ddpm_jax.errors import UserError
from ddpm_jax.experiment.experiment import Experiment
from ddpm_jax.experiment.run_directory import RunDirectoryError
from ddpm_jax.files import json_digest, read_json, write_json

__all__ = [
    "DataRecord",
    "check_same_data",
    "plain_record",
    "read_data_record",
    "record_from_plain",
    "record_of",
    "write_data_record",
]


@dataclasses.dataclass(frozen=True, eq=False)
class DataRecord:
    """A data set without its images. For imported weights only the spec is known."""

    spec: ImageSpec
    """Shape, grey levels and classes."""
    train_images: int | None = None
    """Number of training images."""
    held_out_images: int | None = None
    """Number of held-out images."""
    fingerprint: str | None = None
    """Fingerprint of the content, `ImageSet.fingerprint`."""
    measured: np.ndarray | None = None
    """What the process has measured of the training images, see `config.Process.measure`."""


def record_of(experiment: Experiment) -> DataRecord:
    """The record of the images that the experiment has loaded."""
    images = experiment.images
    return DataRecord(
        spec=experiment.spec,
        train_images=len(images.train),
        held_out_images=len(images.held_out),
        fingerprint=images.fingerprint,
        measured=experiment.measured,
    )


def write_data_record(path: Path, record: DataRecord) -> None:
    """Writes the record, either completely or not at all."""
    values = plain_record(record)
    write_json(path, {**values, "sha256": json_digest(values)})


def plain_record(record: DataRecord) -> dict[str, Any]:
    """The record as plain values."""
    measured = None if record.measured is None else np.asarray(record.measured, np.float64).tolist()
    return {**dataclasses.asdict(record), "measured": measured}


def read_data_record(path: Path) -> DataRecord | None:
    """Reads the record of a run's data set.

    Args:
        path: of the file, `RunDirectory.images`.

    Returns:
        The record, or None if there is no file, as in a run that never began.

    Raises:
        UserError: the file is damaged.
    """
    if not path.exists():
        return None
    values = read_json(path)
    if values.pop("sha256", None) != json_digest(values):
        raise RunDirectoryError(
            f"{str(path)!r} is damaged: its SHA-256 differs; delete it, and the data set is read"
            " instead"
        )
    return record_from_plain(values, repr(str(path)))


def check_same_data(record: DataRecord, images: ImageSet, run: Path) -> None:
    """Raises UserError unless `images` are those of the record.

    If the record does not know the data set, only shape and grey levels have to be the same.
    """
    differences = [
        f"{name} were {there} and are {here}"
        for name, there, here in (
            ("shape", record.spec.shape, images.image_shape),
            ("grey levels", record.spec.levels, images.levels),
            ("training images", record.train_images, len(images.train)),
            ("held-out images", record.held_out_images, len(images.held_out)),
        )
        if there not in (here, None)
    ]
    if not differences and record.fingerprint not in (images.fingerprint, None):
        differences = ["the same number and shape of images, but other content"]
    if differences:
        raise UserError(
            f"the data set {images.name!r} is not the one with which the run {str(run)!r} began"
            f" ({'; '.join(differences)}); give the right one with --data and its fields"
        )


def record_from_plain(values: dict[str, Any], name: str) -> DataRecord:
    """The inverse of `plain_record`.

    Raises:
        RunDirectoryError: a sentence that begins with `name`; other values.
    """
    try:
        spec, measured = dict(values["spec"]), values["measured"]
        height, width, channel = spec["shape"]
        count, held_out = values["train_images"], values["held_out_images"]
        fingerprint = values["fingerprint"]
        return DataRecord(
            spec=ImageSpec(
                name=str(spec["name"]),
                shape=(int(height), int(width), int(channel)),
                levels=int(spec["levels"]),
                classes=None if spec["classes"] is None else tuple(map(str, spec["classes"])),
                class_counts=(
                    None if spec["class_counts"] is None else tuple(map(int, spec["class_counts"]))
                ),
            ),
            train_images=None if count is None else int(count),
            held_out_images=None if held_out is None else int(held_out),
            fingerprint=None if fingerprint is None else str(fingerprint),
            measured=None if measured is None else np.array(measured, np.float64),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunDirectoryError(
            f"{name} is of another version of ddpm_jax ({type(error).__name__}: {error})"
        ) from None
