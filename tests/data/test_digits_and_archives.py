"""Digits, archives, and what is done to every image."""

import collections
import hashlib
import io
import zipfile

import numpy as np
import PIL.Image
import pytest
from imagery import (
    all_of,
    encode,
    one_sentence,
    open_archive,
    open_digits,
    opened,
    random_images,
    rows,
    shape_of,
)
from sklearn.datasets import load_digits

from ddpm_jax import config
from ddpm_jax.data import DataError, Preparation, in_batches
from ddpm_jax.experiment import image_spec_of

GREY, COLOUR = random_images(30, 6, 5, 1), random_images(20, 7, 9, 3)
LABELS = np.arange(30) % 4


def test_digits_are_all_of_sklearns_once():
    digits, original = open_digits(), load_digits()
    assert (len(digits.train), len(digits.held_out), digits.levels) == (1437, 360, 17)
    train, held_out = all_of(digits.train), all_of(digits.held_out)
    assert train.images.dtype == held_out.images.dtype == np.uint8
    assert digits.classes == tuple("0123456789")

    def count(images, labels):
        pixels = np.asarray(images, np.float64).reshape(len(images), 64)
        return collections.Counter(
            (row.tobytes(), int(label)) for row, label in zip(pixels, labels, strict=True)
        )

    assert count(*train) + count(*held_out) == count(original.images, original.target)
    assert (train.images.min(), train.images.max()) == (0, 16)


def test_the_split_of_the_published_numbers_never_changes():
    # NumPy does not promise `permutation` for ever; published numbers need this one.
    held_out = all_of(open_digits().held_out).images
    assert hashlib.sha256(held_out.tobytes()).hexdigest()[:16] == "fe6e2083756fdae8"


def test_digits_are_padded_and_cropped_but_not_resized():
    padded = open_digits(pad=11)
    assert padded.image_shape == shape_of(config.Digits(), pad=11)
    plain, bordered = all_of(open_digits().train).images, all_of(padded.train).images
    np.testing.assert_array_equal(bordered[:, 1:9, 1:9], plain)
    assert bordered.sum() == plain.sum()  # and black around
    cropped = open_digits(crop=5)
    assert cropped.image_shape == shape_of(config.Digits(), crop=5) == (5, 5, 1)
    assert cropped.train.image_shape == (8, 8, 1)  # cut at random, by the stream
    held_out = all_of(open_digits().held_out).images
    np.testing.assert_array_equal(all_of(cropped.held_out).images, held_out[:, 1:6, 1:6])
    np.testing.assert_array_equal(all_of(cropped.train_centred).images, plain[:, 1:6, 1:6])
    assert cropped.preparation == "as stored, centre crop to 5x5"
    only_256 = "digits have 17 grey levels, and only images of 256"
    for preparation, part in (
        ({"size": 16}, only_256),
        ({"grey": True}, only_256),
        ({"pad": 7}, "preparation.pad is 7; it has to be 8 or more"),
        ({"crop": 9}, "preparation.crop is 9; it has to be 1 to 8"),
    ):
        for read in (opened, shape_of):
            with pytest.raises(DataError) as caught:
                read(config.Digits(), **preparation)
            one_sentence(caught, part)


def test_batches_of_a_source_are_all_of_it_in_order():
    digits = open_digits().held_out
    for size, count, sizes in ((100, None, [100, 100, 100, 60]), (50, 75, [50, 25]), (9, 3, [3])):
        batches = list(in_batches(digits, size, count))
        assert [len(batch.images) for batch in batches] == sizes
        joined = np.concatenate([batch.images for batch in batches])
        np.testing.assert_array_equal(joined, all_of(digits).images[: sum(sizes)])


# Preparation, against Pillow by hand


@pytest.mark.parametrize(("height", "width"), [(40, 64), (64, 40), (33, 33), (16, 90), (9, 12)])
def test_resizing_is_pillows_and_the_middle_is_kept(height, width):
    picture = PIL.Image.fromarray(random_images(1, height, width, 3)[0])
    scale = 16 / min(height, width)
    tall, wide = round(height * scale), round(width * scale)
    whole = np.asarray(picture.resize((wide, tall), PIL.Image.Resampling.BICUBIC))
    top, left = (tall - 16) // 2, (wide - 16) // 2
    found = Preparation(size=16).of_picture(picture)
    np.testing.assert_array_equal(found, whole[top : top + 16, left : left + 16])
    np.testing.assert_array_equal(Preparation(size=16).of_array(np.asarray(picture)[None]), [found])


def test_grey_is_itu_601_and_a_border_is_black():
    colours = COLOUR.astype(np.float64)
    weighted = colours @ [0.299, 0.587, 0.114]
    grey = Preparation(grey=True).of_array(COLOUR)
    assert grey.shape == (20, 7, 9, 1)
    assert np.abs(grey[..., 0] - weighted).max() < 0.51
    np.testing.assert_array_equal(Preparation(grey=True).of_array(GREY), GREY)
    padded = Preparation(pad=12).of_array(COLOUR)
    np.testing.assert_array_equal(padded[:, 2:9, 1:10], COLOUR)
    assert padded.astype(int).sum() == COLOUR.astype(int).sum()
    everything = Preparation(grey=True, size=8, pad=10)
    assert everything.shape_of((7, 9, 3)) == everything.of_array(COLOUR).shape[1:] == (10, 10, 1)
    assert str(everything) == (
        "grey, shorter side to 8 (Pillow, bicubic, antialiased), centre crop to 8x8, black border"
        " to 10x10"
    )
    assert str(Preparation()) == "as stored"
    for wrong in ({"size": 0}, {"pad": -1}):
        with pytest.raises(DataError, match="it has to be 1 or more"):
            Preparation(**wrong)


# Archives


def archive(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def test_an_archive_with_two_splits(tmp_path):
    name = archive(
        tmp_path / "mine.npz",
        train_images=GREY[:20, ..., 0],  # without a channel axis
        test_images=GREY[20:],
        train_labels=LABELS[:20].astype(np.uint8),
        test_labels=LABELS[20:],
    )
    found = open_archive(name)
    assert (found.name, found.levels, found.splits) == ("mine", 256, ("train", "test"))
    assert found.classes == ("0", "1", "2", "3")
    np.testing.assert_array_equal(all_of(found.train).images, GREY[:20])
    np.testing.assert_array_equal(all_of(found.held_out).images, GREY[20:])
    np.testing.assert_array_equal(all_of(found.train).labels, LABELS[:20])
    np.testing.assert_array_equal(all_of(found.held_out).labels, LABELS[20:])
    prepared = {"size": 4, "pad": 6, "crop": 5}
    assert open_archive(name, **prepared).image_shape == (5, 5, 1)
    assert shape_of(config.Archive(name), **prepared) == (5, 5, 1)


def test_an_archive_of_images_alone_holds_one_in_ten_out(tmp_path):
    name = archive(tmp_path / "own.npz", images=GREY // 20, levels=13, labels=LABELS)
    found = open_archive(name)
    assert found.levels == image_spec_of(config.Config(data=config.Archive(name))).levels == 13
    assert found.splits == ("nine in ten", "one in ten")
    apart = np.arange(30) % 10 == 9
    assert rows(*all_of(found.held_out)) == rows(GREY[apart] // 20, LABELS[apart])
    assert rows(*all_of(found.train)) == rows(GREY[~apart] // 20, LABELS[~apart])
    bare = open_archive(archive(tmp_path / "bare.npz", images=COLOUR))
    assert (bare.classes, bare.num_classes, bare.train.labelled) == (None, 0, False)
    assert all_of(bare.train).labels is None
    with pytest.raises(DataError) as caught:
        open_archive(name, size=4)
    one_sentence(caught, "own.npz", "13 grey levels", "only images of 256")


BRIGHT = np.minimum(GREY, 98)
BRIGHT[3, 1, 2, 0] = 99


@pytest.mark.usefixtures("without_annotation_checks")
@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        ({"pictures": GREY}, ["['pictures']", "'train_images' and 'test_images', or 'images'"]),
        ({"train_images": GREY}, ["['train_images']", "or 'images'"]),
        ({"images": GREY / 255}, ["images of ", "dtype float64", "uint8"]),
        ({"images": GREY.astype(np.uint16)}, ["dtype uint16", "uint8"]),
        ({"images": np.uint8(3)}, ["images of ", "shape ()"]),
        ({"images": GREY[0, 0, :, 0]}, ["shape (5,)", "[n, height, width, channel]"]),
        ({"images": GREY[:0]}, ["shape (0, 6, 5, 1)", "at least one image"]),
        ({"images": GREY[:9]}, ["has 9 images", "it needs 10"]),
        ({"images": np.repeat(GREY, 2, 3)}, ["2 channels"]),
        ({"images": BRIGHT, "levels": 99}, ["images of ", "[3, 1, 2, 0] is 99", "0 to 98"]),
        ({"images": GREY, "levels": 1}, ["levels is 1;", "2 to 256"]),
        ({"images": GREY, "levels": np.array([256, 1])}, ["levels of ", "shape (2,)"]),
        ({"images": GREY, "levels": 25.5}, ["levels of ", "float64", "one integer"]),
        ({"images": GREY, "labels": LABELS[:29]}, ["labels of ", "shape (29,)", "(30,)"]),
        ({"images": GREY, "labels": LABELS / 2}, ["labels of ", "float64", "integers"]),
        ({"images": GREY, "labels": LABELS - 1}, ["labels of ", "[0] is -1", "0 or more"]),
        ({"images": GREY, "labels": LABELS * 10**9}, ["label 3000000000", "numbered from 0"]),
        ({"train_images": GREY, "test_images": COLOUR}, ["(7, 9, 3)", "(6, 5, 1)", "the same"]),
        (
            {"train_images": GREY, "test_images": GREY, "test_labels": LABELS[:3]},
            ["test_labels of ", "shape (3,)", "(30,)"],
        ),
    ],
)
def test_archives_that_do_not_fit(tmp_path, arrays, parts):
    with pytest.raises(DataError) as caught:
        open_archive(archive(tmp_path / "x.npz", **arrays))
    one_sentence(caught, *parts)


def written(path, contents):
    path.write_bytes(contents)
    return path


def zipped(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, contents in members.items():
            archive.writestr(f"{name}.npy", contents)
    return file.getvalue()


def as_npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def test_archives_that_are_damaged(tmp_path):
    whole = tmp_path / "whole.npz"
    np.savez_compressed(whole, images=GREY)
    contents = whole.read_bytes()
    flipped = bytearray(contents)
    flipped[len(flipped) // 2] ^= 0xFF
    huge = as_npy(GREY).replace(b"(30, 6, 5, 1)", b"(30**9,      )")
    cases = {
        "text.npz": b"no zip",
        "empty.npz": b"",
        "cut.npz": contents[:-40],
        "half.npz": contents[: len(contents) // 2],
        "flipped.npz": bytes(flipped),
        "picture.npz": encode(GREY[0]),
        "lone.npz": as_npy(GREY),  # an .npy by another name
        "pickled.npz": zipped(images=as_npy(np.array([{}, 1], object))),
        "header.npz": zipped(images=b"\x93NUMPY\x01\x00\x10\x00garbage"),
        "huge.npz": zipped(images=huge),
    }
    for name, damaged in cases.items():
        path = written(tmp_path / name, damaged)
        with pytest.raises(DataError) as caught:
            open_archive(path)
        one_sentence(caught, f"archive {str(path)!r} cannot be read (", "as numpy.savez writes it")
    for path, what in (
        (tmp_path / "nowhere.npz", "there is no archive"),
        (tmp_path, "is not a file"),
    ):
        with pytest.raises(DataError) as caught:
            open_archive(path)
        one_sentence(caught, repr(str(path)), what)
