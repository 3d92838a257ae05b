import collections
import hashlib
import io
import json
import math
import os
import pathlib
import socket
import subprocess
import sys
import time
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from sklearn.datasets import load_digits

from ddpm_jax.data import (
    DataError,
    ImageSet,
    image_shape,
    load,
    make_iterator,
    to_levels,
    to_model_range,
)


def one_sentence(caught: pytest.ExceptionInfo, *parts: str) -> None:
    """The message is one line and says each of the parts."""
    message = str(caught.value)
    assert "\n" not in message, message
    for part in parts:
        assert part in message, message


# Scaling


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_scaling_is_the_formula_and_its_inverse_is_exact(levels):
    grid = np.arange(levels, dtype=np.uint8)
    scaled = jax.jit(lambda u: to_model_range(u, levels))(jnp.asarray(grid))
    exact = np.array([float(2 * Fraction(u, levels - 1) - 1) for u in range(levels)])
    assert scaled.dtype == jnp.float32
    np.testing.assert_allclose(np.float64(scaled), exact, rtol=2.0**-23, atol=0)
    np.testing.assert_array_equal(to_model_range(grid, levels), scaled)  # the same without jit
    assert (float(scaled[0]), float(scaled[-1])) == (-1.0, 1.0)
    np.testing.assert_array_equal(jax.jit(lambda x: to_levels(x, levels))(scaled), grid)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_to_levels_is_the_nearest_level_clipped(levels):
    x = np.random.default_rng(1).uniform(-1.3, 1.3, 5000)
    grid = 2.0 * np.arange(levels) / (levels - 1) - 1.0
    distance = np.abs(x[:, None] - grid)
    clear = np.diff(np.sort(distance, axis=1)[:, :2], axis=1)[:, 0] > 1e-6  # no ties in float32
    found = to_levels(jnp.asarray(x, jnp.float32), levels)
    assert found.dtype == jnp.uint8
    np.testing.assert_array_equal(np.asarray(found)[clear], distance.argmin(axis=1)[clear])


@pytest.mark.usefixtures("without_annotation_checks")
def test_scaling_refuses_what_is_not_grey_levels():
    with pytest.raises(DataError) as caught:
        to_model_range(jnp.zeros((2, 2)), 256)
    one_sentence(caught, "images has dtype float32", "uint8", "0 to 255")
    with pytest.raises(DataError) as caught:
        to_model_range([1, 2], 256)
    one_sentence(caught, "images is a list", "array")
    for levels in (1, 257):
        with pytest.raises(DataError) as caught:
            to_model_range(np.zeros(2, np.uint8), levels)
        one_sentence(caught, f"levels is {levels}", "2 to 256")
    with pytest.raises(TypeError) as caught:
        to_levels(jnp.zeros(2, jnp.int32), 256)
    one_sentence(caught, "x has dtype int32", "floating point")


# Sets of images

GOOD = np.zeros((3, 4, 5, 1), np.uint8)
ONE_TOO_BRIGHT = GOOD.copy()
ONE_TOO_BRIGHT[1, 2, 3, 0] = 17
LABELS = np.array([0, 1, 2])


@pytest.mark.usefixtures("without_annotation_checks")
@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"train": GOOD.astype(np.float32)}, ["train has dtype float32", "uint8", "0 to 16"]),
        ({"train": GOOD.tolist()}, ["train is a list", "array"]),
        ({"held_out": GOOD[..., 0]}, ["held_out has shape (3, 4, 5)", "channel axis"]),
        ({"train": GOOD[:0]}, ["train has shape (0, 4, 5, 1)", "at least one"]),
        ({"train": np.repeat(GOOD, 4, axis=3)}, ["train has 4 channels", "1 (grey) or 3 (RGB)"]),
        ({"train": ONE_TOO_BRIGHT}, ["train[1, 2, 3, 0] is 17", "levels = 17", "0 to 16"]),
        ({"levels": 300}, ["levels is 300", "2 to 256"]),
        ({"held_out": GOOD[:, :3]}, ["held_out", "(3, 5, 1)", "(4, 5, 1)", "the same"]),
        ({"train_labels": LABELS * 1.0}, ["train_labels has dtype float64", "integers"]),
        ({"train_labels": LABELS[:2]}, ["train_labels has shape (2,)", "(3,)"]),
        ({"held_out_labels": 1 - LABELS}, ["held_out_labels[2] is -1", "0 or more"]),
    ],
)
def test_an_image_set_is_checked_when_it_is_made(change, parts):
    arguments = {"train": GOOD, "held_out": GOOD, "levels": 17}
    with pytest.raises(DataError) as caught:
        ImageSet("grey", **(arguments | change))
    one_sentence(caught, *parts)


def test_an_image_set_knows_its_shape():
    black = ImageSet("grey", GOOD, GOOD, 17, train_labels=LABELS, held_out_labels=LABELS)
    assert black.image_shape == (4, 5, 1)


# Digits


def test_digits_are_all_of_sklearns_once():
    digits, original = load("digits"), load_digits()
    assert (len(digits.train), len(digits.held_out), digits.levels) == (1437, 360, 17)
    assert digits.train.dtype == digits.held_out.dtype == np.uint8

    def count(images, labels):
        pixels = np.asarray(images, np.float64).reshape(len(images), 64)
        return collections.Counter(
            (row.tobytes(), int(label)) for row, label in zip(pixels, labels, strict=True)
        )

    ours = count(digits.train, digits.train_labels) + count(digits.held_out, digits.held_out_labels)
    assert ours == count(original.images, original.target)
    assert (digits.train.min(), digits.train.max()) == (0, 16)


def test_the_split_of_the_published_numbers_never_changes():
    # NumPy does not promise `permutation` for ever; published numbers need this one.
    held_out = load("digits").held_out
    assert hashlib.sha256(held_out.tobytes()).hexdigest()[:16] == "fe6e2083756fdae8"


# Batches

WIDE = 200  # the right pixel of every numbered image


def numbered(n: int) -> np.ndarray:
    """n images [1, 2, 1]: their number on the left, 200 on the right."""
    return np.stack([np.arange(n), np.full(n, WIDE)], axis=1).reshape(n, 1, 2, 1).astype(np.uint8)


def numbers(batch: np.ndarray) -> np.ndarray:
    return batch.min(axis=(1, 2, 3))


def flipped(batch: np.ndarray) -> np.ndarray:
    return batch[:, 0, 0, 0] == WIDE


def stream(n, places, *, batch_size, process_count=1, seed=0, flip=False):
    """The first `places` images of the whole stream, the processes' shares joined in order."""
    shares = [
        make_iterator(
            numbered(n),
            batch_size=batch_size,
            seed=seed,
            flip=flip,
            process_index=index,
            process_count=process_count,
        )
        for index in range(process_count)
    ]
    batches = [next(share) for _ in range(math.ceil(places / batch_size)) for share in shares]
    assert all(batch.shape == (batch_size // process_count, 1, 2, 1) for batch in batches)
    assert all(batch.dtype == np.uint8 for batch in batches)
    return np.concatenate(batches)[:places]


@pytest.mark.parametrize("process_count", [1, 2, 3])
@pytest.mark.parametrize(("n", "batch_size"), [(12, 6), (50, 12), (7, 18)])
def test_every_epoch_holds_every_image_once(n, batch_size, process_count):
    # 12 = 2 batches; 50 leaves a remainder for batches and processes alike; 7 is below a batch.
    seen = numbers(stream(n, 8 * n, batch_size=batch_size, process_count=process_count))
    for epoch in seen.reshape(8, n):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n))


@pytest.mark.parametrize("process_count", [2, 3])
def test_processes_share_the_batches_that_one_would_make(process_count):
    whole = stream(50, 240, batch_size=12, flip=True)
    shared = stream(50, 240, batch_size=12, flip=True, process_count=process_count)
    np.testing.assert_array_equal(shared, whole)


def test_processes_hold_different_images():
    shares = [
        make_iterator(
            numbered(50), batch_size=48, seed=3, flip=False, process_index=i, process_count=3
        )
        for i in range(3)
    ]
    first = [set(numbers(next(share)).tolist()) for share in shares]
    assert [len(share) for share in first] == [16, 16, 16]
    assert len(set.union(*first)) == 48


def test_order_depends_on_seed_and_epoch_alone():
    epochs = {
        seed: numbers(stream(50, 200, batch_size=25, seed=seed)).reshape(4, 50) for seed in (0, 1)
    }
    every = [tuple(epoch) for seed in epochs for epoch in epochs[seed]]
    assert len(set(every)) == 8  # also seed 0 in epoch 1 is not seed 1 in epoch 0
    assert tuple(range(50)) not in every
    again = numbers(stream(50, 200, batch_size=10, seed=1))  # whatever the batch size
    np.testing.assert_array_equal(again, epochs[1].ravel())


def test_the_shuffle_is_uniform():
    # Which image comes first, and which follows image 0 (chi-square, significance 0.001, n = 3000).
    seen = numbers(stream(8, 8 * 3000, batch_size=800)).reshape(3000, 8)
    first = np.bincount(seen[:, 0], minlength=8)
    assert ((first - 375) ** 2 / 375).sum() < 24.32  # 7 degrees of freedom
    rows, places = np.nonzero(seen[:, :-1] == 0)
    after = np.bincount(seen[rows, places + 1], minlength=8)[1:]
    expected = len(rows) / 7
    assert ((after - expected) ** 2 / expected).sum() < 22.46  # 6 degrees of freedom


def test_flips_mirror_left_to_right_half_of_the_time():
    places = 2000
    seen = stream(50, places, batch_size=40, flip=True)
    flips = flipped(seen)
    # Binomial(2000, 1/2) at significance 0.001: 3.29 standard deviations of 22.4.
    assert abs(int(flips.sum()) - places // 2) < 74
    by_image = np.array([flips[numbers(seen) == image] for image in range(50)])  # [50, 40 epochs]
    per_image = by_image.sum(axis=1)
    assert per_image.min() > 0  # no image is always or never flipped
    assert per_image.max() < 40
    assert not flipped(stream(50, places, batch_size=40)).any()

    square = np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1)
    batch = next(make_iterator(square, batch_size=20, seed=0, flip=True))
    kinds = {tuple(image.ravel().tolist()) for image in batch}
    assert kinds == {(0, 1, 2, 3), (1, 0, 3, 2)}


def test_flips_do_not_change_the_order():
    np.testing.assert_array_equal(
        numbers(stream(50, 120, batch_size=12, flip=True)), numbers(stream(50, 120, batch_size=12))
    )


@pytest.mark.parametrize("handed_out", [0, 1, 3, 4, 9])
def test_resume_gives_the_same_batches(handed_out):
    # 50 images in batches of 12: batch 4 crosses into the second epoch, 8 into the third.
    def fresh(**processes):
        return make_iterator(numbered(50), batch_size=12, seed=5, flip=True, **processes)

    batches = fresh()
    for _ in range(handed_out):
        next(batches)
    time.sleep(0.02)  # lets the thread read ahead of what was handed out
    state = json.loads(json.dumps(batches.get_state()))
    expected = [next(batches) for _ in range(12)]

    resumed = fresh()
    next(resumed)  # not even a used iterator remembers
    resumed.set_state(state)
    assert resumed.get_state() == state
    np.testing.assert_array_equal([next(resumed) for _ in range(12)], expected)
    batches.set_state(state)  # back
    np.testing.assert_array_equal([next(batches) for _ in range(12)], expected)

    shares = [fresh(process_index=i, process_count=3) for i in range(3)]
    for share in shares:
        share.set_state(state)
    joined = [np.concatenate([next(share) for share in shares]) for _ in range(12)]
    np.testing.assert_array_equal(joined, expected)


def test_a_batch_belongs_to_whoever_gets_it():
    images = numbered(6)
    batches = make_iterator(images, batch_size=6, seed=0, flip=False)
    next(batches)[:] = 0
    np.testing.assert_array_equal(images, numbered(6))


def test_a_state_of_another_stream_is_refused():
    def fresh(**change):
        arguments = {"batch_size": 4, "seed": 0, "flip": False} | change
        return make_iterator(numbered(8), **arguments)

    state = fresh().get_state()
    for name, value in {"batch_size": 2, "seed": 1, "flip": True}.items():
        with pytest.raises(DataError) as caught:
            fresh(**{name: value}).set_state(state)
        one_sentence(caught, f"{name} = {state[name]}", f"has {value}", "repeated or skipped")
    with pytest.raises(DataError) as caught:
        make_iterator(numbered(9), batch_size=4, seed=0, flip=False).set_state(state)
    one_sentence(caught, "num_images = 8", "has 9")
    with pytest.raises(DataError) as caught:
        fresh().set_state({"next_index": 3})
    one_sentence(caught, "['next_index']", "get_state")
    for batches in (-1, "3", None):
        with pytest.raises(DataError) as caught:
            fresh().set_state(state | {"batches": batches})
        one_sentence(caught, f"state['batches'] is {batches!r}", "0 or more")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"batch_size": 0}, ["batch_size is 0", "1 or more"]),
        ({"process_count": 0}, ["process_count is 0", "1 or more"]),
        ({"batch_size": 10, "process_count": 4}, ["batch_size is 10", "count = 4", "such as 12"]),
        ({"process_index": 2, "process_count": 2}, ["process_index is 2", "0 to 1"]),
        ({"process_index": -1}, ["process_index is -1", "0 to 0"]),
        ({"seed": -1}, ["seed is -1", "0 to 4294967295"]),
        ({"seed": 2**32}, ["seed is 4294967296", "0 to 4294967295"]),
    ],
)
def test_arguments_of_the_stream_are_checked(change, parts):
    with pytest.raises(DataError) as caught:
        make_iterator(numbered(8), **({"batch_size": 4, "seed": 0, "flip": False} | change))
    one_sentence(caught, *parts)


@pytest.mark.usefixtures("without_annotation_checks")
def test_a_stream_is_of_uint8_images():
    with pytest.raises(DataError) as caught:
        make_iterator(np.zeros((8, 1, 2, 1)), batch_size=4, seed=0, flip=False)
    one_sentence(caught, "images has dtype float64", "uint8")


# Data sets of TensorFlow Datasets, prepared here as array_record without TensorFlow


def random_images(n, *shape):
    return np.random.default_rng(n).integers(0, 256, (n, *shape), dtype=np.uint8)


def as_png(image):
    file = io.BytesIO()
    PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "png")
    file.seek(0)
    return file


def prepare(directory, name, splits, *, features=None, shape=(None, None, 3)):
    """Writes a data set of `splits`, each a list of examples, as `tfds build` would."""
    import tensorflow_datasets as tfds

    features = features or {
        "image": tfds.features.Image(shape=shape),
        "label": tfds.features.ClassLabel(num_classes=3),
    }

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split):
            yield from enumerate(splits[split])

    Prepared.name = name
    Prepared(data_dir=directory, file_format="array_record").download_and_prepare()


def examples(images, first_label=0):
    return [
        {"image": as_png(image), "label": (first_label + i) % 3} for i, image in enumerate(images)
    ]


def rows(images, labels):
    """A multiset of (pixels, label): tfds shuffles records when it writes them."""
    return collections.Counter(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    grey, colour = random_images(25, 8, 8, 1), random_images(24, 8, 6, 3)
    prepare(
        directory,
        "tiny_grey",
        {"train": examples(grey[:20]), "test": examples(grey[20:], 2)},
        shape=(8, 8, 1),
    )
    prepare(
        directory,
        "tiny_colour",
        {"train": examples(colour[:20]), "validation": examples(colour[20:], 1)},
    )
    return directory


def test_a_size_that_is_in_the_name_alone(tmp_path):
    # The data set declares images of any size, and need not be there.
    assert image_shape("downsampled_imagenet/64x64", str(tmp_path)) == (64, 64, 3)
    assert image_shape("downsampled_imagenet/32x32:2.0.0", str(tmp_path)) == (32, 32, 3)


def test_grey_images_come_back_pixel_by_pixel(prepared, monkeypatch):
    grey = random_images(25, 8, 8, 1)
    found = load("tiny_grey", str(prepared))
    assert (found.levels, found.image_shape) == (256, (8, 8, 1))
    assert rows(found.train, found.train_labels) == rows(grey[:20], np.arange(20) % 3)
    assert rows(found.held_out, found.held_out_labels) == rows(grey[20:], (np.arange(5) + 2) % 3)
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    np.testing.assert_array_equal(load("tiny_grey:1.0.0").train, found.train)


def test_colour_images_come_back_and_validation_is_held_out(prepared, monkeypatch):
    from ddpm_jax.data import prepared as reader

    monkeypatch.setattr(reader, "_READ_AT_ONCE", 7)  # 20 is no multiple
    colour = random_images(24, 8, 6, 3)
    found = load("tiny_colour", str(prepared))
    assert found.image_shape == (8, 6, 3)
    assert rows(found.train, found.train_labels) == rows(colour[:20], np.arange(20) % 3)
    assert rows(found.held_out, found.held_out_labels) == rows(colour[20:], (np.arange(4) + 1) % 3)


def test_reading_imports_no_tensorflow_and_makes_no_noise(prepared):
    program = (
        "import sys\n"
        "from ddpm_jax.data import load\n"
        "assert load('tiny_grey').train.shape == (20, 8, 8, 1)\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=os.environ | {"TFDS_DATA_DIR": str(prepared)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_labels_are_none_where_there_are_none_or_withheld(tmp_path):
    import tensorflow_datasets as tfds

    grey = random_images(4, 8, 8, 1)
    bare = [{"image": as_png(image)} for image in grey]
    prepare(
        tmp_path,
        "bare",
        {"train": bare[:3], "test": bare[3:]},
        features={"image": tfds.features.Image(shape=(8, 8, 1))},
    )
    found = load("bare", str(tmp_path))
    assert found.train_labels is None
    assert found.held_out_labels is None

    secret = [{"image": as_png(image), "label": -1} for image in grey]
    prepare(tmp_path, "secret", {"train": examples(grey), "test": secret}, shape=(8, 8, 1))
    found = load("secret", str(tmp_path))
    assert sorted(found.train_labels) == [0, 0, 1, 2]
    assert found.held_out_labels is None


@pytest.fixture
def offline(monkeypatch):
    def connect(*_):
        raise AssertionError("tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("there", [True, False])
def test_a_data_set_that_is_not_prepared_is_told_how_to_be(tmp_path, there):
    directory = tmp_path if there else tmp_path / "nowhere"
    for name in ("cifar10", "mnist:3.0.1", "downsampled_imagenet/64x64"):
        with pytest.raises(DataError) as caught:
            load(name, str(directory))
        command = f"tfds build {name} --file_format=array_record --data_dir={directory}"
        one_sentence(caught, repr(name), command, "tensorflow", "--data.dir", "TFDS_DATA_DIR")


@pytest.mark.usefixtures("offline")
def test_an_unknown_name_is_told_the_nearest(tmp_path):
    for wrong, right in {"cifar01": "'cifar10'", "fashion-mnist": "'fashion_mnist'"}.items():
        with pytest.raises(DataError) as caught:
            load(wrong, str(tmp_path))
        one_sentence(caught, repr(wrong), str(tmp_path), f"did you mean {right}")
    with pytest.raises(DataError) as caught:
        load("zzzzzzzz", str(tmp_path))
    one_sentence(caught, "'zzzzzzzz'", str(tmp_path), "'digits' is built in", "--data.dir")
    for malformed in ("Foo Bar", "", "huggingface:x"):
        with pytest.raises(DataError) as caught:
            load(malformed, str(tmp_path))
        one_sentence(caught, repr(malformed), str(tmp_path))
    with pytest.raises(DataError) as caught:
        load("digit", str(tmp_path))
    one_sentence(caught, "did you mean 'digits'")


def refused(name, directory, *parts):
    with pytest.raises(DataError) as caught:
        load(name, str(directory))
    one_sentence(caught, f"data set {name!r} in {directory}", *parts)


def test_data_sets_that_do_not_fit_are_refused(tmp_path):
    import tensorflow_datasets as tfds

    grey = random_images(4, 8, 8, 1)
    colour, small = random_images(4, 8, 8, 3), random_images(2, 6, 8, 3)
    prepare(tmp_path, "lonely", {"train": examples(grey)}, shape=(8, 8, 1))
    refused("lonely", tmp_path, "no images in split 'validation'", "{'train': 4}")
    prepare(tmp_path, "no_train", {"test": examples(grey)}, shape=(8, 8, 1))
    refused("no_train", tmp_path, "no images in split 'train'", "{'test': 4}")

    prepare(tmp_path, "mixed", {"train": examples([*colour, *small]), "test": examples(colour)})
    refused("mixed", tmp_path, "several sizes", "(8, 8)", "(6, 8)", "one size")

    text = [{"text": "no picture"}]
    prepare(
        tmp_path, "words", {"train": text, "test": text}, features={"text": tfds.features.Text()}
    )
    refused("words", tmp_path, "features ['text']", "'image'")

    clear = examples(random_images(2, 8, 8, 4))
    prepare(tmp_path, "clear", {"train": clear, "test": clear}, shape=(8, 8, 4))
    refused("clear", tmp_path, "4 channels in uint8", "1 (grey) or 3 (RGB)")


def test_empty_splits_other_formats_and_damage_are_told(tmp_path):
    def fresh(name):
        grey = random_images(6, 8, 8, 1)
        prepare(
            tmp_path,
            name,
            {"train": examples(grey[:4]), "test": examples(grey[4:])},
            shape=(8, 8, 1),
        )
        return tmp_path / name / "1.0.0"

    def edit(path: pathlib.Path, old: str, new: str):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    edit(fresh("empty") / "dataset_info.json", '"2"', '"0"')
    refused("empty", tmp_path, "no images in split 'test'", "'test': 0")

    edit(fresh("other") / "dataset_info.json", '"array_record"', '"tfrecord"')
    refused("other", tmp_path, "format tfrecord", "--file_format=array_record", "--overwrite")

    (shard,) = fresh("gone").glob("*train*")
    shard.unlink()
    refused("gone", tmp_path, "cannot be read in split 'train'", "tfds build gone", "--overwrite")

    (shard,) = fresh("cut").glob("*train*")
    shard.write_bytes(shard.read_bytes()[:100])
    refused("cut", tmp_path, "cannot be read in split 'train'", "tfds build cut", "--overwrite")

    (fresh("garbled") / "dataset_info.json").write_text("{")
    refused("garbled", tmp_path, "cannot be opened", "tfds build garbled", "--overwrite")
