"""A small classifier, trained in seconds on the images themselves: a feature space for small sets.

Inception was trained on photographs of 299x299 pixels. For digits of 8x8 its features mean little,
and its weights may not be available. A classifier of the data set's own classes is a feature space
in which the same distances can be computed. They are not FID: each number belongs to the classifier
with which it was measured, which is identified by the SHA-256 of its weights.

The network has three convolutions, each at half the resolution of the one before, mean and maximum
over positions, and a dense layer whose activations are the features; the logits are a linear map of
these.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Key, UInt8

from ddpm_jax.data import (
    DataError,
    Examples,
    ImageSet,
    in_batches,
    make_iterator,
    to_bytes,
    to_model_range,
)
from ddpm_jax.errors import first_line
from ddpm_jax.evaluation.features import EvaluationError, FeatureNetwork, Features
from ddpm_jax.npz import arrays_digest, load_npz, save_npz

__all__ = [
    "FEATURES",
    "Classifier",
    "accuracy",
    "classifier_network",
    "load_classifier",
    "save_classifier",
    "stored_network",
    "train_classifier",
]

FEATURES = 64
_STEPS, _BATCH, _LEARNING_RATE = 1500, 128, 2e-3
_MOST_BYTES = 2**26
"""Of all parameters: those of 100,000 classes are 0.4 of it."""


class Classifier(nn.Module):
    """`apply(params, x) -> Features` of images in [-1, 1]."""

    classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channel"]) -> Features:
        """The features are not negative."""
        for width in (16, 32, 64):
            x = nn.Conv(width, (3, 3), strides=2)(x)
            x = nn.swish(nn.GroupNorm(num_groups=8)(x))
        x = jnp.concatenate([jnp.mean(x, axis=(1, 2)), jnp.max(x, axis=(1, 2))], axis=-1)
        pooled = nn.relu(nn.Dense(FEATURES)(x))
        return Features(pooled, nn.Dense(self.classes)(pooled))


def train_classifier(images: ImageSet, key: Key[Array, ""]) -> Any:
    """Parameters of a `Classifier` of `images.train`, by Adam with a cosine decay to zero.

    Args:
        images: with labels.
        key: typed random key, of the parameters and the order of the data.

    Raises:
        DataError: images without labels.
    """
    if images.classes is None:
        raise DataError(f"data set {images.name!r} has no labels to train a classifier on")
    model = Classifier(images.num_classes)
    optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, _STEPS))
    init_key, order_key = jax.random.split(key)
    params = model.init(init_key, jnp.zeros((1, *images.image_shape), jnp.float32))
    seed = int(jax.random.bits(order_key, dtype=jnp.uint32))
    batches = make_iterator(
        images.train_centred, batch_size=_BATCH, seed=seed, flip=False, with_labels=True
    )

    @jax.jit
    def step(params: Any, state: Any, batch: Examples) -> tuple[Any, Any]:
        def loss(params: Any) -> Array:
            features: Any = model.apply(params, to_model_range(batch.images, 256))
            return jnp.mean(
                optax.losses.softmax_cross_entropy_with_integer_labels(
                    features.logits, batch.labels
                )
            )

        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to its integer count
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(_STEPS):
        pictures, labels = next(batches)
        params, state = step(params, state, Examples(to_bytes(pictures, images.levels), labels))
    return params


def classifier_network(images: ImageSet, params: Any) -> FeatureNetwork:
    """Parameters of `train_classifier` as a feature space of pictures with 256 levels.

    Raises:
        EvaluationError: parameters of another classifier, or not finite; images without labels.
    """
    _check(images.name, images.num_classes, images.image_shape, _flat(params))
    return _network(images.name, images.num_classes, params)


def stored_network(path: Path, image_shape: tuple[int, int, int]) -> FeatureNetwork:
    """The classifier in a file as a feature space, without the images that it was trained on.

    Args:
        path: of a file of `save_classifier`.
        image_shape: (height, width, channel) of the images that are to be compared.

    Raises:
        EvaluationError: as in `load_classifier` and `classifier_network`.
    """
    params, dataset = _load(path)[:2]
    flat = _flat(params)
    logits = flat.get("params/Dense_1/kernel")
    classes = logits.shape[-1] if logits is not None and logits.ndim else 0
    _check(dataset, classes, image_shape, flat)
    return _network(dataset, classes, params)


def _network(dataset: str, classes: int, params: Any) -> FeatureNetwork:
    return FeatureNetwork(
        name=f"{dataset} classifier",
        identity=arrays_digest(_flat(params)),
        dim=FEATURES,
        classes=classes,
        apply=jax.tree_util.Partial(_compiled(Classifier(classes)), params),
    )


@functools.cache
def _compiled(model: Classifier) -> Callable[[Any, Array], Features]:
    @jax.jit
    def apply(params: Any, pictures: UInt8[Array, "batch height width channel"]) -> Any:
        return model.apply(params, to_model_range(pictures, 256))

    return apply


def accuracy(network: FeatureNetwork, images: ImageSet, batch_size: int = 500) -> float:
    """Share of the held-out images that the network classifies correctly."""
    right = 0
    for pictures, labels in in_batches(images.held_out, batch_size):
        logits = np.asarray(network.apply(jnp.asarray(to_bytes(pictures, images.levels))).logits)
        right += int(np.sum(np.argmax(logits, axis=-1) == labels))
    return right / len(images.held_out)


def save_classifier(path: Path, params: Any, *, images: str = "", dataset: str = "") -> None:
    """Writes parameters as an .npz with their SHA-256, either completely or not at all.

    Args:
        path: of the file.
        params: of a `Classifier`.
        images: what it was trained on, in any words that `load_classifier` compares.
        dataset: name of the data set, which names the features in results.
    """
    about = {"images": np.array(images), "dataset": np.array(dataset)}
    save_npz(path, _flat(params) | about)


def load_classifier(path: Path, *, images: str | None = None) -> Any:
    """The parameters that `save_classifier` wrote.

    Args:
        path: of the file.
        images: what it has to have been trained on; by default anything.

    Raises:
        EvaluationError: no such file, a damaged or an altered one, or something else.
    """
    params, _, trained_on = _load(path)
    if images is not None and trained_on != images:
        raise EvaluationError(
            f"the classifier {str(path)!r} was trained on other images, {trained_on}, and this run"
            f" on {images}"
        )
    return params


def _load(path: Path) -> tuple[Any, str, str]:
    """The parameters, the name of the data set, and what else says what they were trained on."""
    where = f"the classifier {str(path)!r}"
    try:
        stored, intact = load_npz(path, most_bytes=_MOST_BYTES)
        trained_on = stored.pop("images", np.array("")).item()
        dataset = stored.pop("dataset", np.array("")).item()
        params = unflatten_dict(stored, sep="/")
    except FileNotFoundError:
        raise EvaluationError(f"{where} does not exist") from None
    except Exception as error:  # damage shows as whatever zipfile or numpy raises
        raise EvaluationError(
            f"{where} cannot be read ({first_line(error)}); it has to be a classifier.npz that"
            " ddpm-jax evaluate wrote"
        ) from error
    if not intact:
        raise EvaluationError(
            f"{where} has been altered: its SHA-256 differs; take a file that ddpm-jax evaluate"
            " wrote"
        )
    return params, dataset, trained_on


def _check(
    dataset: str, classes: int, image_shape: tuple[int, ...], flat: Mapping[str, np.ndarray]
) -> None:
    """Raises EvaluationError unless these are parameters of a `Classifier` of such images."""
    refused = (
        f"the classifier does not fit {dataset!r}, which has {classes} classes of"
        f" images {'x'.join(map(str, image_shape))}"
    )
    if classes < 1:  # initializers divide by the size of an array
        raise EvaluationError(refused)
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    expected = jax.eval_shape(Classifier(classes).init, jax.random.key(0), x)
    wanted, given = _kinds(flatten_dict(expected, sep="/")), _kinds(flat)
    for name in sorted(wanted.keys() | given.keys()):
        here, there = given.get(name, "absent"), wanted.get(name, "absent")
        if here != there:
            raise EvaluationError(f"{refused}: {name} is {here} in it, and has to be {there}")
        if not np.isfinite(flat[name]).all():
            raise EvaluationError(f"the classifier is damaged: {name} is not finite everywhere")


def _kinds(flat: Mapping[str, Any]) -> dict[str, str]:
    """Dtype and shape of each array."""
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in flat.items()}


def _flat(params: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep="/").items()}
