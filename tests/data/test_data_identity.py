"""What a data set is called and known by, wherever it is, and names that are none."""

import shutil

import numpy as np
import pytest
from imagery import (
    cats_and_dogs,
    examples,
    fill,
    one_sentence,
    open_archive,
    open_digits,
    open_folder,
    open_prepared,
    opened,
    prepare,
    random_images,
    shape_of,
    write,
)

from ddpm_jax import config
from ddpm_jax.data import Arrays, DataError, ImageSet
from ddpm_jax.experiment import image_spec_of

IMAGES = random_images(40, 4, 4, 3)
LABELS = np.arange(40) % 3


def archive(path, **changes):
    np.savez(path, **{"images": IMAGES, "labels": LABELS} | changes)
    return path


def refused(data, *parts, read=opened):
    with pytest.raises(DataError) as caught:
        read(data)
    one_sentence(caught, *parts)


# ---- paths


def test_relative_paths_are_below_the_working_directory(tmp_path, monkeypatch):
    fill(tmp_path / "data" / "mine", IMAGES)
    archive(tmp_path / "data" / "own.npz")
    absolute = open_folder(tmp_path / "data" / "mine")
    monkeypatch.chdir(tmp_path / "data")
    for path in ("mine", "./mine/", "../data/mine"):
        found = open_folder(path)
        assert (found.name, found.fingerprint) == ("mine", absolute.fingerprint)
        assert shape_of(config.Folder(path)) == (4, 4, 3)
    for path in ("own.npz", "./own.npz"):
        assert open_archive(path).name == "own"
        spec = image_spec_of(config.Config(data=config.Archive(path)))
        assert (spec.shape, spec.levels) == ((4, 4, 3), 256)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_folder("~/data/mine").fingerprint == absolute.fingerprint
    monkeypatch.chdir("mine")
    assert open_folder(".").name == "mine"


def test_a_path_that_is_not_there_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for read in (opened, shape_of):
        for data, what in ((config.Folder("mine"), "folder"), (config.Archive("mine"), "archive")):
            sentence = f"data.path is 'mine'; there is no {what} {str(tmp_path / 'mine')!r}"
            refused(data, sentence, read=read)
        refused(config.Folder("a\0b"), "cannot be read", read=read)
        refused(config.Archive("~nobody_of_this_name/x.npz"), "cannot be read", read=read)
        refused(config.Folder("x" * 5000), "cannot be read (", read=read)


# ---- fingerprints


def test_a_fingerprint_does_not_depend_on_place_name_or_memory(tmp_path):
    cats_and_dogs(tmp_path / "one", IMAGES)
    first = open_folder(tmp_path / "one").fingerprint
    assert len(bytes.fromhex(first)) == 32
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert open_folder(tmp_path / "two", memory_gb=0.0).fingerprint == first
    prepare(tmp_path, "tiny", {"train": examples(IMAGES[:20]), "test": examples(IMAGES[20:])})
    known = {
        open_prepared(name, tmp_path, memory_gb=memory).fingerprint
        for name in ("tiny", "tiny:1.0.0")
        for memory in (0.0, 1.0)
    }
    assert len(known) == 1
    assert open_prepared("tiny:1.0.0", tmp_path).name == "tiny"


def test_a_fingerprint_is_the_same_everywhere():
    assert (
        open_digits().fingerprint
        == "8eab038567b7efb982815a266be7f2e03550d27e4ffa9d509fe22615a07c773d"
    )


def test_other_images_have_another_fingerprint(tmp_path):
    known = [open_archive(archive(tmp_path / "x.npz")).fingerprint]
    pixel = IMAGES.copy()
    pixel[17, 1, 2, 0] ^= 1
    label = LABELS.copy()
    label[3] = 1
    for changes in (
        {"images": pixel},
        {"labels": label},
        {"images": IMAGES[::-1]},
        {"images": IMAGES // 8, "levels": 32},
        {"images": IMAGES // 8, "levels": 33},
        {"images": IMAGES[:39], "labels": LABELS[:39]},
        {"images": IMAGES[..., :1]},
    ):
        known.append(open_archive(archive(tmp_path / "x.npz", **changes)).fingerprint)
    known.append(open_archive(archive(tmp_path / "x.npz"), crop=3).fingerprint)
    assert len(set(known)) == len(known)
    same = open_archive(archive(tmp_path / "x.npz", labels=LABELS.astype(np.uint8)))
    assert same.fingerprint == known[0]

    root = cats_and_dogs(tmp_path / "folder", IMAGES)
    before = open_folder(root).fingerprint
    write(root / "train" / "cat" / "003.png", IMAGES[39])
    assert open_folder(root).fingerprint != before


def test_large_arrays_are_sampled(monkeypatch):
    monkeypatch.setattr("ddpm_jax.data.source._HASHED", 8 * 48)

    def fingerprint(changed):
        images = IMAGES.copy()
        images[changed] += 1
        part = Arrays(images)
        return ImageSet("x", train=part, held_out=part).fingerprint

    assert fingerprint(0) != fingerprint([]) != fingerprint(39)


# ---- names of classes


def test_names_of_classes_in_an_archive(tmp_path):
    found = open_archive(archive(tmp_path / "x.npz", class_names=["cat", "dog", "emu", "fox"]))
    assert found.classes == ("cat", "dog", "emu", "fox")
    assert found.class_counts == (12, 12, 12, 0)
    assert "'emu' 12, 'fox' 0" in found.summary()
    for names, part in (
        (["cat", "dog"], "the label 2 and 2 class_names"),
        (["cat", "dog", "cat"], "contains a name twice"),
        ([1, 2, 3], "a list of strings"),
        ("cat", "a list of strings"),
    ):
        path = archive(tmp_path / "x.npz", class_names=names)
        refused(config.Archive(str(path)), part)


# ---- names that are none


def test_paths_of_another_kind_and_names_that_are_misspelt(tmp_path):
    own = archive(tmp_path / "own.npz")
    images = fill(tmp_path / "my_images", IMAGES[:2])
    for read in (opened, shape_of):
        refused(config.Archive(str(images)), f"--data folder --data.path {images}", read=read)
        refused(config.Folder(str(own)), f"--data archive --data.path {own}", read=read)
        for name, right in {"CIFAR-10": "cifar10", "fashionmnist": "fashion_mnist"}.items():
            data = config.TensorFlowDataset(name, str(tmp_path))
            refused(data, f"did you mean {right!r}", read=read)
        for path in ("own.npz", "my_images", "./my_images", "~/nowhere"):
            data = config.TensorFlowDataset(path, str(tmp_path))
            refused(data, "take --data folder", "for an .npz file, --data archive", read=read)


def test_preparing_what_is_no_data_set(tmp_path):
    from ddpm_jax.data.prepare import prepare as prepare_by_name

    own = "folders and .npz files are read as they are"
    for name, part in (("cifar01", "did you mean 'cifar10'"), ("./x", own), ("x.npz", own)):
        with pytest.raises(DataError) as caught:
            prepare_by_name(name, tmp_path)
        one_sentence(caught, part)
    with pytest.raises(DataError) as caught:
        prepare_by_name("folder:x", tmp_path)
    one_sentence(caught, "has no data set 'folder:x' (")
    assert "()" not in str(caught.value)  # tfds' own sentence begins with an empty line
