"""What a data set is called and known by, wherever it is, and names that are none."""

import shutil

import numpy as np
import pytest
from imagery import cats_and_dogs, examples, fill, one_sentence, prepare, random_images, write

from ddpm_jax.data import Arrays, DataError, ImageSet, image_levels, image_shape, load

IMAGES = random_images(40, 4, 4, 3)
LABELS = np.arange(40) % 3


def archive(path, **changes):
    np.savez(path, **{"images": IMAGES, "labels": LABELS} | changes)
    return path


def refused(name, *parts, data_dir=None, read=load):
    with pytest.raises(DataError) as caught:
        read(name, data_dir)
    one_sentence(caught, *parts)


# ---- paths


def test_relative_paths_are_below_the_directory_of_data_or_the_working_directory(
    tmp_path, monkeypatch
):
    fill(tmp_path / "data" / "mine", IMAGES)
    archive(tmp_path / "data" / "own.npz")
    absolute = load(f"folder:{tmp_path / 'data' / 'mine'}")
    monkeypatch.chdir(tmp_path / "data")
    for name, folder in (
        ("folder:mine", None),
        ("folder:./mine/", None),
        ("folder:mine", str(tmp_path / "data")),
        ("folder:data/mine", ".."),
        ("folder:.", "mine"),
    ):
        found = load(name, folder)
        assert (found.name, found.fingerprint) == ("mine", absolute.fingerprint)
        assert image_shape(name, folder) == (4, 4, 3)
    for name, folder in (("npz:own.npz", None), ("npz:./own.npz", None), ("npz:own.npz", ".")):
        assert load(name, folder).name == "own"
        assert image_shape(name, folder) == (4, 4, 3)
        assert image_levels(name, folder) == 256


def test_a_path_that_is_not_there_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(
        "folder:mine",
        f"folder {str(tmp_path / 'mine')!r} does not exist",
        "'folder:PATH'",
        "'mine' is relative to the working directory, or to --data.dir if that is given",
    )
    refused(
        "npz:x.npz",
        repr(str(tmp_path / "data" / "x.npz")),
        "relative to --data.dir",
        data_dir=str(tmp_path / "data"),
    )
    for read in (load, image_shape):
        refused("folder:a\0b", "cannot be read", read=read)
        refused("npz:~nobody_of_this_name/x.npz", "cannot be read", read=read)
        refused("folder:" + "x" * 5000, "cannot be read (", read=read)


# ---- fingerprints


def test_a_fingerprint_does_not_depend_on_place_name_or_memory(tmp_path):
    cats_and_dogs(tmp_path / "one", IMAGES)
    first = load(f"folder:{tmp_path / 'one'}").fingerprint
    assert len(bytes.fromhex(first)) == 32
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert load(f"folder:{tmp_path / 'two'}", memory_gb=0.0).fingerprint == first
    prepare(tmp_path, "tiny", {"train": examples(IMAGES[:20]), "test": examples(IMAGES[20:])})
    known = {
        load(name, str(tmp_path), memory_gb=memory).fingerprint
        for name in ("tiny", "tiny:1.0.0")
        for memory in (0.0, 1.0)
    }
    assert len(known) == 1
    assert load("tiny:1.0.0", str(tmp_path)).name == "tiny"


def test_a_fingerprint_is_the_same_everywhere():
    assert (
        load("digits").fingerprint
        == "8eab038567b7efb982815a266be7f2e03550d27e4ffa9d509fe22615a07c773d"
    )


def test_other_images_have_another_fingerprint(tmp_path):
    known = [load(f"npz:{archive(tmp_path / 'x.npz')}").fingerprint]
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
        known.append(load(f"npz:{archive(tmp_path / 'x.npz', **changes)}").fingerprint)
    known.append(load(f"npz:{archive(tmp_path / 'x.npz')}", crop=3).fingerprint)
    assert len(set(known)) == len(known)
    same = load(f"npz:{archive(tmp_path / 'x.npz', labels=LABELS.astype(np.uint8))}")
    assert same.fingerprint == known[0]

    root = cats_and_dogs(tmp_path / "folder", IMAGES)
    before = load(f"folder:{root}").fingerprint
    write(root / "train" / "cat" / "003.png", IMAGES[39])
    assert load(f"folder:{root}").fingerprint != before


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
    found = load(f"npz:{archive(tmp_path / 'x.npz', class_names=['cat', 'dog', 'emu', 'fox'])}")
    assert found.classes == ("cat", "dog", "emu", "fox")
    assert found.class_counts == (12, 12, 12, 0)
    assert "'emu' 12, 'fox' 0" in found.summary()
    for names, part in (
        (["cat", "dog"], "the label 2 and 2 class_names"),
        (["cat", "dog", "cat"], "has one name twice"),
        ([1, 2, 3], "a list of strings"),
        ("cat", "a list of strings"),
    ):
        refused(f"npz:{archive(tmp_path / 'x.npz', class_names=names)}", part)


# ---- names that are none


def test_paths_without_their_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    archive(tmp_path / "own.npz")
    fill(tmp_path / "my_images", IMAGES[:2])
    for read in (load, image_shape):
        for name, right in {
            "own.npz": "npz:own.npz",
            "missing.npz": "npz:missing.npz",
            "my_images": "folder:my_images",
            "./my_images": "folder:./my_images",
            "~/nowhere": "folder:~/nowhere",
            "Folder:my_images": "folder:my_images",
            "fodler:nowhere": "folder:nowhere",
            "NPZ:own.npz": "npz:own.npz",
            "folders:own.npz": "npz:own.npz",
            "CIFAR-10": "cifar10",
            "fashionmnist": "fashion_mnist",
            "Digits": "digits",
        }.items():
            refused(name, f"did you mean {right!r}", data_dir=str(tmp_path), read=read)
    refused("npz:my_images", f"'folder:{tmp_path / 'my_images'}'")
    refused("folder:own.npz", f"'npz:{tmp_path / 'own.npz'}'")


def test_preparing_what_is_no_data_set(tmp_path):
    from ddpm_jax.data.prepare import prepare as prepare_by_name

    for name, part in (("cifar01", "did you mean 'cifar10'"), ("folder:x", "read as they are")):
        with pytest.raises(DataError) as caught:
            prepare_by_name(name, tmp_path)
        one_sentence(caught, part)
