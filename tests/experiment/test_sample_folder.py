"""Images drawn into a folder or an .npz: whole, once, and the same after any stop."""

import dataclasses
import errno
import functools
import json
import shutil

import disks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from imagery import one_sentence
from networks import make_mixers
from PIL import Image

from ddpm_jax.config import DDIM
from ddpm_jax.data import read_archive, to_bytes
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import open_samples
from ddpm_jax.experiment import build, initial_state, make_drawer, sample_folder
from ddpm_jax.experiment.sample_archive import draw_into_archive
from ddpm_jax.experiment.sample_folder import (
    Draw,
    draw_in_memory,
    draw_into_folder,
    labels_of_images,
)
from ddpm_jax.experiment.sampling import labels_of
from ddpm_jax.files import locked_folder
from ddpm_jax.training import SaveError


@pytest.fixture(scope="module", autouse=True)
def _small_blocks_and_a_network_that_compiles_at_once():
    with pytest.MonkeyPatch.context() as patch:
        make_mixers(patch)
        patch.setattr(sample_folder, "BLOCK", 10)
        patch.setattr(sample_folder, "make_drawer", drawer_of)
        yield


@functools.cache
def drawer_of(experiment, **options):
    """Compiled once for all tests."""
    return make_drawer(experiment, **options)


@pytest.fixture(scope="module")
def draw():
    config = tiny.get_config()
    experiment = build(config, devices=jax.devices()[:1])
    # After no training a network would predict 0.
    params = jax.tree.map(lambda leaf: leaf + 0.05, initial_state(experiment).params)
    return Draw(experiment, params, 27, DDIM(steps=2, eta=0.5), seed=3, label=None, batch_size=4)


@pytest.fixture(scope="module")
def images(draw):
    """The same from the drawer itself, with 256 levels."""
    drawer = make_drawer(draw.experiment, num=27, sampler=draw.sampler)
    return to_bytes(drawer(draw.params, jax.random.key(3)).images, 17)


@pytest.fixture
def count(monkeypatch):
    """The numbers of the images that are written."""
    written, save = [], sample_folder._save_png

    def counting(path, image):
        written.append(int(path.stem))
        save(path, image)

    monkeypatch.setattr(sample_folder, "_save_png", counting)
    return written


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def all_of(path):
    return np.concatenate(list(open_samples(path, report=pytest.fail).batches()))


def quiet(line):
    pass


def test_images_are_those_of_the_drawer_in_any_batches(draw, images, tmp_path):
    for batch_size in (4, 100):
        folder = tmp_path / str(batch_size)
        draw_into_folder(folder, dataclasses.replace(draw, batch_size=batch_size), quiet)
        numbers = [f"{n // 10:05d}/{n:07d}.png" for n in range(27)]
        assert files(folder) == [*numbers, "samples.json"]
        np.testing.assert_array_equal(all_of(folder), images)
    np.testing.assert_array_equal(to_bytes(draw_in_memory(draw), 17), images)


def test_what_is_there_is_not_drawn_again(draw, images, tmp_path, count):
    draw_into_folder(tmp_path, dataclasses.replace(draw, num=13), quiet)
    assert count == list(range(13))
    count.clear()
    draw_into_folder(tmp_path, draw, quiet)
    assert count == list(range(13, 27))
    count.clear()
    lines = []
    draw_into_folder(tmp_path, dataclasses.replace(draw, num=5), lines.append)
    assert count == []
    assert lines == [f"{tmp_path} is for more images, 27"]
    np.testing.assert_array_equal(all_of(tmp_path), images)


def test_damaged_and_missing_images_are_drawn_again(draw, images, tmp_path, count):
    draw_into_folder(tmp_path, draw, quiet)
    count.clear()
    place = tmp_path / "00001"
    content = (place / "0000011.png").read_bytes()
    (place / "0000011.png").write_bytes(b"")
    (place / "0000013.png").write_bytes(content[:-20])
    (place / "0000014.png").write_bytes(content[:60] + b"?" + content[61:])
    (place / "0000015.png").unlink()
    Image.new("L", (9, 8)).save(place / "0000016.png")
    Image.new("RGB", (8, 8)).save(place / "0000019.png")
    shutil.rmtree(tmp_path / "00002")
    draw_into_folder(tmp_path, draw, quiet)
    assert count == [11, 13, 14, 15, 16, 19, *range(20, 27)]
    np.testing.assert_array_equal(all_of(tmp_path), images)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left")])
def test_a_stop_leaves_whole_images_and_the_next_draw_continues(
    draw, images, tmp_path, count, monkeypatch, error
):
    save = sample_folder._save_png

    def failing(path, image):
        if len(count) == 15:
            path.write_bytes(b"half")
            raise error
        save(path, image)

    with monkeypatch.context() as patch:
        patch.setattr(sample_folder, "_save_png", failing)
        with pytest.raises((KeyboardInterrupt, SaveError)):
            draw_into_folder(tmp_path, draw, quiet)
    assert count == list(range(15))
    there = open_samples(tmp_path, report=[].append)
    np.testing.assert_array_equal(np.concatenate([*there.batches()]), images[: there.num])
    assert there.num == 14  # ten, and one batch of four
    count.clear()
    draw_into_folder(tmp_path, draw, quiet)
    assert count == list(range(14, 27))
    np.testing.assert_array_equal(all_of(tmp_path), images)


def test_a_reader_is_told_of_a_draw_that_has_not_ended(draw, tmp_path):
    draw_into_folder(tmp_path, draw, quiet)
    (tmp_path / "00002/0000026.png").unlink()
    lines = []
    assert open_samples(tmp_path, report=lines.append).num == 26
    assert lines == [f"{str(tmp_path)!r} has 26 of the 27 images that are drawn into it"]


def test_a_full_disk_is_a_sentence_and_nothing_is_lost(draw, disk):
    disks.fill(disk, leaving=30_000)
    with pytest.raises(SaveError) as caught:
        draw_into_folder(disk / "out", dataclasses.replace(draw, num=500), quiet)
    one_sentence(caught, "out'", "No space left on device", "the same command continues")
    assert not list((disk / "out").rglob("*.partial"))
    (disk / "other people's").unlink()
    draw_into_folder(disk / "out", dataclasses.replace(draw, num=500), quiet)
    assert open_samples(disk / "out", report=pytest.fail).num == 500


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "part"),
        [
            ({"seed": 4}, "seed is 3 there and 4 here"),
            ({"sampler": DDIM(steps=3, eta=0.5)}, "sampler.steps is 2 there and 3 here"),
        ],
    )
    def test_other_settings(self, draw, tmp_path, count, fields, part):
        draw_into_folder(tmp_path, dataclasses.replace(draw, num=2), quiet)
        with pytest.raises(UserError) as caught:
            draw_into_folder(tmp_path, dataclasses.replace(draw, **fields), quiet)
        one_sentence(caught, part, "--out is", "take another folder")
        assert count == [0, 1]

    def test_other_parameters(self, draw, tmp_path):
        draw_into_folder(tmp_path, dataclasses.replace(draw, num=2), quiet)
        params = jax.tree.map(lambda leaf: leaf + 1.0, draw.params)
        with pytest.raises(UserError, match="other settings \\(params is"):
            draw_into_folder(tmp_path, dataclasses.replace(draw, params=params), quiet)

    def test_a_folder_with_other_files(self, draw, tmp_path):
        (tmp_path / "cat.png").touch()
        with pytest.raises(UserError, match=r"no samples\.json, such as 'cat\.png'; take a new"):
            draw_into_folder(tmp_path, draw, quiet)

    @pytest.mark.parametrize("content", ["", "{}", '{"num": "3", "follows_from": {}}'])
    def test_a_damaged_record(self, draw, tmp_path, content):
        (tmp_path / "samples.json").write_text(content)
        with pytest.raises(UserError, match=r"samples\.json' is"):
            draw_into_folder(tmp_path, draw, quiet)

    def test_a_folder_that_another_process_draws_into(self, draw, tmp_path):
        with (
            locked_folder(tmp_path),
            pytest.raises(UserError, match="another process draws"),
        ):
            draw_into_folder(tmp_path, draw, quiet)


class TestArchive:
    def test_has_the_images_with_256_levels_and_with_its_own(self, draw, images, tmp_path):
        path = tmp_path / "x.npz"
        draw_into_archive(path, draw, quiet)
        with np.load(path) as arrays:
            np.testing.assert_array_equal(arrays["arr_0"], images)
            np.testing.assert_array_equal(to_bytes(arrays["images"], 17), images)
            assert arrays["levels"] == 17
            assert json.loads(str(arrays["about"]))["num"] == 27
            assert "arr_1" not in arrays
        assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]
        np.testing.assert_array_equal(all_of(path), images)
        assert read_archive(path).levels == 17

    def test_continues_and_is_not_drawn_twice(self, draw, images, tmp_path, count, monkeypatch):
        path = tmp_path / "x.npz"
        with monkeypatch.context() as patch:
            patch.setattr(sample_folder._Progress, "add", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                draw_into_archive(path, draw, quiet)
        assert [p.name for p in tmp_path.iterdir()] == ["x.npz.parts"]
        drawn = len(count)
        draw_into_archive(path, draw, quiet)
        assert count == list(range(27))
        assert drawn == 4
        lines, before = [], path.read_bytes()
        draw_into_archive(path, draw, lines.append)
        assert lines == [f"{path} holds these images already"]
        path.write_bytes(before[:-5])  # a damaged one is made again
        draw_into_archive(path, draw, quiet)
        assert path.read_bytes() == before


def _interrupt(progress, count):
    raise KeyboardInterrupt


def test_labels_are_those_that_the_network_gets():
    config = tiny.get_config()
    network = dataclasses.replace(config.network, classes=10)
    experiment = build(dataclasses.replace(config, network=network), devices=jax.devices()[:1])
    draw = Draw(experiment, None, 27, DDIM(steps=2), seed=0, label=None, batch_size=4)
    expected = np.asarray(labels_of(experiment, jnp.arange(5, 27)))
    np.testing.assert_array_equal(labels_of_images(draw, 5, 27), expected)
    np.testing.assert_array_equal(
        labels_of_images(dataclasses.replace(draw, label=7), 5, 8), [7, 7, 7]
    )
