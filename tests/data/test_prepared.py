"""Data sets of TensorFlow Datasets, prepared here as array_record and read without TensorFlow."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from imagery import (
    all_of,
    as_png,
    examples,
    one_sentence,
    open_prepared,
    opened,
    prepare,
    random_images,
    rows,
    shape_of,
)

from ddpm_jax import config
from ddpm_jax.data import DataError, Preparation


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
    assert shape_of(config.TensorFlowDataset("downsampled_imagenet/64x64", str(tmp_path))) == (
        64,
        64,
        3,
    )
    assert shape_of(
        config.TensorFlowDataset("downsampled_imagenet/32x32:2.0.0", str(tmp_path))
    ) == (32, 32, 3)


@pytest.mark.parametrize("memory_gb", [1.0, 0.0])
def test_grey_images_come_back_pixel_by_pixel(prepared, monkeypatch, memory_gb):
    grey = random_images(25, 8, 8, 1)
    found = open_prepared("tiny_grey", prepared, memory_gb=memory_gb)
    assert (found.levels, found.image_shape) == (256, (8, 8, 1))
    assert (found.classes, found.splits) == (("0", "1", "2"), ("train", "test"))
    assert found.train.in_memory == (memory_gb > 0)
    assert rows(*all_of(found.train)) == rows(grey[:20], np.arange(20) % 3)
    assert rows(*all_of(found.held_out)) == rows(grey[20:], (np.arange(5) + 2) % 3)
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    again = open_prepared("tiny_grey:1.0.0").train
    for one, other in zip(all_of(again), all_of(found.train), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("memory_gb", [1.0, 0.0])
def test_colour_images_come_back_and_validation_is_held_out(prepared, monkeypatch, memory_gb):
    from ddpm_jax.data import encoded

    monkeypatch.setattr(encoded, "_AT_ONCE", 7)  # 20 is no multiple
    colour = random_images(24, 8, 6, 3)
    found = open_prepared("tiny_colour", prepared, memory_gb=memory_gb)
    assert (found.image_shape, found.splits) == ((8, 6, 3), ("train", "validation"))
    assert rows(*all_of(found.train)) == rows(colour[:20], np.arange(20) % 3)
    assert rows(*all_of(found.held_out)) == rows(colour[20:], (np.arange(4) + 1) % 3)


def test_images_are_prepared_as_those_of_a_folder(prepared):
    preparation = {"grey": True, "size": 6, "pad": 8}
    data = config.TensorFlowDataset("tiny_colour", str(prepared))
    found = opened(data, **preparation, crop=7)
    assert found.image_shape == (7, 7, 1)
    assert shape_of(
        config.TensorFlowDataset("tiny_colour", str(prepared)), **preparation, crop=7
    ) == (7, 7, 1)
    by_hand = Preparation(**preparation).of_array(random_images(24, 8, 6, 3)[:20])
    assert rows(*all_of(found.train)) == rows(by_hand, np.arange(20) % 3)


def test_a_tenth_is_held_out_where_there_is_one_split(tmp_path):
    # As `celeb_a_hq` has it: no image twice, none left out, and the same however they are read.
    grey = random_images(25, 8, 8, 1)
    prepare(tmp_path, "single", {"train": examples(grey)}, shape=(8, 8, 1))
    found = open_prepared("single", tmp_path)
    assert found.splits == ("train[10%:]", "train[:10%]")
    assert (len(found.train), len(found.held_out)) in ((23, 2), (22, 3))
    both = [all_of(part) for part in (found.train, found.held_out)]
    images, labels = map(np.concatenate, zip(*both, strict=True))
    assert rows(images, labels) == rows(grey, np.arange(25) % 3)
    as_read = open_prepared("single", tmp_path, memory_gb=0.0)
    assert not as_read.held_out.in_memory
    np.testing.assert_array_equal(all_of(as_read.held_out)[0], both[1][0])


def test_reading_imports_no_tensorflow_and_makes_no_noise(prepared):
    program = (
        "import sys\n"
        "from ddpm_jax import config\n"
        "data = config.TensorFlowDataset('tiny_grey')\n"
        "assert len(config.load_images(data, config.Standard()).train) == 20\n"
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
    found = open_prepared("bare", tmp_path)
    assert (found.classes, found.train.labelled, found.held_out.labelled) == (None, False, False)
    assert all_of(found.train).labels is None

    secret = [{"image": as_png(image), "label": -1} for image in grey]
    prepare(tmp_path, "secret", {"train": examples(grey), "test": secret}, shape=(8, 8, 1))
    found = open_prepared("secret", tmp_path)
    assert sorted(all_of(found.train).labels) == [0, 0, 1, 2]
    assert (found.classes, found.held_out.labelled) == (None, False)


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
            open_prepared(name, (directory))
        command = f"`ddpm-jax data prepare {name} --dir {directory}`"
        one_sentence(caught, repr(name), command, "--data.dir", "TFDS_DATA_DIR")


@pytest.mark.usefixtures("offline")
def test_an_unknown_name_is_told_the_nearest(tmp_path):
    for wrong, right in {"cifar01": "'cifar10'", "fashion-mnist": "'fashion_mnist'"}.items():
        with pytest.raises(DataError) as caught:
            open_prepared(wrong, (tmp_path))
        one_sentence(caught, repr(wrong), str(tmp_path), f"did you mean {right}")
    with pytest.raises(DataError) as caught:
        open_prepared("zzzzzzzz", tmp_path)
    one_sentence(
        caught, "'zzzzzzzz'", str(tmp_path), "--data folder --data.path PATH", "--data.dir"
    )
    for malformed in ("Foo Bar", "", "huggingface:x"):
        with pytest.raises(DataError) as caught:
            open_prepared(malformed, (tmp_path))
        one_sentence(caught, repr(malformed), str(tmp_path))


def refused(name, directory, *parts):
    with pytest.raises(DataError) as caught:
        open_prepared(name, (directory))
    one_sentence(caught, f"data set {name!r} in {directory}", *parts)


def test_data_sets_that_do_not_fit_are_refused(tmp_path):
    import tensorflow_datasets as tfds

    grey = random_images(4, 8, 8, 1)
    colour, small = random_images(4, 8, 8, 3), random_images(2, 6, 8, 3)
    prepare(tmp_path, "lonely", {"train": examples(grey)}, shape=(8, 8, 1))
    refused("lonely", tmp_path, "no images in the split 'validation'", "{'train': 4}")
    prepare(tmp_path, "no_train", {"test": examples(grey)}, shape=(8, 8, 1))
    refused("no_train", tmp_path, "no images in the split 'train'", "{'test': 4}")

    prepare(tmp_path, "mixed", {"train": examples([*colour, *small]), "test": examples(colour)})
    with pytest.raises(DataError) as caught:
        open_prepared("mixed", tmp_path)
    one_sentence(
        caught, "of split 'train' of data set 'mixed' is ", "and others are", "--preparation.size"
    )
    found = open_prepared("mixed", tmp_path, size=6)
    assert (len(found.train), found.image_shape) == (6, (6, 6, 3))

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
    refused("empty", tmp_path, "no images in the split 'test'", "'test': 0")

    edit(fresh("other") / "dataset_info.json", '"array_record"', '"tfrecord"')
    refused("other", tmp_path, "format tfrecord", "only tensorflow reads", "--overwrite")

    (shard,) = fresh("gone").glob("*train*")
    shard.unlink()
    refused("gone", tmp_path, "cannot be read in split 'train'", "data prepare gone", "--overwrite")

    (shard,) = fresh("cut").glob("*train*")
    shard.write_bytes(shard.read_bytes()[:100])
    refused("cut", tmp_path, "cannot be read in split 'train'", "data prepare cut", "--overwrite")

    (fresh("garbled") / "dataset_info.json").write_text("{")
    refused("garbled", tmp_path, "cannot be opened", "data prepare garbled", "--overwrite")
