"""`ddpm-jax compare`: options, tables, and samples from the same noise."""

import re
import shutil

import numpy as np
import pytest
from compared import make_run

from ddpm_jax.cli import main
from ddpm_jax.comparison.comparison import compare


@pytest.fixture
def two(tmp_path):
    return [make_run(tmp_path / "a", bits=[2, 3]), make_run(tmp_path / "b", bits=[1, 2.5], seed=1)]


def run(*arguments):
    return main(["compare", *map(str, arguments)])


def test_compare_prints_tables_and_writes_one_file(two, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    before = sorted(two[0].rglob("*"))
    assert run(*two, "--num", 0, "--out", tmp_path / "out.html") == 0
    captured = capsys.readouterr()
    assert "-0.7500 [-1.2400, -0.2600]" in captured.out
    assert "A: it is not finished: step 0 of 24" in captured.err
    assert (tmp_path / "out.html").read_text().startswith("<!DOCTYPE html>")
    assert sorted(two[0].rglob("*")) == before


@pytest.mark.usefixtures("mixers")
def test_samples_of_two_runs_start_from_the_same_noise(tiny_run, tmp_path, capsys):
    """A copy of a run draws the same images, and another seed draws others."""
    runs, page = [tiny_run, shutil.copytree(tiny_run, tmp_path / "copy")], tmp_path / "out.html"
    assert run(*runs, "--num", 3, "--out", page) == 0
    first, second = re.findall(r'class="strip">.*?base64,([^"]*)"', page.read_text())
    assert first == second
    assert "drawing 3 images of B, step 24" in capsys.readouterr().out
    assert "step 24, ancestral, 8 of 8 steps" in page.read_text()
    drawn = [compare(runs, num=3, seed=seed).samples[1].images for seed in (0, 1)]
    assert not np.array_equal(*drawn)


@pytest.mark.usefixtures("mixers")
def test_bits_of_single_images_are_measured_once(tiny_run, tmp_path):
    """Copies of a run have the same bits/dim, and those of the end of its training."""
    without = shutil.ignore_patterns("evaluation")
    runs = [shutil.copytree(tiny_run, tmp_path / name, ignore=without) for name in "ab"]
    assert "no bits/dim of single images of A and B" in compare(runs, num=0).bits[1].difference
    lines = []
    measured = compare(runs, num=0, measure=True, report=lines.append)
    assert measured.bits[1].difference.difference.value == 0.0
    at_end = measured.runs[0].results["bits_per_dim"]
    assert [row.value for row in measured.bits] == pytest.approx([at_end, at_end], rel=1e-5)
    assert lines == [f"evaluating held-out images of {letter}, step 24" for letter in "AB"]
    again = compare(runs, num=0, measure=True, report=lines.append)
    assert again.bits == measured.bits
    assert len(lines) == 2


def test_what_cannot_be_measured_is_a_note(two, tmp_path):
    without = make_run(tmp_path / "without")
    notes = compare([*two, without], num=0, measure=True).notes
    measured = [note for note in notes if "are not measured" in note]
    assert len(measured) == 1
    assert measured[0].startswith("C: bits/dim of single images are not measured: ")
    assert "has no checkpoint yet" in measured[0]


@pytest.mark.usefixtures("mixers")
def test_one_sampler_draws_from_all_runs(tiny_run, two, tmp_path):
    """A run without a checkpoint is left out, and the page says why."""
    page = tmp_path / "out.html"
    assert run(two[0], tiny_run, "--num", 1, "--sampler", "ddim", "--out", page) == 0
    assert "ddim, 8 of 8 steps" in page.read_text()
    assert "has no checkpoint yet" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the number of runs is 2"),
        (["--out", "a.png"], "--out is 'a.png'; its name has to end in .html"),
        (["--out", "absent/a.html"], "there is no folder absent"),
        (["--seed", "-1"], r"--seed is -1; it has to be in [0, 2^32)"),
        (["--num", "-1"], "--num is -1; it has to be 0 or more"),
        (["--batch-size", "0"], "--batch-size is 0; it has to be 1 or more"),
        (["--sampler", "absent"], "absent"),
        (["nowhere"], "'nowhere' is not a run directory"),
    ],
)
def test_a_wrong_option_is_one_sentence(arguments, sentence, two, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = two if arguments else []
    assert run(*runs, *arguments) == 2
    err = capsys.readouterr().err
    assert sentence.replace("is 2", "is 0") in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("*.html"))


def test_help_names_all_options(capsys):
    assert run("--help") == 0
    out = capsys.readouterr().out
    assert out.count("\n") <= 80
    for option in (
        "--out",
        "--params",
        "--num",
        "--sampler",
        "--seed",
        "--batch-size",
        "--measure",
    ):
        assert option in out
