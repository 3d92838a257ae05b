"""Statistics of samples beside a data set, the classifier they are taken with, and neighbours."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import parallel
from ddpm_jax.data import Arrays, DataError, ImageSet, load, to_bytes
from ddpm_jax.evaluation import (
    EvaluationError,
    FeatureNetwork,
    Features,
    classifier,
    frechet_distance,
    inception_score,
    moments_of,
    precision_recall,
)
from ddpm_jax.experiment import scores

MESH = parallel.make_mesh()
WEIGHTS = np.random.default_rng(5).standard_normal((16, 5)).astype(np.float32)


def network_of(pictures):
    x = pictures.reshape(pictures.shape[0], -1).astype(jnp.float32) / 255.0
    y = jnp.tanh(x @ WEIGHTS)
    return Features(y, 3.0 * y)


NETWORK = FeatureNetwork("five numbers", "aa" * 32, 5, 5, jax.tree_util.Partial(network_of))


def noise(n, seed, top=17):
    return np.random.default_rng(seed).integers(0, top, (n, 4, 4, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def images():
    return ImageSet("noise", Arrays(noise(90, 0), levels=17), Arrays(noise(40, 1), levels=17), 17)


@pytest.fixture(scope="module")
def space(images):
    return scores.make_space(images, NETWORK, MESH, 16)


def of(space, images, samples):
    return {score.name: score for score in scores.scores(space, images, [samples], MESH, 24)}


def test_every_number_by_the_functions_that_it_is_named_after(space, images):
    samples = noise(30, 2, top=9)
    pooled, logits = network_of(to_bytes(samples, 17))
    train, _ = network_of(to_bytes(images.train.images, 17))
    pooled, train = np.asarray(pooled), np.asarray(train)
    found = of(space, images, samples)

    def value(kind):
        return found[f"{kind}, five numbers, 30 samples"].value

    expected = frechet_distance(moments_of(pooled), moments_of(train))
    assert value("Frechet distance") == pytest.approx(expected, rel=1e-6)
    precision, recall = precision_recall(pooled, train)
    assert (value("precision"), value("recall")) == (precision, recall)
    mean, _ = inception_score(np.asarray(logits))
    assert value("classifier score") == pytest.approx(mean, rel=1e-6)
    # The unbiased kernel distance by its definition, over all pairs.
    mean_of_subsets = found["kernel distance, five numbers, 30 samples"]

    def kernel(a, b):
        return (a.astype(np.float64) @ b.T.astype(np.float64) / 5 + 1) ** 3

    def off_diagonal(k):
        return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))

    whole = off_diagonal(kernel(pooled, pooled)) + off_diagonal(kernel(train, train))
    whole -= 2 * kernel(pooled, train).mean()
    assert abs(mean_of_subsets.value - whole) < 4 * mean_of_subsets.spread


def test_held_out_images_as_samples_reach_what_is_said_of_them(space, images):
    for score in scores.scores(space, images, [images.held_out.images], MESH, 40):
        assert score.value == pytest.approx(score.held_out, rel=1e-9), score.name


def test_training_images_as_samples_are_no_distance_away(space, images):
    found = of(space, images, images.train.images)
    assert found["Frechet distance, five numbers, 90 samples"].value == pytest.approx(0, abs=1e-9)
    assert found["precision, five numbers, 90 samples"].value == 1.0
    assert found["recall, five numbers, 90 samples"].value == 1.0


def test_halves_are_told_apart_by_every_other_image(space, images):
    train, _ = network_of(to_bytes(images.train.images, 17))
    halves = [moments_of(np.asarray(train)[start::2]) for start in (0, 1)]
    found = of(space, images, noise(30, 2))["Frechet distance, five numbers, 30 samples"]
    assert found.halves == pytest.approx(frechet_distance(*halves), rel=1e-6)


def test_few_samples_have_the_statistics_that_few_can_have(space, images):
    found = of(space, images, noise(3, 2))
    assert {name.split(",")[0] for name in found} == {"Frechet distance", "kernel distance"}


def test_part_of_the_reference_is_told(images, monkeypatch):
    monkeypatch.setattr(scores, "_NEIGHBOURHOOD", 50)
    few = scores.make_space(images, NETWORK, MESH, 16)
    names = [score.name for score in scores.scores(few, images, [noise(70, 2)], MESH, 30)]
    assert names == [
        "Frechet distance, five numbers, 70 samples",
        "kernel distance, five numbers, 70 samples, part of the reference",
        "precision, five numbers, 50 samples, part of the reference",
        "recall, five numbers, 50 samples, part of the reference",
        "classifier score, five numbers, 70 samples",
    ]


def test_provenance(space, images):
    provenance = space.train.provenance
    assert provenance[:3] == ("noise", "train", 90)
    assert (provenance.preprocessing, provenance.network) == ("as stored", "five numbers")
    other = dataclasses.replace(images, train=Arrays(noise(90, 0) // 2, levels=17))
    changed = scores.make_space(other, NETWORK, MESH, 16).train.provenance
    assert changed.pixels_sha256 != provenance.pixels_sha256


# Neighbours


def test_nearest_training_images_by_brute_force(images, monkeypatch):
    monkeypatch.setattr(scores, "_READ_NEAR", 7)  # in batches that cut the set anywhere
    samples = noise(12, 3)
    found = scores.near_training_images(images, samples, shown=4, neighbours=3)
    train = images.train.images
    difference = samples[:, None].astype(float) - train[None]
    squares = np.square(difference).mean(axis=(2, 3, 4))
    order = np.argsort(squares, axis=1, kind="stable")[:, :3]
    assert found.samples == pytest.approx(np.median(np.sqrt(squares.min(axis=1))))
    np.testing.assert_array_equal(found.images[:, 0], samples[:4])
    np.testing.assert_array_equal(found.images[:, 1:], train[order[:4]])


def test_memorization_shows(images):
    known = scores.near_training_images(images, images.train.images[5:30], shown=2, neighbours=1)
    assert known.samples == 0.0
    assert known.held_out > 1.0
    np.testing.assert_array_equal(known.images[:, 0], known.images[:, 1])


# The classifier


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def params(digits):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "_STEPS", 300)
        return classifier.train_classifier(digits, jax.random.key(0))


def test_a_classifier_learns_its_classes(digits, params):
    network = classifier.classifier_network(digits, params)
    assert (network.name, network.dim, network.classes) == ("digits classifier", 64, 10)
    found = classifier.accuracy(network, digits)
    assert found > 0.9  # chance is 0.1
    by_hand = network.apply(jnp.asarray(to_bytes(digits.held_out.images, 17))).logits
    assert found == np.mean(np.argmax(by_hand, axis=1) == digits.held_out.labels)


def test_it_comes_back_from_its_file_as_it_was(digits, params, tmp_path):
    path = tmp_path / "new" / "classifier.npz"
    classifier.save_classifier(path, params)
    assert [file.name for file in path.parent.iterdir()] == ["classifier.npz"]
    before = classifier.classifier_network(digits, params)
    after = classifier.classifier_network(digits, classifier.load_classifier(path))
    assert after.identity == before.identity
    pictures = jnp.asarray(to_bytes(digits.held_out.images[:20], 17))
    for one, other in zip(before.apply(pictures), after.apply(pictures), strict=True):
        np.testing.assert_array_equal(one, other)
    moved = jax.tree.map(lambda leaf: leaf + 1e-6, params)
    assert classifier.classifier_network(digits, moved).identity != before.identity


def test_training_it_again_gives_the_same_bits(digits, monkeypatch):
    monkeypatch.setattr(classifier, "_STEPS", 3)
    one, two, other = (
        classifier.classifier_network(
            digits, classifier.train_classifier(digits, jax.random.key(seed))
        ).identity
        for seed in (0, 0, 1)
    )
    assert one == two != other


def test_what_is_no_classifier_of_these_images_is_refused(images, params, tmp_path):
    with pytest.raises(DataError, match="'noise' has no labels"):
        classifier.train_classifier(images, jax.random.key(0))
    with pytest.raises(EvaluationError, match="not one of 0 classes of images 4x4x1"):
        classifier.classifier_network(images, params)
    path = tmp_path / "classifier.npz"
    with pytest.raises(EvaluationError, match="does not exist"):
        classifier.load_classifier(path)
    classifier.save_classifier(path, params)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(EvaluationError, match="cannot be read"):
        classifier.load_classifier(path)
