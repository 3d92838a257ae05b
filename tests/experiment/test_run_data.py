"""A run and its data set: sampling needs none, and a moved one is recognised by its content."""

import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from paths import TINY

from ddpm_jax.cli import main
from ddpm_jax.config import DDIM, plain

# quick: what is sampled in test_cli.py
pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("mixers")]
QUICK = ["--objective", "simple", "--times", "uniform", "--train.steps", "2"]
QUICK += ["--train.draw-every", "2", "--evaluation.likelihood-times", "2", "--mesh.data", "1"]


def images(seed=0, count=30):
    return np.random.default_rng(seed).integers(0, 17, (count, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with an archive, and a run that was trained on it from within the folder."""
    folder = tmp_path_factory.mktemp("place")
    labels = np.arange(30) % 3 * 2  # of five classes, two have no image
    np.savez(folder / "own.npz", images=images(), labels=labels, levels=17)
    before = Path.cwd()
    os.chdir(folder)
    try:
        train("own.npz", folder / "run", "--network.classes", "5")
    finally:
        os.chdir(before)
    return folder


def train(path, workdir, *more):
    arguments = [
        "train",
        TINY,
        *QUICK,
        "--data",
        "archive",
        "--data.path",
        str(path),
        "--workdir",
        str(workdir),
        *more,
    ]
    assert main(arguments) == 0


def sample(run, tmp_path, *more):
    out = tmp_path / "samples.npz"
    assert main(["sample", str(run), "--num", "6", "--out", str(out), *more]) == 0
    return np.load(out)["images"]


def refusal(capsys, *arguments):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def test_samples_are_drawn_where_the_data_set_is_not(place, tmp_path):
    """The working directory is another one, and the archive's path is relative."""
    moved = tmp_path / "moved"
    shutil.copytree(place / "run", moved)
    np.testing.assert_array_equal(sample(moved, tmp_path), sample(place / "run", tmp_path))


def test_a_process_that_follows_from_the_images_is_sampled_without_them(tmp_path):
    np.savez(tmp_path / "own.npz", images=images(), levels=17)
    run = tmp_path / "run"
    train(tmp_path / "own.npz", run, "--process", "equal-snr")
    before = sample(run, tmp_path)
    (tmp_path / "own.npz").unlink()
    np.testing.assert_array_equal(sample(run, tmp_path), before)


def test_sample_takes_the_runs_own_sampler_steps_and_spacing(place, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    own = ["--sampler", "ddim", "--sampler.steps", "3", "--sampler.spacing", "trailing"]
    asked_for, all_steps = sample(run, tmp_path, *own), sample(run, tmp_path)
    stored = json.loads((run / "config.json").read_text())
    stored["sampler"] = plain(DDIM(steps=3, spacing="trailing"))
    (run / "config.json").write_text(json.dumps(stored))
    np.testing.assert_array_equal(sample(run, tmp_path), asked_for)
    assert (asked_for != all_steps).any()


def test_samples_do_not_depend_on_jaxs_default_generator(place, tmp_path):
    before = sample(place / "run", tmp_path)
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(sample(place / "run", tmp_path), before)


class TestMovedData:
    def test_evaluate_is_told_where_it_is(self, place, tmp_path, capsys):
        shutil.copy(place / "own.npz", tmp_path / "other_name.npz")
        arguments = ["evaluate", str(place / "run"), "--num", "0", "--out", str(tmp_path / "out")]
        assert main([*arguments, "--data.path", str(tmp_path / "other_name.npz")]) == 0
        stored = json.loads((place / "run" / "results.json").read_text())
        assert f"{stored['bits_per_dim']:.3f}" in capsys.readouterr().out

    def test_a_run_goes_on_with_it(self, place, tmp_path):
        run = tmp_path / "run"
        shutil.copytree(place / "run", run)
        (run / "results.json").unlink()
        shutil.copy(place / "own.npz", tmp_path / "other_name.npz")
        train(tmp_path / "other_name.npz", run, "--network.classes", "5")
        moved, before = (
            json.loads((folder / "results.json").read_text()) for folder in (run, place / "run")
        )
        assert moved["dataset"] == "other_name"
        assert moved["bits_per_dim"] == before["bits_per_dim"]

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"seed": 1}, "the same number and shape of images, but other content"),
            ({"count": 31}, "training images were 27 and are 28"),
        ],
    )
    def test_another_set_is_refused(self, place, tmp_path, capsys, changes, words):
        other = images(**changes)
        labels = np.arange(len(other)) % 3 * 2
        np.savez(tmp_path / "own.npz", images=other, labels=labels, levels=17)
        where = ["--data", "archive", "--data.path", str(tmp_path / "own.npz")]
        assert words in refusal(capsys, "evaluate", place / "run", *where)
        assert words in refusal(capsys, "replay", place / "run", "--step", "1", *where)
        run = tmp_path / "run"
        shutil.copytree(place / "run", run)
        (run / "results.json").unlink()
        arguments = ["train", TINY, *QUICK, *where, "--network.classes", "5", "--workdir", run]
        assert words in refusal(capsys, *arguments)


class TestClassesWithoutImages:
    def test_are_not_drawn(self, place, tmp_path, capsys):
        """Images 0, 1, 2 of a key are of the classes 0, 2, 4."""
        turns = sample(place / "run", tmp_path)
        for image, label in enumerate("024"):
            own = sample(place / "run", tmp_path, "--label", label)
            np.testing.assert_array_equal(own[image], turns[image])

    def test_are_refused_by_name(self, place, tmp_path, capsys):
        error = refusal(capsys, "sample", place / "run", "--label", "1")
        assert "--label is '1', a class without training images" in error
        assert "0, 2, 4" in error


def test_a_record_that_was_altered_is_refused(place, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    record = run / "images.json"
    record.write_text(record.read_text().replace('"levels": 17', '"levels": 16'))
    assert "images.json' is damaged" in refusal(capsys, "sample", run)


def test_a_run_without_a_record_reads_its_data_set(place, tmp_path, monkeypatch):
    """As one of an earlier version."""
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    (run / "images.json").unlink()
    monkeypatch.chdir(place)
    np.testing.assert_array_equal(sample(run, tmp_path), sample(place / "run", tmp_path))
