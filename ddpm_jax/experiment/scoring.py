"""Scores of samples in the features of several networks, cached in a folder.

A `Space` is a feature network with the reference that samples are compared with in its features.
What takes long is computed once: statistics of images, the values of held-out images, the scores of
a set of samples. Each is stored under a hash of all that it follows from.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.data import ImageSet, to_bytes
from ddpm_jax.evaluation import (
    EvaluationError,
    FeatureNetwork,
    Floors,
    Reference,
    SampleSet,
    SourceSamples,
    Sums,
    check_same,
    floors_of,
    load_reference,
    load_sums,
    mean_of,
    merge_sums,
    near_fraction,
    nearest,
    save_sums,
    scores_of,
    sums_of,
)
from ddpm_jax.evaluation.confidence import standard_error
from ddpm_jax.experiment.cache import cached_json, move_aside_non_file, settings_digest
from ddpm_jax.experiment.sample_files import SampleFiles
from ddpm_jax.npz import arrays_digest
from ddpm_jax.parallel import hosts, shares

__all__ = [
    "Compute",
    "DrawnSamples",
    "Space",
    "few_samples",
    "make_space",
    "samples_of",
    "score",
    "stored_reference",
    "summary",
    "sums_by_all",
]


class Compute(NamedTuple):
    """Where and how features are computed and results are cached."""

    cache: Path
    """Folder of cached results."""
    mesh: Mesh
    """Over which batches of images are split: the devices of this process."""
    batch_size: int
    """Images in one call of a network."""
    report: Callable[[str], None]
    """Gets a line for each part."""


class Space(NamedTuple):
    """A feature network, and what samples are compared with in its features."""

    network: FeatureNetwork
    reference: Reference
    floors: Floors
    """Values of held-out images and of halves of the reference."""
    near: np.ndarray | None
    """Distances of held-out images to the nearest image of the reference, in the features; None
    where the reference is not of the training images, or has no features of single images."""


@dataclasses.dataclass(frozen=True)
class DrawnSamples:
    """Samples of a run, in files, as a set of images with 256 levels."""

    files: SampleFiles
    """The files."""
    levels: int
    """Number of grey levels of the images in the files."""

    @property
    def name(self) -> str:
        """The folder of the files."""
        return str(self.files.folder)

    @property
    def num(self) -> int:
        """Number of images."""
        return self.files.num

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channel) of each image."""
        height, width, channel = self.files.shape
        return height, width, channel

    @property
    def fingerprint(self) -> str:
        """A hash of all that the images follow from."""
        return settings_digest([self.files.settings, self.levels])

    def batches(self, first: int = 0, last: int | None = None) -> Iterator[np.ndarray]:
        """The images `first` to `last` - 1, file by file."""
        images = self.files.batches(first, last)
        return (to_bytes(batch, self.levels) for batch in images)


def samples_of(images: ImageSet, part: Literal["train", "held_out"]) -> SourceSamples:
    """One part of a data set as a set of images with 256 levels."""
    source = images.train_centred if part == "train" else images.held_out
    fingerprint = settings_digest([images.fingerprint, images.preparation, part])
    return SourceSamples(source, images.levels, f"{images.name}, {part}", fingerprint)


def make_space(
    compute: Compute,
    network: FeatureNetwork,
    reference: Reference,
    held_out: SampleSet | None = None,
    *,
    of_training: bool = False,
) -> Space:
    """A network and a reference, with the values of held-out images and of halves.

    Args:
        compute: where and how.
        network: the feature network.
        reference: statistics by the same network.
        held_out: images of the data set that are not in the reference.
        of_training: whether the reference is of the training images, to which samples may be near.
    """

    def floors_and_distances(sums: Sums | None) -> dict[str, Any]:
        near = None if sums is None or not of_training else _distances(sums, reference)
        return {
            **floors_of(network.name, reference, sums)._asdict(),
            "near": None if near is None else near.tolist(),
        }

    def computed() -> dict[str, Any]:
        sums = None if held_out is None else sums_by_all(compute, network, held_out)
        floors: dict[str, Any] = hosts.by_first(lambda: floors_and_distances(sums))
        return floors

    images = None if held_out is None else [held_out.fingerprint, held_out.num]
    follows_from = [images, of_training, *_identity(network, reference)]
    floors = cached_json(compute.cache, "floors", follows_from, computed, compute.report)
    near = floors["near"]
    return Space(
        network,
        reference,
        Floors(floors["held_out"], floors["halves"]),
        None if near is None else np.array(near),
    )


def few_samples(network: FeatureNetwork, num: int) -> list[str]:
    """A line about what distances mean if the samples are fewer than the features, or none."""
    if num > network.dim:
        return []
    return [
        f"{num:,} samples are not more than the {network.dim:,} features of {network.name}: their"
        " covariance is singular, and their Frechet distance is much larger than that of many"
        " samples; it compares only with that of as many others. The kernel distance has no such"
        " bias"
    ]


def score(compute: Compute, space: Space, samples: SampleSet) -> dict[str, Any]:
    """The scores of samples in one space, as `results.json` holds them.

    Args:
        compute: where and how.
        space: the network and the reference.
        samples: the images.

    Returns:
        "metrics", "left_out" with reasons, and "memorization" or None.
    """

    def of_sums(sums: Sums) -> dict[str, Any]:
        metrics, left_out, memorization = [], [], None
        for name, estimate, held_out, halves, reason in scores_of(
            space.network.name, sums, space.reference, space.floors
        ):
            if estimate is None:
                left_out.append({"name": name, "reason": reason})
            else:
                floors = {"held_out": held_out, "halves": halves}
                metrics.append({"name": name, **estimate._asdict(), **floors})
        distances = None if space.near is None else _distances(sums, space.reference)
        if space.near is not None and distances is not None:
            near = near_fraction(distances, space.near)
            memorization = {"distance": space.network.name, **near._asdict()}
        return {"metrics": metrics, "left_out": left_out, "memorization": memorization}

    def computed() -> dict[str, Any]:
        sums = sums_by_all(compute, space.network, samples)
        scores: dict[str, Any] = hosts.by_first(lambda: of_sums(cast(Sums, sums)))
        return scores

    network, reference, floors, near = space
    follows_from = [samples.fingerprint, samples.num, *_identity(network, reference)]
    follows_from += [floors, None if near is None else near.tolist()]
    return cached_json(compute.cache, "scores", follows_from, computed, compute.report)


def summary(scores: Sequence[Sequence[Mapping[str, Any]]], *, seed: int) -> dict[str, Any]:
    """The scores of all spaces and seeds together, as `results.json` holds them.

    For several seeds, the value is the mean over the seeds, and the interval is Student's, from the
    standard error of the mean.

    Args:
        scores: what `score` returns, of each seed, in each space.
        seed: the first seed.

    Returns:
        "metrics", "left_out", "memorization" of the first seed and, of several seeds, "seeds".
    """
    metrics = [[metric for of in spaces for metric in of["metrics"]] for spaces in scores]
    results = {
        "metrics": metrics[0] if len(metrics) == 1 else _over_seeds(metrics),
        "left_out": [metric for of in scores[0] for metric in of["left_out"]],
        "memorization": [of["memorization"] for of in scores[0] if of["memorization"]],
    }
    if len(metrics) > 1:
        results["seeds"] = [
            {"seed": seed + index, "metrics": some} for index, some in enumerate(metrics)
        ]
    return results


def sums_by_all(compute: Compute, network: FeatureNetwork, samples: SampleSet) -> Sums | None:
    """The sums over the features of images, of which each process computes a share.

    The sums of a share are in a file until all are merged: those of an interrupted evaluation are
    not computed again by as many processes.

    Args:
        compute: where and how; the folder is shared by all processes.
        network: the feature network.
        samples: the images.

    Returns:
        The sums, in the first process; None in the others.
    """
    blocks = shares.own_blocks(samples.num, shares.BLOCK)
    if hosts.alone():
        return sums_of(network, samples, compute.mesh, compute.batch_size, blocks=blocks)
    index, count = jax.process_index(), jax.process_count()
    digest = settings_digest([network.identity, samples.fingerprint, samples.num])
    paths = [compute.cache / f"sums_{digest}_{part}_of_{count}.npz" for part in range(count)]

    def load(part: int) -> Sums:
        return load_sums(paths[part], [network.identity, part, count], total=samples.num)

    with hosts.together():
        move_aside_non_file(paths[index], compute.report)
        try:
            load(index)
        except EvaluationError:
            sums = sums_of(network, samples, compute.mesh, compute.batch_size, blocks=blocks)
            save_sums(paths[index], sums, [network.identity, index, count])
    merged = None
    with hosts.together():
        if hosts.is_first():
            for path in paths:
                hosts.appears(path)
            merged = functools.reduce(merge_sums, map(load, range(count)))
            for path in paths:
                path.unlink(missing_ok=True)
    return merged


def stored_reference(
    path: Path, report: Callable[[str], None], **provenance: Any
) -> Reference | None:
    """Statistics that an earlier evaluation stored, if they are there and as they were written.

    Args:
        path: of the file.
        report: gets a line if they are damaged.
        **provenance: fields of their provenance that have to be these.

    Raises:
        EvaluationError: they are of other images or another network.
    """
    move_aside_non_file(path, report)
    if not path.exists():
        return None
    try:
        stored = load_reference(path)
    except EvaluationError as error:
        report(f"{error}; computed again")
        return None
    try:
        check_same(stored.provenance, stored.provenance._replace(**provenance))
    except EvaluationError as error:
        raise EvaluationError(f"{path}: {error}; delete it, and it is made again") from None
    return stored


def _over_seeds(metrics: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The mean of each metric that all seeds have."""
    by_name = [{metric["name"]: metric["value"] for metric in some} for some in metrics]
    joined = []
    for metric in metrics[0]:
        values = [some[metric["name"]] for some in by_name if metric["name"] in some]
        if len(values) < len(metrics):
            continue
        estimate = mean_of(values, f"covers the choice of the samples, from {len(values)} seeds")
        error = standard_error(np.array(values))
        joined.append({**metric, **estimate._asdict(), "standard_error": error})
    return joined


def _distances(samples: Sums, reference: Reference) -> np.ndarray | None:
    """Of the features of images to the nearest features of the reference, if it has them."""
    if reference.features is None:
        return None
    return nearest(samples.chosen.rows, reference.features, 1).distances[:, 0]


def _identity(network: FeatureNetwork, reference: Reference) -> list[str]:
    """What tells a network and a reference from others."""
    mean, covariance = reference.pooled
    arrays = {"mean": mean, "covariance": covariance}
    if reference.spatial is not None:
        arrays |= {"spatial": reference.spatial.covariance}
    if reference.features is not None:
        arrays |= {"features": reference.features}
    return [network.name, network.identity, arrays_digest(arrays)]
