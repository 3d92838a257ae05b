"""Which images of a folder are trained on and which are held out."""

import os

import numpy as np
import pytest
from imagery import all_of, encode, fill, one_sentence, open_folder, random_images, write

from ddpm_jax.data import Arrays, DataError, ImageSet

IMAGES = random_images(40, 4, 4, 3)


def lazily(folder):
    return open_folder(folder, memory_gb=0.0)


def names(source):
    """Of the files of a source, below their folder's class."""
    return [(path.parent.name, path.name) for path in source.records.paths]


def numbered(folder, count):
    """Files 0.jpg, 1.jpg ..."""
    for number in range(count):
        write(folder / f"{number}.jpg", encode(IMAGES[number], "jpeg"))
    return folder


def refused(folder, *parts):
    with pytest.raises(DataError) as caught:
        lazily(folder)
    one_sentence(caught, *parts)


# ---- one in ten


@pytest.mark.parametrize("count", [2, 3, 10, 33])
def test_some_images_are_held_out_of_two_or_more(tmp_path, count):
    found = lazily(numbered(tmp_path, count))  # none of 0.jpg to 32.jpg is one in ten by its hash
    assert len(found.held_out) >= 1
    assert len(found.train) >= 1
    assert sorted(names(found.train) + names(found.held_out)) == sorted(
        (tmp_path.name, f"{number}.jpg") for number in range(count)
    )


def test_new_images_move_no_other(tmp_path):
    before = lazily(numbered(tmp_path, 33))
    after = lazily(numbered(tmp_path, 40))
    assert set(names(before.held_out)) < set(names(after.held_out))
    assert set(names(before.train)) < set(names(after.train))


def test_a_class_by_another_name_holds_out_the_same(tmp_path):
    for name in ("cat", "dog"):
        fill(tmp_path / name, IMAGES)
    before = lazily(tmp_path)
    (tmp_path / "cat").rename(tmp_path / "zebra")
    after = lazily(tmp_path)
    for part in ("train", "held_out"):
        renamed = {
            (name.replace("cat", "zebra"), file) for name, file in names(getattr(before, part))
        }
        assert set(names(getattr(after, part))) == renamed


def test_classes_with_the_same_names_of_files_both_have_held_out_images(tmp_path):
    for name in ("cat", "dog"):
        numbered(tmp_path / name, 33)
    found = lazily(tmp_path)
    assert sorted(set(found.held_out.records.labels)) == [0, 1]
    assert sorted(set(found.train.records.labels)) == [0, 1]


def test_no_class_is_held_out_as_a_whole(tmp_path):
    # By its name alone, 031.png would be held out.
    assert ("cat", "031.png") in names(
        lazily(fill(tmp_path / "all" / "cat", IMAGES).parent).held_out
    )
    write(tmp_path / "few" / "dog" / "031.png", IMAGES[0])
    fill(tmp_path / "few" / "cat", IMAGES[:5])
    found = lazily(tmp_path / "few")
    assert ("dog", "031.png") in names(found.train)
    assert len(found.held_out) >= 1
    for name in ("cat", "dog"):
        write(tmp_path / "one_each" / name / "031.png", IMAGES[0])
    found = lazily(tmp_path / "one_each")
    assert (len(found.train), len(found.held_out)) == (1, 1)


def test_names_that_are_no_utf_8_and_both_spellings_of_an_accent(tmp_path):
    composed, apart = "\u00e9", "e\u0301"
    chosen = []
    for folder, letter in (("one", composed), ("two", apart)):
        for number in range(12):
            write(tmp_path / folder / f"{letter}{number}.png", IMAGES[number])
        found = lazily(tmp_path / folder)
        chosen.append({name.replace(apart, composed) for _, name in names(found.held_out)})
    assert chosen[0] == chosen[1]
    raw = os.fsencode(tmp_path / "one") + b"/\xff\xfe.png"
    with open(raw, "wb") as file:
        file.write(encode(IMAGES[0]))
    found = lazily(tmp_path / "one")
    assert len(found.train) + len(found.held_out) == 13


# ---- splits by name


@pytest.mark.parametrize(
    ("training", "held_out"),
    [
        ("train", "valid"),
        ("Train", "Test"),
        ("TRAINING", "Testing"),
        ("training_set", "test_set"),
        ("train2017", "val2017"),
        ("train", "held_out"),
        ("train", "Held-Out"),
        ("train", "eval"),
        ("train", "dev"),
    ],
)
def test_usual_names_of_splits(tmp_path, training, held_out):
    for folder, images in ((training, IMAGES[:12]), (held_out, IMAGES[12:15])):
        fill(tmp_path / folder, images)
    found = open_folder(tmp_path)
    assert (found.splits, found.classes) == ((training, held_out), None)
    np.testing.assert_array_equal(all_of(found.train).images, IMAGES[:12])
    np.testing.assert_array_equal(all_of(found.held_out).images, IMAGES[12:15])


def test_of_test_and_validation_the_test_is_held_out_and_the_other_is_named(tmp_path):
    for folder, images in (("train", IMAGES[:12]), ("val", IMAGES[12:15]), ("test", IMAGES[15:17])):
        fill(tmp_path / folder / "cat", images)
    found = lazily(tmp_path)
    assert (found.splits, found.unused) == (("train", "test"), ("val",))
    assert (len(found.train), len(found.held_out)) == (12, 2)
    assert found.summary() == (
        f"images {tmp_path.name!r}: 12 images to train on ('train'); 2 held out ('test'); 1 class,"
        " training images of each: 'cat' 12; not used: 'val'"
    )


def test_splits_without_one_to_train_on(tmp_path):
    for folder in ("val", "test"):
        fill(tmp_path / folder, IMAGES[:3])
    refused(tmp_path, "has the splits 'test', 'val'", "one for training")
    for folder in ("train", "Training"):
        fill(tmp_path / folder, IMAGES[:3])
    refused(tmp_path, "'Training', 'test', 'train', 'val'", "one for training")


def test_splits_inside_classes_are_refused(tmp_path):
    for place in ("cat/train", "cat/test", "dog/train", "dog/test"):
        fill(tmp_path / place, IMAGES[:3])
    refused(
        tmp_path,
        "cat' is inside a class and has the splits 'train' and 'test'",
        "outside of the classes",
    )


# ---- links


def test_linked_folders_are_read_and_loops_are_not(tmp_path):
    shared = fill(tmp_path / "shared" / "more", IMAGES[:7])
    root = tmp_path / "root"
    fill(root / "cat", IMAGES[7:12])
    fill(root / "cat" / "deep", IMAGES[12:15])
    fill(root / "dog", IMAGES[15:17])
    (root / "cat" / "linked").symlink_to(shared)
    (root / "cat" / "again").symlink_to(shared)  # read once
    (root / "cat" / "a_link").symlink_to(root / "cat" / "deep")  # which has a path of its own
    (root / "cat" / "deep" / "up").symlink_to(root)
    (root / "cat" / "loop").symlink_to(root / "cat")
    (root / "self").symlink_to(root)
    (shared / "back").symlink_to(shared.parent)
    (root / "bird").symlink_to(shared)  # a class of its own
    found = lazily(root)
    assert found.classes == ("bird", "cat", "dog")
    labels = np.array(found.train.records.labels + found.held_out.records.labels)
    assert np.bincount(labels).tolist() == [7, 15, 2]
    assert ("deep", "000.png") in names(found.train) + names(found.held_out)


# ---- sentences


def test_why_none_of_the_files_can_be_used(tmp_path):
    write(tmp_path / "train" / "!notes.txt", b"words")
    fill(tmp_path / "train", np.zeros((3, 4, 4, 1), np.uint16))
    fill(tmp_path / "test", IMAGES[:1])
    refused(
        tmp_path,
        f"none of the 4 files, such as {tmp_path / 'train' / '000.png'}, is a usable"
        " image: it has pixels of the mode 'I;16B', not of 8 bits",
    )


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    for split in ("train", "test"):
        fill(tmp_path / split, IMAGES[:2])
    with (tmp_path / "train" / "000.png").open("r+b") as file:
        file.truncate(2**40)  # sparse: it takes no room on the disk
    with pytest.raises(DataError) as caught:
        open_folder(tmp_path)
    one_sentence(caught, "000.png cannot be read (File too large)")


def test_a_summary_names_classes_without_a_training_image():
    images = IMAGES[:12]
    labels = np.arange(12)
    labels[5] = 4

    def of(labels, classes):
        source = Arrays(images, labels)
        return ImageSet("x", train=source, held_out=source, classes=classes)

    found = of(labels, tuple(map(str, range(12))))
    assert found.class_counts == (1, 1, 1, 1, 2, 0, 1, 1, 1, 1, 1, 1)
    assert "12 classes, 0 to 2 training images of each (none of '5')" in found.summary()
    gaps = of(np.array([0, 2, 4] * 4), tuple("abcde"))
    assert gaps.class_counts == (4, 0, 4, 0, 4)
    assert "training images of each: 'a' 4, 'b' 0, 'c' 4, 'd' 0, 'e' 4" in gaps.summary()
    assert of(None, None).class_counts is None
