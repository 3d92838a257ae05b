"""Files that are no images: each ends in a sentence with its path, or is skipped and counted."""

import struct
import warnings
import zlib

import numpy as np
import PIL.Image
import pytest
from imagery import (
    all_of,
    cats_and_dogs,
    encode,
    one_sentence,
    open_folder,
    random_images,
    rows,
    write,
)

from ddpm_jax.data import DataError

IMAGES = random_images(40, 8, 8, 3)


@pytest.fixture
def splits(tmp_path):
    return cats_and_dogs(tmp_path, IMAGES)


def refused(folder, *parts, **options):
    with pytest.raises(DataError) as caught:
        open_folder(folder, **options)
    one_sentence(caught, *parts)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, depth=8, kind=2, data=b""):
    """A file as its header claims it to be."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


JPEG, PNG = encode(IMAGES[0], "jpeg"), encode(IMAGES[0])
FLIPPED = bytes(byte ^ (0xFF if place == 100 else 0) for place, byte in enumerate(PNG))
DAMAGED = {
    "cut.png": (PNG[:-60], "cannot be decoded ("),
    "header.png": (PNG[:20], "cannot be decoded ("),
    "cut.jpg": (JPEG[:-100], "cannot be decoded ("),
    "flipped.png": (FLIPPED, "cannot be decoded ("),
    "notes.png": (b"to do: buy milk", "is not an image in a known format (PNG, JPEG,"),
    "empty.png": (b"", "is empty"),
    "bomb.png": (png(100_000, 100_000), "is 100000x100000, of more than 89,478,485 pixels"),
    "smaller_bomb.png": (png(10_000, 10_000), "is 10000x10000, of more than 89,478,485 pixels"),
    "no_width.png": (png(0, 8), "is a damaged PNG ("),
    "deep_grey.png": (encode(np.zeros((8, 8, 1), np.uint16)), "has pixels of the mode 'I;16B'"),
    "deep_colour.png": (png(8, 8, 16, 2, bytes(8 * 49)), "has pixels of the mode 'RGB;16B'"),
    "floats.tiff": (
        encode(PIL.Image.fromarray(np.zeros((8, 8), np.float32)), "tiff"),
        "has pixels of the mode 'F;32F'",
    ),
    "small.png": (
        encode(IMAGES[0, :6]),
        "is 6x8, and others are 8x8; --preparation.size resizes all",
    ),
    "dangling.png": (None, "cannot be read (No such file or directory)"),
}


def damage(path, contents):
    path.unlink(missing_ok=True)
    if contents is None:
        path.symlink_to(path.with_name("nowhere"))
    else:
        write(path, contents)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_stops_with_its_path_or_is_skipped(splits, name, capfd):
    contents, why = DAMAGED[name]
    path = splits / "train" / "cat" / name  # after all others of its class
    damage(path, contents)
    for memory_gb in (1.0, 0.0):
        with pytest.raises(DataError) as caught:
            all_of(open_folder(splits, memory_gb=memory_gb).train)
        one_sentence(caught, f"{path} {why}", "repair or remove it", "--data.on-bad-image skip")

    # Skipped for good where all are read, else the next good one, a dog, is in its place.
    found = open_folder(splits, on_bad_image="skip")
    assert list(found.train.skipped) == [str(path)]
    assert found.train.skipped[str(path)].startswith(why)
    where = np.r_[0:10, 20:30]
    assert rows(*all_of(found.train)) == rows(IMAGES[where], where // 20)
    lazy = open_folder(splits, on_bad_image="skip", memory_gb=0.0)
    assert lazy.train.skipped == {}
    images, labels = lazy.train[np.array([9, 10, 11])]
    np.testing.assert_array_equal(images, IMAGES[[9, 20, 20]])
    assert labels.tolist() == [0, 1, 1]
    assert lazy.train.skipped == found.train.skipped
    assert lazy.held_out.skipped == {}
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["bomb.png", "smaller_bomb.png"])
def test_a_bomb_warns_of_nothing(splits, name):
    damage(splits / "train" / "cat" / name, DAMAGED[name][0])
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        refused(splits, "it may be a decompression bomb")
    assert warned == []


def test_the_last_image_is_replaced_by_the_first(splits):
    damage(splits / "train" / "dog" / "009.png", b"")
    found = open_folder(splits, on_bad_image="skip", memory_gb=0.0)
    images, labels = found.train[np.array([19])]
    np.testing.assert_array_equal(images[0], IMAGES[0])
    assert labels.tolist() == [0]


def test_none_of_all_is_an_image(tmp_path):
    for split in ("train", "test"):
        for number in range(3):
            write(tmp_path / split / f"{number}.png", b"words")
    first = tmp_path / "train" / "0.png"
    for options in ({}, {"on_bad_image": "skip"}, {"memory_gb": 0.0}):
        refused(tmp_path, f"none of the 3 files, such as {first}, is a usable image", **options)
    skipping = {"on_bad_image": "skip", "size": 8}
    refused(tmp_path, "has 3 images, and none can be used; the first: ", str(first), **skipping)
    lazy = open_folder(tmp_path, **skipping, memory_gb=0.0)
    with pytest.raises(DataError) as caught:
        all_of(lazy.train)
    one_sentence(caught, "has 3 images, and none can be used; the first: ", "0.png is not an image")


def test_the_first_file_is_damaged(splits):
    damage(splits / "train" / "cat" / "000.png", b"")
    refused(splits, "cat/000.png is empty")
    assert len(open_folder(splits, on_bad_image="skip").train) == 19


def test_images_that_preparation_cannot_make_alike(splits):
    write(splits / "train" / "dog" / "long.png", random_images(1, 8, 30, 3)[0])
    write(splits / "train" / "dog" / "thin.png", encode(PIL.Image.new("1", (400_000, 1))))
    refused(splits, "long.png is 8x30, larger than preparation.pad, 12; --preparation.size", pad=12)
    refused(splits, "long.png is 8x30, and others are 8x8")
    refused(splits, "thin.png is 1x400000, too long", size=24)
    found = open_folder(splits, pad=12, on_bad_image="skip")
    assert sorted(path[-8:] for path in found.train.skipped) == ["long.png", "thin.png"]
    refused(splits, "preparation.pad is 4; it has to be 8 or more for images of 8x8", pad=4)
    refused(
        splits,
        "preparation.crop is 9; it has to be 1 to 8 for images of 8x8",
        crop=9,
        on_bad_image="skip",
    )
