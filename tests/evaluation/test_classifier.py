"""The classifier in whose features small data sets are compared, and its file."""

import io
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from ddpm_jax.data import Arrays, DataError, ImageSet, read_digits, to_bytes
from ddpm_jax.evaluation import EvaluationError, classifier


def noise(n, seed, top=17):
    return np.random.default_rng(seed).integers(0, top, (n, 4, 4, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def images():
    return ImageSet("noise", Arrays(noise(90, 0), levels=17), Arrays(noise(40, 1), levels=17), 17)


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


def test_a_file_alone_is_a_feature_space(digits, params, tmp_path):
    path = tmp_path / "classifier.npz"
    classifier.save_classifier(path, params, dataset="digits")
    alone = classifier.stored_network(path, (8, 8, 1))
    with_images = classifier.classifier_network(digits, params)
    assert alone[:4] == with_images[:4]
    with pytest.raises(EvaluationError, match="10 classes of images 8x8x3"):
        classifier.stored_network(path, (8, 8, 3))
