"""Statistics of samples beside a data set, the classifier they are taken with, and neighbours."""

import dataclasses
import io
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from ddpm_jax import parallel
from ddpm_jax.data import Arrays, DataError, ImageSet, read_digits, to_bytes
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
from ddpm_jax.experiment import metrics

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
    return metrics.make_space(images, NETWORK, MESH, 16)


def of(space, images, samples):
    return {score.name: score for score in metrics.scores(space, images, [samples], MESH, 24)}


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
    for score in metrics.scores(space, images, [images.held_out.images], MESH, 40):
        # Other batches: float32 sums in the network may be taken in another order.
        assert score.value == pytest.approx(score.held_out, rel=1e-5), score.name


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


def spreads(space, images, samples):
    found = metrics.scores(space, images, [samples], MESH, 24)
    return {score.name.split(",")[0]: score.spread for score in found}


@pytest.mark.thorough
def test_a_spread_that_is_zero_by_construction_is_not_shown(space, images):
    # Of 10 to 19 samples in ten splits, some splits have one: its score is 1 in any case.
    for count in (10, 19):
        assert spreads(space, images, noise(count, 2))["classifier score"] is None
    assert spreads(space, images, noise(20, 2))["classifier score"] > 0.0
    # Every subset is the whole of both sets.
    few = dataclasses.replace(images, train=Arrays(noise(12, 0), levels=17))
    small = metrics.make_space(few, NETWORK, MESH, 16)
    assert spreads(small, few, noise(12, 2))["kernel distance"] is None
    assert spreads(small, few, noise(11, 2))["kernel distance"] > 0.0


def test_one_split_has_no_deviation():
    logits = np.random.default_rng(0).standard_normal((19, 4)).astype(np.float32)
    for splits, known in [(1, False), (10, False), (19, False), (9, True)]:
        assert (inception_score(logits, splits).standard_deviation is not None) == known


@pytest.mark.thorough
@pytest.mark.parametrize(("train", "held_out"), [(2, 1), (3, 1), (3, 2), (4, 3)])
def test_sets_of_few_images_have_the_floors_that_few_can_have(images, train, held_out):
    few = dataclasses.replace(
        images,
        train=Arrays(noise(train, 0), levels=17),
        held_out=Arrays(noise(held_out, 1), levels=17),
    )
    found = of(metrics.make_space(few, NETWORK, MESH, 16), few, noise(4, 2))
    distance = found["Frechet distance, five numbers, 4 samples"]
    assert np.isfinite(distance.value)
    assert (distance.held_out is not None) == (held_out >= 2)
    assert (distance.halves is not None) == (train >= 4)


def test_part_of_the_reference_is_told(images, monkeypatch):
    monkeypatch.setattr(metrics, "_NEIGHBOURHOOD", 50)
    few = metrics.make_space(images, NETWORK, MESH, 16)
    names = [score.name for score in metrics.scores(few, images, [noise(70, 2)], MESH, 30)]
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
    changed = metrics.make_space(other, NETWORK, MESH, 16).train.provenance
    assert changed.pixels_sha256 != provenance.pixels_sha256


# Neighbours


def test_nearest_training_images_by_brute_force(images, monkeypatch):
    monkeypatch.setattr(metrics, "_READ_NEAR", 7)  # in batches that cut the set anywhere
    samples = noise(12, 3)
    found = metrics.near_training_images(images, samples, shown=4, neighbours=3)
    train = images.train.images
    difference = samples[:, None].astype(float) - train[None]
    squares = np.square(difference).mean(axis=(2, 3, 4))
    order = np.argsort(squares, axis=1, kind="stable")[:, :3]
    assert found.samples == pytest.approx(np.median(np.sqrt(squares.min(axis=1))))
    np.testing.assert_array_equal(found.images[:, 0], samples[:4])
    np.testing.assert_array_equal(found.images[:, 1:], train[order[:4]])


def test_there_are_no_more_neighbours_than_training_images(images):
    few = dataclasses.replace(images, train=Arrays(noise(2, 0), levels=17))
    found = metrics.near_training_images(few, noise(3, 3), shown=3, neighbours=5)
    assert found.images.shape == (3, 1 + 2, 4, 4, 1)


def test_memorization_shows(images):
    known = metrics.near_training_images(images, images.train.images[5:30], shown=2, neighbours=1)
    assert known.samples == 0.0
    assert known.held_out > 1.0
    np.testing.assert_array_equal(known.images[:, 0], known.images[:, 1])


# The classifier


@pytest.fixture(scope="module")
def digits():
    return read_digits()


@pytest.fixture(scope="module")
def params(digits):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "_STEPS", 150)
        patch.setattr(classifier, "_BATCH", 64)
        return classifier.train_classifier(digits, jax.random.key(0))


def test_a_classifier_learns_its_classes(digits, params):
    network = classifier.classifier_network(digits, params)
    assert (network.name, network.dim, network.classes) == ("digits classifier", 64, 10)
    found = classifier.accuracy(network, digits)
    assert found > 0.9  # chance is 0.1
    by_hand = network.apply(jnp.asarray(to_bytes(digits.held_out.images, 17))).logits
    assert found == np.mean(np.argmax(np.asarray(by_hand), axis=1) == digits.held_out.labels)


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


@pytest.mark.thorough
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
    with pytest.raises(EvaluationError, match=r"does not fit .*0 classes of images 4x4x1"):
        classifier.classifier_network(images, params)
    path = tmp_path / "classifier.npz"
    with pytest.raises(EvaluationError, match="does not exist"):
        classifier.load_classifier(path)
    classifier.save_classifier(path, params)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(EvaluationError, match="cannot be read"):
        classifier.load_classifier(path)


def changed(params, change):
    flat = flatten_dict(params, sep="/")
    change(flat)
    return unflatten_dict(flat, sep="/")


LAST = "params/Dense_1/kernel"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda flat: flat.pop(LAST), f"{LAST} is absent in it"),
        (lambda flat: flat.update({LAST: flat[LAST][:, :0]}), r"is float32\[64, 0\] in it"),
        (lambda flat: flat.update({LAST: flat[LAST][None]}), r"has to be float32\[64, 10\]"),
        (lambda flat: flat.update({LAST: np.zeros((64, 10))}), r"is float64\[64, 10\] in it"),
        (lambda flat: flat.update({LAST: np.zeros((64, 10), int)}), "is int64"),
        (lambda flat: flat.update({LAST: np.full((64, 10), "a")}), "is <U1"),
        (lambda flat: flat.update({LAST: flat[LAST] * np.nan}), f"{LAST} is not finite"),
        (lambda flat: flat.update({LAST: flat[LAST].at[3, 3].set(np.inf)}), "is not finite"),
        (lambda flat: flat.update({"more": np.zeros(())}), r"more is float64\[\] in it"),
        (lambda flat: flat.clear() or flat.update({"a": np.zeros(0)}), r"is float64\[0\] in it"),
    ],
)
def test_odd_arrays_are_no_classifier(digits, params, tmp_path, change, said):
    odd = changed(params, change)
    classifier.save_classifier(tmp_path / "odd.npz", odd)
    for found in (odd, classifier.load_classifier(tmp_path / "odd.npz")):
        with pytest.raises(EvaluationError, match=said):
            classifier.classifier_network(digits, found)


def as_npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def as_npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def compressed():
    file = io.BytesIO()
    np.savez_compressed(file, a=np.zeros(10**7))
    return file.getvalue()


def of_a_huge_header():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", as_npy(np.zeros(10**4)).replace(b"(10000,)", b"(9**99,)"))
        archive.writestr("b.npy", as_npy(np.zeros(10**4)).replace(b"(10000,)", b"(99999,)"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"\0" * 1000, "cannot be read"),
        (b"PK\3\4" + b"\xff" * 100, "cannot be read"),
        (as_npy(np.zeros(3)), "cannot be read"),
        (as_npz(), "its SHA-256 differs"),
        (as_npz(a=np.zeros(3)), "its SHA-256 differs"),
        (as_npz(a=np.zeros(3), sha256=np.array("0" * 64)), "its SHA-256 differs"),
        (as_npz(a=np.zeros(3), sha256=np.zeros((2, 2))), "cannot be read"),
        (as_npz(**{"a": np.zeros(3), "a/b": np.zeros(3)}), "cannot be read"),
        (as_npz(a=np.array([{}], dtype=object)), "cannot be read"),
        (compressed(), "cannot be read .*would be"),
        (of_a_huge_header(), "cannot be read"),
    ],
    ids=range(12),
)
def test_other_files_are_no_classifier(tmp_path, content, said):
    path = tmp_path / "classifier.npz"
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match=said) as refused:
        classifier.load_classifier(path)
    assert "\n" not in str(refused.value)
    with pytest.raises(EvaluationError, match="cannot be read"):
        classifier.load_classifier(tmp_path)


def test_a_classifier_of_other_images_is_told(params, tmp_path):
    path = tmp_path / "classifier.npz"
    classifier.save_classifier(path, params, images="digits")
    classifier.load_classifier(path, images="digits")
    with pytest.raises(EvaluationError, match="on other images, digits, and this run on letters"):
        classifier.load_classifier(path, images="letters")


@pytest.mark.thorough
def test_any_byte_of_a_classifier_that_changes_is_noticed(params, tmp_path):
    path = tmp_path / "classifier.npz"
    classifier.save_classifier(path, params)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    expected = jax.tree.map(np.asarray, params)
    for place in rng.integers(0, len(whole), 100):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            found = classifier.load_classifier(path)
        except EvaluationError:
            continue
        jax.tree.map(np.testing.assert_array_equal, found, expected)  # zip has unused bytes
