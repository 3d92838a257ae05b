"""The references that samples are compared with: files of statistics of any program, or images."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from ddpm_jax.evaluation import (
    EvaluationError,
    FeatureNetwork,
    Provenance,
    Reference,
    SampleSet,
    load_reference,
    open_samples,
    read_reference,
    reference_contents,
    save_reference,
)
from ddpm_jax.evaluation.reference_images import (
    pixels_digest,
    pixels_hash,
    reference_from_sums,
)
from ddpm_jax.experiment.cache import settings_digest
from ddpm_jax.experiment.scoring import Compute, stored_reference, sums_by_all
from ddpm_jax.parallel import hosts, shares

__all__ = ["OpenedReference", "open_references", "reference_by_all", "reference_of"]


class OpenedReference(NamedTuple):
    """What samples are compared with in the features of one network; at least one is there."""

    statistics: Reference | None
    """Statistics from a file."""
    images: SampleSet | None
    """Images, of which the statistics, or those that the file lacks, are computed."""


def open_references(
    paths: Sequence[Path],
    kind: str | None,
    networks: Sequence[FeatureNetwork],
    report: Callable[[str], None],
) -> dict[str, OpenedReference]:
    """Opens references, and finds the one that each network compares with.

    Args:
        paths: of files of statistics, of folders or archives of images. Statistics are for the
            networks that computed them; images are for each network without statistics.
        kind: the program that wrote the statistics; None if they are recognized.
        networks: the feature networks.
        report: gets a line for each thing that a user should know.

    Returns:
        References by the identity of the network. Images are not read yet.

    Raises:
        EvaluationError: a file cannot be read, statistics fit no network, or two references are for
            one network.
    """
    statistics: dict[str, OpenedReference] = {}
    images: list[SampleSet] = []
    for path in paths:
        contents = reference_contents(path)
        if not contents.statistics:
            images.append(open_samples(path, report=report))
            continue
        batch = open_samples(path, report=report) if contents.images else None
        for identity, reference in _statistics(path, kind, networks).items():
            if identity in statistics:
                raise EvaluationError(
                    f"--reference names two files of statistics for"
                    f" {reference.provenance.network!r}, one of them {str(path)!r}; name one"
                )
            statistics[identity] = OpenedReference(reference, batch)
    if len(images) > 1:
        raise EvaluationError(
            f"--reference names two sets of images, {images[0].name!r} and {images[1].name!r}; name"
            " one, or put the images into one folder"
        )
    of_images = {
        network.identity: OpenedReference(None, some) for network in networks for some in images
    }
    return of_images | statistics


def reference_of(compute: Compute, network: FeatureNetwork, opened: OpenedReference) -> Reference:
    """The statistics for a network; what has to be computed of images is stored in a file.

    Args:
        compute: where and how.
        network: the feature network.
        opened: its reference.
    """
    statistics, images = opened
    if statistics is not None and (images is None or statistics.features is not None):
        return statistics
    images = cast(SampleSet, images)  # at least one is there
    digest = settings_digest([network.identity, images.fingerprint, images.num])
    of_images = reference_by_all(
        compute,
        network,
        images,
        compute.cache / f"reference_{digest}.npz",
        dataset=images.name,
        split="",
        preprocessing="256 grey levels",
        checked=("images", "network", "network_sha256"),
    )
    if statistics is None:
        return of_images
    # As guided-diffusion's evaluator does it: its files have a batch of images beside them.
    return statistics._replace(features=of_images.features)


def reference_by_all(
    compute: Compute,
    network: FeatureNetwork,
    images: SampleSet,
    path: Path,
    *,
    checked: Collection[str] = Provenance._fields,
    **about: str,
) -> Reference:
    """Statistics of images by a network, of which each process computes a share, in a file.

    Args:
        compute: where and how.
        network: the feature network.
        images: the images.
        path: of the file, on a disk that all processes share.
        checked: fields of the provenance that have to be the same in a stored file.
        **about: the other fields of the statistics' provenance.

    Raises:
        EvaluationError: the file is of other images or another network.
    """
    about |= {"network": network.name, "network_sha256": network.identity}
    facts: dict[str, Any] = {"images": images.num, **about}
    stored = None
    with hosts.together():
        if hosts.is_first():
            same = {name: value for name, value in facts.items() if name in checked}
            stored = stored_reference(path, compute.report, **same)
    if not hosts.agreed(stored is not None):
        compute.report(f"features of {images.num:,} images in {images.name} by {network.name}")
        hashed = _Hashed(images)
        sums = sums_by_all(compute, network, hashed)
        pixels = hashed.pixels_digest_by_all()
        with hosts.together():
            if sums is not None:
                provenance = Provenance(pixels_sha256=pixels, **facts)
                save_reference(path, reference_from_sums(sums, provenance))
    with hosts.together():
        if stored is None:
            hosts.appears(path)
            stored = load_reference(path)
    return stored


@dataclasses.dataclass(frozen=True)
class _Hashed:
    """A set of images, and the hash of the pixels of each block that is read."""

    images: SampleSet
    digests: dict[str, str] = dataclasses.field(default_factory=dict)
    """By the number of the first image of a block, as JSON holds it."""

    @property
    def name(self) -> str:
        return self.images.name

    @property
    def num(self) -> int:
        return self.images.num

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.images.shape

    @property
    def fingerprint(self) -> str:
        return self.images.fingerprint

    def batches(self, first: int = 0, last: int | None = None) -> Iterator[np.ndarray]:
        parts = list(self.images.batches(first, last))
        self.digests[str(first)] = pixels_hash(parts)
        yield from parts

    def pixels_digest_by_all(self) -> str:
        """Of all images; the blocks that this process has not read are read now."""
        with hosts.together():
            for first, num in shares.own_blocks(self.num, shares.BLOCK):
                if str(first) not in self.digests:
                    self.digests[str(first)] = pixels_hash(self.images.batches(first, first + num))
        digests: dict[str, str] = {}
        for own in hosts.gathered(self.digests):
            digests |= own
        return pixels_digest(digests[first] for first in sorted(digests, key=int))


def _statistics(
    path: Path, kind: str | None, networks: Sequence[FeatureNetwork]
) -> dict[str, Reference]:
    """The statistics in a file, by the identities of those networks that it has them for.

    Raises:
        EvaluationError: it has none for these networks; the sentence is that of the last network,
            which a user has named.
    """
    read, refusal = {}, None
    for network in networks:
        try:
            read[network.identity] = read_reference(path, network, kind)
        except EvaluationError as error:
            refusal = error
    if not read:
        raise refusal or EvaluationError(
            f"--reference is {str(path)!r}, and no feature network is named that could compare with"
            " its statistics"
        )
    return read
