"""The evaluation of a run: likelihood, samples, pictures; of each of its parameters.

Whatever takes long is kept in the folder, by a hash of what it follows from: draws, likelihoods,
statistics of the training images, the classifier. An evaluation that was interrupted goes on, and
one that is asked for again, or for more samples, computes what is new. What is kept has a sha256 of
itself; a file that does not fit to its own is computed again.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax.data import ImageSet
from ddpm_jax.evaluation import (
    EvaluationError,
    FeatureNetwork,
    Reference,
    check_same,
    image_grid,
    load_reference,
    save_png,
    save_reference,
)
from ddpm_jax.evaluation import classifier as classifiers
from ddpm_jax.evaluation.plots import Curve, plot_per_time
from ddpm_jax.experiment.build import Experiment
from ddpm_jax.experiment.directory import write_json
from ddpm_jax.experiment.draw import Sampling
from ddpm_jax.experiment.kept import kept_json, make_way, params_hash
from ddpm_jax.experiment.measure import PerTime, baselines, likelihood
from ddpm_jax.experiment.samples import draw_into
from ddpm_jax.experiment.scores import (
    COMPARED,
    Space,
    make_space,
    near_training_images,
    scores,
)

__all__ = ["Asked", "assess"]

_GRID = 100
_SHOWN, _NEIGHBOURS = 10, 5
_FEWEST = 2
"""Training images of which there are statistics, one for each half."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is wanted of an evaluation."""

    num: int
    """Samples; 0 for none."""
    how: Sampling
    seed: int
    batch_size: int
    """Images drawn, or seen by a feature network, at once."""
    classifier: Path | None = None
    """A classifier of another run on the same images, in place of one of its own."""
    inception: Callable[[], FeatureNetwork] | None = None
    """Makes Inception, if its metrics are wanted."""


def assess(
    experiment: Experiment,
    params: dict[str, Any],
    folder: Path,
    asked: Asked,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Everything that is asked, as plain values; pictures and `results.json` in `folder`.

    Args:
        experiment: the run's.
        params: by the names under which they are reported, "ema" and "raw" as a rule.
        folder: of this evaluation.
        asked: how much of it.
        tell: is told of each part.
    """
    images = experiment.images
    results: dict[str, Any] = {
        "dataset": images.name,
        "preparation": images.preparation,
        "train_images": len(images.train),
        "held_out_images": len(images.held_out),
        "params": {name: {"sha256": params_hash(values)} for name, values in params.items()},
    }
    kept = folder / "kept"
    results["baselines"] = kept_json(
        kept, "baselines", _identity(images), lambda: baselines(images), tell
    )
    curves = {}
    for name, values in params.items():
        tell(f"bits per dimension of {len(images.held_out)} held-out images, {name}")
        digest = results["params"][name]["sha256"]
        summary, per_time = _likelihood(kept, experiment, values, digest, tell)
        results["params"][name] |= {"likelihood": summary, "per_time": per_time}
        curves[name] = Curve(
            np.array(per_time["mean"], np.float64),
            np.array(per_time["standard_error"], np.float64),
        )
    plot_per_time(folder / "elbo_per_t.png", curves, title=f"{images.name}: the ELBO, term by term")
    if reason := _no_metrics(images, asked):
        results["no_metrics"] = reason
    if asked.num:
        results["sampling"] = {"images": asked.num, "seed": asked.seed, **asked.how._asdict()}
        spaces = _spaces(experiment, kept, asked, tell)
        results["networks"] = [_told_of(space, experiment, asked.batch_size) for space in spaces]
        for name, values in params.items():
            tell(f"drawing {asked.num} images, {name}")
            results["params"][name] |= _of_samples(
                experiment, values, name, folder, asked, spaces, tell
            )
    write_json(folder / "results.json", results)
    return results


def _likelihood(
    kept: Path, experiment: Experiment, params: Any, digest: str, tell: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """From a file if it was measured before."""

    def measured() -> dict[str, Any]:
        summary, per_time = likelihood(experiment, params)
        return {"summary": summary, "per_time": _plain(per_time)}

    config = experiment.config
    follows_from = [digest, config.evaluation.likelihood_times, config.seed]
    follows_from += _identity(experiment.images)
    stored = kept_json(kept, "likelihood", follows_from, measured, tell)
    return stored["summary"], stored["per_time"]


def _identity(images: ImageSet) -> list[str | int]:
    """What tells the images of one evaluation from others, wherever they are."""
    return [images.preparation, len(images.train), len(images.held_out), images.fingerprint]


def _plain(per_time: PerTime) -> dict[str, list[float | None]]:
    """NaN, of a t that was not asked, is None."""
    return {
        name: [None if value != value else value for value in values.tolist()]
        for name, values in per_time._asdict().items()
    }


def _spaces(
    experiment: Experiment, kept: Path, asked: Asked, tell: Callable[[str], None]
) -> list[Space]:
    images, networks = experiment.images, []
    if len(images.train) < _FEWEST:
        return []
    if images.classes is None:
        tell(f"{images.name} has no labels, so there is no classifier of it to compare with")
    elif asked.classifier is None:
        networks.append(_kept_classifier(kept / "classifier.npz", images, tell))
    else:
        params = classifiers.load_classifier(asked.classifier)
        networks.append(classifiers.classifier_network(images, params))
    if asked.inception is not None:
        networks.append(asked.inception())
    spaces = []
    for network in networks:
        tell(f"the data set in the space of {network.name}")
        path = kept / f"reference_{network.identity[:16]}.npz"
        train = _kept_reference(path, experiment, network, tell)
        space = make_space(images, network, experiment.mesh, asked.batch_size, train)
        if train is None:
            save_reference(path, space.train)
        spaces.append(space)
    return spaces


def _no_metrics(images: ImageSet, asked: Asked) -> str | None:
    """Why there are no metrics of samples; None where there are."""
    if not asked.num:
        return "no metrics of samples: none were to be drawn (--num 0)"
    if len(images.train) < _FEWEST:
        return f"no metrics of samples: {images.name} has {len(images.train)} training image"
    if images.classes is None and asked.inception is None:
        return (
            f"no metrics of samples: {images.name} has no labels, so there is no classifier of it"
            " to compare with; --inception gives them in the space of Inception-v3"
        )
    return None


def _kept_classifier(path: Path, images: ImageSet, tell: Callable[[str], None]) -> FeatureNetwork:
    """The classifier of these images, trained if it is not there as it was written."""
    trained_on = json.dumps(_identity(images))
    make_way(path, tell)
    if path.exists():
        try:
            params = classifiers.load_classifier(path, images=trained_on)
            return classifiers.classifier_network(images, params)
        except EvaluationError as error:
            tell(f"{error}; trained again")
    tell(f"training a classifier of {images.name}")
    # One key for every run on these images, so that their numbers can be compared.
    params = classifiers.train_classifier(images, jax.random.key(0, impl="threefry2x32"))
    classifiers.save_classifier(path, params, images=trained_on)
    # As the next evaluation will have it, and as one at the same time may have written it.
    return classifiers.classifier_network(images, classifiers.load_classifier(path))


def _kept_reference(
    path: Path, experiment: Experiment, network: FeatureNetwork, tell: Callable[[str], None]
) -> Reference | None:
    """Statistics of the training images, if they are there and of these images and this network."""
    make_way(path, tell)
    if not path.exists():
        return None
    images = experiment.images
    try:
        stored = load_reference(path)
    except EvaluationError as error:
        tell(f"{error}; computed again")
        return None
    here = stored.provenance._replace(
        dataset=images.name,
        split=images.splits[0],
        images=len(images.train),
        preprocessing=images.preparation,
        network=network.name,
        network_sha256=network.identity,
    )
    try:
        check_same(stored.provenance, here)
    except EvaluationError as error:
        raise EvaluationError(f"{path}: {error}; delete it, and it is made anew") from None
    return stored


def _told_of(space: Space, experiment: Experiment, batch_size: int) -> dict[str, Any]:
    told: dict[str, Any] = space.train.provenance._asdict()
    if space.network.name.endswith("classifier"):
        told["held_out_accuracy"] = classifiers.accuracy(
            space.network, experiment.images, batch_size
        )
    return told


def _of_samples(
    experiment: Experiment,
    params: Any,
    name: str,
    folder: Path,
    asked: Asked,
    spaces: list[Space],
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Metrics of samples, and two pictures."""
    images = experiment.images
    samples = draw_into(
        folder / "kept" / "samples",
        experiment,
        params,
        count=asked.num,
        how=asked.how,
        seed=asked.seed,
        batch_size=asked.batch_size,
        tell=tell,
    )
    grid = image_grid(samples.first(_GRID), levels=images.levels)
    save_png(folder / f"samples_{name}.png", grid)
    near = near_training_images(
        images, samples.first(COMPARED), shown=_SHOWN, neighbours=_NEIGHBOURS
    )
    rows = near.images.reshape(-1, *images.image_shape)
    picture = image_grid(rows, levels=images.levels, columns=near.images.shape[1])
    save_png(folder / f"neighbours_{name}.png", picture)
    return {
        "metrics": [
            score._asdict()
            for space in spaces
            for score in scores(space, images, samples.batches(), experiment.mesh, asked.batch_size)
        ],
        "nearest_training_image": {"samples": near.samples, "held_out": near.held_out},
    }
