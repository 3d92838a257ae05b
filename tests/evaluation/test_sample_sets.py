"""Samples of any program, as a stream of images by number."""

import os
import shutil
import tracemalloc
import zipfile

import numpy as np
import PIL.Image
import pytest
from imagery import ends_in_one_sentence, fill, one_sentence, random_images, write

from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import SampleSet, open_samples

IMAGES = random_images(23, 4, 5, 3)


def all_of(samples, first=0, last=None):
    return np.concatenate([np.zeros((0, *samples.shape), np.uint8), *samples.batches(first, last)])


def save_npz(path, images):
    np.savez(path, images)
    return path


def save_compressed(path, images):
    np.savez_compressed(path, arr_0=images, arr_1=np.arange(len(images)))
    return path


def save_npy(path, images):
    path = path.with_suffix(".npy")
    np.save(path, images)
    return path


def save_folder(path, images):
    return fill(path.with_suffix(""), images)


SAVES = [save_npz, save_compressed, save_npy, save_folder]


@pytest.mark.parametrize("save", SAVES)
def test_any_range_of_images_is_read_in_any_order(tmp_path, save):
    samples = open_samples(save(tmp_path / "x.npz", IMAGES))
    assert isinstance(samples, SampleSet)
    assert (samples.num, samples.shape) == (23, (4, 5, 3))
    for first, last in [(0, 23), (5, 9), (9, 9), (12, 20), (3, 23), (0, 1), (22, 23), (0, None)]:
        np.testing.assert_array_equal(all_of(samples, first, last), IMAGES[first:last])
    for first, last in [(-1, 3), (5, 4), (0, 24)]:
        with pytest.raises(UserError, match=f"first is {first} and last is {last}"):
            list(samples.batches(first, last))


@pytest.mark.parametrize("save", SAVES)
def test_a_stream_that_is_left_in_the_middle_does_not_harm_the_next(tmp_path, save):
    images = random_images(2100, 2, 2, 3)[: 60 if save is save_folder else None]
    samples = open_samples(save(tmp_path / "x.npz", images))
    left, other = samples.batches(2), samples.batches(1)
    np.testing.assert_array_equal(next(left)[0], images[2])
    np.testing.assert_array_equal(next(other)[0], images[1])
    left.close()
    np.testing.assert_array_equal(np.concatenate([*samples.batches()]), images)


@pytest.mark.parametrize("save", SAVES)
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, save):
    images = np.zeros((60 if save is save_folder else 10_000, 32, 32, 3), np.uint8)  # 31 MB
    samples = open_samples(save(tmp_path / "x.npz", images))
    del images
    tracemalloc.start()
    count = sum(map(len, samples.batches()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == samples.num
    assert peak < 2**24


def test_numbers_in_names_are_numbers_and_files_come_before_subfolders(tmp_path):
    names = ["2.png", "10.png", "a1b3.png", "a1b20.png", "9/0.png", "10/7.png", "10/11/1.png"]
    for name, image in zip(names, IMAGES, strict=False):
        write(tmp_path / name, image)
    samples = open_samples(tmp_path)
    np.testing.assert_array_equal(all_of(samples), IMAGES[: len(names)])
    for first in range(len(names)):
        np.testing.assert_array_equal(all_of(samples, first, first + 1)[0], IMAGES[first])


def test_other_files_are_counted_and_hidden_and_partial_ones_are_not(tmp_path):
    fill(tmp_path, IMAGES[:3])
    for name in (".hidden.png", "4.png.0123456789abcdef.partial", "samples.txt", "a/mu.npz"):
        write(tmp_path / name, b"?")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "again").symlink_to(tmp_path)
    lines = []
    assert open_samples(tmp_path, report=lines.append).num == 3
    assert lines == [
        f"3 files in {str(tmp_path)!r} are not images and are not read, such as"
        f" {str(tmp_path / 'pipe.png')!r}"
    ]


def test_lossy_files_are_reported(tmp_path):
    fill(tmp_path, IMAGES[:3])
    fill(tmp_path / "more", IMAGES[3:5], "jpeg")
    lines = []
    samples = open_samples(tmp_path, report=lines.append)
    assert samples.num == 5
    (line,) = lines
    assert "2 of 5 images" in line
    assert "compression" in line


def test_modes_are_decoded_as_training_images_are(tmp_path):
    clear = np.zeros((4, 5, 4), np.uint8)  # a transparent black is the white behind it
    write(tmp_path / "0.png", IMAGES[0])
    write(tmp_path / "1.png", clear)
    write(tmp_path / "2.png", IMAGES[2][..., :1])
    PIL.Image.fromarray(IMAGES[3]).quantize(8).save(tmp_path / "3.png")
    colours = np.asarray(PIL.Image.fromarray(IMAGES[3]).quantize(8).convert("RGB"))
    expected = [IMAGES[0], np.full((4, 5, 3), 255), IMAGES[2][..., :1].repeat(3, -1), colours]
    np.testing.assert_array_equal(all_of(open_samples(tmp_path)), expected)


def test_grey_files_have_one_channel(tmp_path):
    fill(tmp_path, IMAGES[..., :1])
    samples = open_samples(tmp_path)
    assert samples.shape == (4, 5, 1)
    np.testing.assert_array_equal(all_of(samples), IMAGES[..., :1])


def test_images_of_fewer_levels_are_scaled_to_256(tmp_path):
    levels = np.array([[[0, 8], [16, 1]]], np.uint8)
    np.savez(tmp_path / "x.npz", images=levels, levels=17)
    samples = open_samples(tmp_path / "x.npz")
    assert samples.shape == (2, 2, 1)
    assert all_of(samples).ravel().tolist() == [0, 128, 255, 16]


def test_arr_0_comes_before_images_and_has_256_levels(tmp_path):
    np.savez(tmp_path / "x.npz", images=IMAGES % 17, levels=17, arr_0=IMAGES)
    np.testing.assert_array_equal(all_of(open_samples(tmp_path / "x.npz")), IMAGES)


@pytest.mark.parametrize("save", SAVES)
def test_the_fingerprint_is_that_of_the_images(tmp_path, save):
    folder = tmp_path / "other"
    folder.mkdir()
    one = open_samples(save(tmp_path / "x.npz", IMAGES)).fingerprint
    assert open_samples(save(folder / "x.npz", IMAGES)).fingerprint == one
    shutil.rmtree(folder)
    folder.mkdir()
    changed = IMAGES.copy()
    changed[11, 0, 0, 0] ^= 1
    assert open_samples(save(folder / "x.npz", changed)).fingerprint != one


ARRAYS = [
    (np.zeros((3, 4, 4, 3)), ["dtype float64", "uint8, grey levels 0 to 255"]),
    (np.full((3, 4, 4, 3), np.nan, np.float32), ["dtype float32"]),
    (np.zeros((3, 4, 4, 3), bool), ["dtype bool"]),
    (np.zeros((3, 3, 4, 4), np.uint8), ["(3, 3, 4, 4)", "numpy.moveaxis(images, 1, -1)"]),
    (np.zeros((3, 4, 4, 4), np.uint8), ["(3, 4, 4, 4)", "1 or 3 channels"]),
    (np.zeros((0, 4, 4, 3), np.uint8), ["(0, 4, 4, 3)", "no image"]),
    (np.zeros((9,), np.uint8), ["(9,)"]),
    (np.asfortranarray(IMAGES), ["Fortran", "numpy.ascontiguousarray(images)"]),
    (np.array([{}], object), ["cannot be read"]),
]


@pytest.mark.parametrize("save", SAVES[:3])
@pytest.mark.parametrize(("images", "parts"), ARRAYS)
def test_an_array_that_is_not_images_is_one_sentence(tmp_path, save, images, parts):
    ends_in_one_sentence(open_samples, save(tmp_path / "x.npz", images), "x.np", *parts)


def test_archives_without_images_are_one_sentence(tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(3), sigma=np.eye(3))
    ends_in_one_sentence(open_samples, tmp_path / "stats.npz", "'mu', 'sigma'", "'arr_0'")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("data.pkl", "?")
    ends_in_one_sentence(open_samples, tmp_path / "x.npz", "no arrays")
    for levels in (0, 257, 1.5, [3]):
        np.savez(tmp_path / "levels.npz", images=IMAGES, levels=levels)
        ends_in_one_sentence(open_samples, tmp_path / "levels.npz", "levels of")
    np.savez(tmp_path / "levels.npz", images=IMAGES, levels=17)
    samples = open_samples(tmp_path / "levels.npz")
    ends_in_one_sentence(lambda _: all_of(samples), None, "levels = 17", "images of")


def test_what_is_no_set_of_samples_is_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("mu")
    write(tmp_path / "others/x.npz", b"PK")
    os.mkfifo(tmp_path / "pipe")
    for name, parts in {
        "empty": ["has no images", ".png"],
        "others": ["has no images", "x.npz"],
        "absent": ["do not exist", "a folder of images, an .npz or an .npy"],
        "text": ["neither an .npz nor an .npy"],
        "pipe": ["neither a folder nor a file"],
    }.items():
        ends_in_one_sentence(open_samples, tmp_path / name, name, *parts)


@pytest.mark.parametrize("save", SAVES[:3])
def test_a_damaged_array_is_one_sentence(tmp_path, save):
    path = save(tmp_path / "x.npz", IMAGES)
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    ends_in_one_sentence(lambda path: all_of(open_samples(path)), path, "x.np", "cannot be read")
    if save is not save_npy:  # which has no checksum
        middle = whole.index(b"arr_0") + 400
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
        ends_in_one_sentence(lambda path: all_of(open_samples(path)), path, "cannot be read")


@pytest.mark.parametrize("save", SAVES[:3])
def test_a_file_that_is_replaced_while_it_is_in_use_is_one_sentence(tmp_path, save):
    path = save(tmp_path / "x.npz", IMAGES)
    samples = open_samples(path)
    path.write_bytes(path.read_bytes())
    ends_in_one_sentence(lambda _: all_of(samples), None, "has changed since it was opened")


def test_a_folder_that_changes_while_it_is_in_use_is_one_sentence(tmp_path):
    fill(tmp_path / "a", IMAGES[:10])
    samples = open_samples(fill(tmp_path / "b", IMAGES).parent)
    list(samples.batches(0, 1))  # so that the names of the other folder are forgotten
    (tmp_path / "b/003.png").unlink()
    ends_in_one_sentence(lambda _: all_of(samples, 10), None, "22 images, and had 23")
    (tmp_path / "a/003.png").unlink()
    ends_in_one_sentence(lambda _: all_of(samples, 0, 10), None, "a/003.png", "No such file")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["is empty"]),
        (b"GIF", ["not an image"]),
        (random_images(1, 4, 6, 3)[0], ["is 4x6", "are 4x5"]),
        (np.zeros((4, 5, 1), np.uint16), ["'I;16", "8 bits"]),
    ],
)
def test_an_odd_image_in_a_folder_is_one_sentence_with_its_name(tmp_path, content, parts):
    fill(tmp_path, IMAGES)
    write(tmp_path / "007.png", content)

    def read(path):
        return all_of(open_samples(path))

    ends_in_one_sentence(read, tmp_path, "007.png", *parts)


def test_a_coloured_image_among_grey_ones_is_one_sentence(tmp_path):
    fill(tmp_path, random_images(200, 2, 2, 1))
    write(tmp_path / "100.png", random_images(1, 2, 2, 3)[0])
    samples = open_samples(tmp_path)
    with pytest.raises(UserError) as caught:
        all_of(samples)
    one_sentence(caught, "100.png", "in colour", "RGB")
