"""A folder of images: its splits and classes, and how files become pixels."""

import os

import numpy as np
import PIL.Image
import pytest
from imagery import (
    all_of,
    cats_and_dogs,
    encode,
    fill,
    one_sentence,
    open_folder,
    random_images,
    rows,
    shape_of,
    write,
)

from ddpm_jax import config
from ddpm_jax.data import DataError

IMAGES = random_images(40, 8, 8, 3)


@pytest.fixture
def splits(tmp_path):
    return cats_and_dogs(tmp_path, IMAGES)


def named(folder):
    return open_folder(folder)


def test_splits_and_classes(splits):
    found = named(splits)
    assert (found.name, found.levels, found.image_shape) == (splits.name, 256, (8, 8, 3))
    assert (found.classes, found.splits) == (("cat", "dog"), ("train", "test"))
    where = np.r_[0:10, 20:30]
    images, labels = all_of(found.train)
    np.testing.assert_array_equal(images, IMAGES[where])  # in the order of their paths
    np.testing.assert_array_equal(labels, where // 20)
    assert rows(*all_of(found.held_out)) == rows(
        IMAGES[[*range(10, 15), *range(30, 35)]], [0] * 5 + [1] * 5
    )
    (splits / "test").rename(splits / "val")
    assert named(splits).splits == ("train", "val")


def test_no_splits_hold_one_in_ten_out_by_name(tmp_path):
    fill(tmp_path / "a", IMAGES)
    fill(tmp_path / "b" / "deep" / "down", IMAGES[::-1], "bmp")
    found = named(tmp_path)
    assert (found.classes, found.splits) == (("a", "b"), ("nine in ten", "one in ten"))
    both = rows(*all_of(found.train)) + rows(*all_of(found.held_out))
    assert both == rows(np.concatenate([IMAGES, IMAGES]), [0] * 40 + [1] * 40)
    assert 1 <= len(found.held_out) <= 18  # 8 of 80, 4 standard deviations of 2.7

    def names(source):
        return {str(path) for path in source.records.paths}

    lazy = open_folder(tmp_path, memory_gb=0.0)
    gone = sorted(names(lazy.train))[0]
    (tmp_path / "a" / "new.png").write_bytes(encode(IMAGES[0]))
    others = open_folder(tmp_path, memory_gb=0.0)
    assert names(lazy.train) <= names(others.train)  # a new file moves no other
    assert names(lazy.held_out) <= names(others.held_out)
    assert gone in names(others.train)


def test_train_alone_is_no_class(tmp_path):
    fill(tmp_path / "train" / "a", IMAGES)
    fill(tmp_path / "train" / "b", IMAGES[::-1])
    found = named(tmp_path)
    assert (found.classes, found.splits) == (("a", "b"), ("nine in ten", "one in ten"))
    (tmp_path / "plane").mkdir()
    fill(tmp_path / "plane", IMAGES)
    assert named(tmp_path).classes == ("plane", "train")  # beside others it is one


def test_a_flat_folder_has_no_classes(tmp_path):
    fill(tmp_path, IMAGES)
    write(tmp_path / ".hidden", b"")
    write(tmp_path / ".thumbnails" / "x.png", b"")
    found = named(tmp_path)
    assert (found.classes, found.train.labelled) == (None, False)
    assert len(found.train) + len(found.held_out) == 40
    assert all_of(found.train).labels is None


def test_hidden_files_and_folders_in_classes_are_not_looked_at(splits):
    write(splits / "train" / "cat" / ".DS_Store", b"x")
    write(splits / "train" / "cat" / ".cache" / "x.png", b"x")
    write(splits / "train" / ".git" / "x", b"x")
    assert len(named(splits).train) == 20


def test_from_memory_and_as_read_are_the_same_bits(splits):
    for crop in (None, 4):
        loaded, lazy = (
            open_folder(splits, size=6, pad=9, crop=crop, memory_gb=memory) for memory in (1.0, 0.0)
        )
        assert loaded.train.in_memory
        assert not lazy.train.in_memory
        assert loaded.image_shape == lazy.image_shape
        for name in ("train", "held_out"):
            for one, other in zip(
                all_of(getattr(loaded, name)), all_of(getattr(lazy, name)), strict=True
            ):
                np.testing.assert_array_equal(one, other)
                assert one.dtype == other.dtype
    # 20 images of 192 bytes: what is larger than its share of memory is read as it goes.
    assert open_folder(splits, memory_gb=3841e-9).train.in_memory
    assert not open_folder(splits, memory_gb=3839e-9).train.in_memory
    assert shape_of(config.Folder(str(splits)), size=6, pad=9, crop=4) == (4, 4, 3)


# How a file becomes pixels


def pixels_of(tmp_path, contents, **preparation):
    """Of one file, among many of the same."""
    for number in range(10):
        write(tmp_path / "train" / f"{number}.png", contents)
        write(tmp_path / "test" / f"{number}.png", contents)
    found = open_folder(tmp_path, **preparation)
    return all_of(found.train).images[0]


def test_a_file_is_upright_as_its_exif_says(tmp_path):
    picture, exif = PIL.Image.fromarray(random_images(1, 4, 6, 3)[0]), PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    found = pixels_of(tmp_path, encode(picture, exif=exif))
    np.testing.assert_array_equal(found, np.rot90(np.asarray(picture), -1))


@pytest.mark.parametrize("kind", ["png", "gif"])
def test_a_palette_is_looked_up(tmp_path, kind):
    palette = random_images(16, 3)
    indices = np.random.default_rng(0).integers(0, 16, (5, 7), dtype=np.uint8)
    picture = PIL.Image.fromarray(indices)
    picture.putpalette(palette.ravel().tolist())
    assert picture.mode == "P"
    np.testing.assert_array_equal(pixels_of(tmp_path, encode(picture, kind)), palette[indices])


def test_transparency_lies_on_white(tmp_path):
    clear = random_images(2, 5, 5, 4)[0]
    clear[0, 0, 3], clear[0, 1, 3] = 0, 255
    found = pixels_of(tmp_path, clear).astype(float)
    part = clear[..., 3:] / 255
    assert np.abs(found - (clear[..., :3] * part + 255 * (1 - part))).max() <= 1.0
    assert found[0, 0].tolist() == [255.0] * 3
    assert found[0, 1].tolist() == clear[0, 1, :3].tolist()
    grey = pixels_of(tmp_path, clear, grey=True)
    assert grey.shape == (5, 5, 1)
    assert grey[0, 0, 0] == 255


def test_a_transparent_colour_of_a_palette_lies_on_white(tmp_path):
    picture = PIL.Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    found = pixels_of(tmp_path, encode(picture, transparency=0))
    assert found.tolist() == [[[255] * 3, [40, 50, 60]], [[40, 50, 60], [255] * 3]]


def test_cmyk_and_black_and_white(tmp_path):
    ink = np.zeros((4, 4, 4), np.uint8)
    ink[..., 0] = 255  # all of cyan
    picture = PIL.Image.frombytes("CMYK", (4, 4), ink.tobytes())
    assert pixels_of(tmp_path, encode(picture, "tiff"))[0, 0].tolist() == [0, 255, 255]
    bits = PIL.Image.fromarray(np.eye(4, dtype=bool))
    np.testing.assert_array_equal(
        pixels_of(tmp_path, encode(bits), grey=True)[..., 0], 255 * np.eye(4, dtype=int)
    )


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_files_of_many_sizes_are_made_alike(tmp_path, kind):
    sizes = [(20, 31), (31, 20), (16, 16), (9, 40), (64, 48)] * 2
    images = [random_images(1, *size, 3)[0] for size in sizes]
    fill(tmp_path / "train", images, kind)
    fill(tmp_path / "test", images, kind)
    found = open_folder(tmp_path, size=16)
    assert found.preparation.startswith("shorter side to 16")
    for path, prepared in zip(
        sorted((tmp_path / "train").iterdir()), all_of(found.train).images, strict=True
    ):
        with PIL.Image.open(path) as picture:
            width, height = picture.size
            scale = 16 / min(width, height)
            wide, tall = round(width * scale), round(height * scale)
            whole = picture.resize((wide, tall), PIL.Image.Resampling.BICUBIC)
            left, top = (wide - 16) // 2, (tall - 16) // 2
            by_hand = np.asarray(whole.crop((left, top, left + 16, top + 16)))
        np.testing.assert_array_equal(prepared, by_hand)


# Folders that do not fit


def refused(folder, *parts, **options):
    with pytest.raises(DataError) as caught:
        open_folder(folder, **options)
    one_sentence(caught, *parts)


def test_folders_that_are_none(tmp_path):
    nowhere = tmp_path / "nowhere"
    refused(nowhere, f"data.path is {str(nowhere)!r}; there is no folder {str(nowhere)!r}")
    refused(write(tmp_path / "file" / "x", b""), "x'", "is not a folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty' is empty", "has to contain images")


def test_folders_in_disorder(splits):
    loose = write(splits / "train" / "loose.png", IMAGES[0])
    refused(splits, "train'", "images beside subfolders (loose.png beside cat)", "classes")
    loose.unlink()
    (splits / "train" / "empty").mkdir()
    refused(splits, "train/empty' is empty", "a class")
    write(splits / "train" / "empty" / ".hidden", b"")
    refused(splits, "train/empty' is empty", "a class")
    write(splits / "train" / "empty" / "1.png", IMAGES[0])
    refused(splits, "different classes in train and in test (empty)", "the same subfolders")


def test_too_few_to_hold_some_out(tmp_path):
    fill(tmp_path, IMAGES[:1])
    refused(tmp_path, "has 1 images; it needs two or more", "train and test")


def test_a_folder_that_cannot_be_listed(splits, monkeypatch):
    # The superuser of a test may read everything, so the system is made to refuse.
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    write(splits / "train" / "cat" / "deep" / "1.png", IMAGES[0])
    monkeypatch.setattr(os, "scandir", refusing)
    refused(splits, "cat/deep' cannot be read (Permission denied)")
