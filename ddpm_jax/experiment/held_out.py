"""The measurement of one set of parameters on held-out images, which an evaluation stores.

What was measured of each batch of images is in a file of its own until the measurement is done, so
that one that was interrupted continues, also with another number of processes.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.config import Evaluation, measure, plain
from ddpm_jax.data import ImageSet
from ddpm_jax.data.source import spread
from ddpm_jax.evaluation.likelihood import PerTime, TrainedModel
from ddpm_jax.experiment.cache import ArrayStore, cached_json, settings_digest
from ddpm_jax.experiment.experiment import Experiment
from ddpm_jax.npz import save_npz
from ddpm_jax.parallel import hosts

__all__ = [
    "HeldOut",
    "follows_from",
    "images_identity",
    "measure_held_out",
    "per_image_name",
    "save_per_image",
]


class HeldOut(NamedTuple):
    """The measurement of one set of parameters."""

    plain: dict[str, Any]
    """`results` and `per_time`, as results.json holds them."""
    per_image: list[float] | None
    """Bits per dimension of each image, or None."""


def measure_held_out(
    cache: Path,
    evaluation: Evaluation,
    model: TrainedModel,
    params: Any,
    digest: str,
    report: Callable[[str], None],
) -> HeldOut:
    """Measures a set of parameters, or reads what was measured before.

    Args:
        cache: folder of stored results.
        evaluation: the member that measures.
        model: the network and the images.
        params: of the network.
        digest: SHA-256 of the parameters.
        report: gets a line for each stored file that is damaged.

    Returns:
        The results.
    """
    settings = [digest, *follows_from(evaluation), model.seed, *images_identity(model.images)]
    settings.append("per image")  # earlier versions did not store that
    store = ArrayStore(cache / f"evaluation_{settings_digest(settings)}", report)

    def measured() -> dict[str, Any]:
        results, per_time, per_image = measure(evaluation, model._replace(memo=store), params)
        return {
            "results": results,
            "per_time": None if per_time is None else _plain(per_time),
            "per_image": None if per_image is None else per_image.tolist(),
        }

    stored = cached_json(cache, "evaluation", settings, measured, report)
    if hosts.is_first():
        store.remove()
    return HeldOut(stored, stored.pop("per_image", None))


def per_image_name(params: str) -> str:
    """Name of the file of the bits per dimension of each image, in the folder of an evaluation.

    Args:
        params: name of the parameters, such as "ema".

    Returns:
        The name.
    """
    return f"bits_per_image_{params}.npz"


def save_per_image(
    path: Path, experiment: Experiment, measured: HeldOut, about: Mapping[str, Any]
) -> None:
    """Writes the bits per dimension of each image, and what they follow from.

    The archive has `bits_per_dim`, float64 `[n]`; `numbers`, those of the images among all held-out
    images, int64 `[n]`; and `about`, JSON. Two runs are compared image by image if the data set is
    the same; they have the same noise if the seeds are, too.

    Args:
        path: of the file.
        experiment: the run's.
        measured: with bits per dimension of each image.
        about: more facts, by name.
    """
    images, most = experiment.images, experiment.config.evaluation.held_out_images
    count = len(images.held_out)
    facts = {
        "dataset": images.name,
        "fingerprint": images.fingerprint,
        "preparation": images.preparation,
        "held_out_images": count,
        "num_steps": measured.plain["results"].get("num_steps"),
        "num_times": measured.plain["results"].get("num_times"),
        "seed": experiment.config.seed,
        **about,
    }
    save_npz(
        path,
        {
            "bits_per_dim": np.array(measured.per_image, np.float64),
            "numbers": np.array(spread(count, count if most is None else most), np.int64),
            "about": np.array(json.dumps(facts, sort_keys=True)),
        },
    )


def follows_from(evaluation: Evaluation) -> list[Any]:
    """The fields of a member that its results depend on, beside the images.

    Args:
        evaluation: the member.

    Returns:
        Pairs of names and values.
    """
    common = {field.name for field in dataclasses.fields(Evaluation)}
    return sorted(
        (name, value)
        for name, value in plain(evaluation).items()
        if name not in common and name not in evaluation.monitor_fields
    )


def images_identity(images: ImageSet) -> list[str | int]:
    """What tells the images of one evaluation from others, wherever they are.

    Args:
        images: the data set.

    Returns:
        Texts and numbers.
    """
    return [images.preparation, len(images.train), len(images.held_out), images.fingerprint]


def _plain(per_time: PerTime) -> dict[str, list[float | None]]:
    """NaN, of a t without images, is None."""
    return {
        name: [None if value != value else value for value in values.tolist()]
        for name, values in per_time._asdict().items()
    }
