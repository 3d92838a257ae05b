"""The examples of the documentation: each trains, and is sampled when its file is gone."""

import runpy
import shutil

import jax
import numpy as np
import pytest
from paths import ROOT

from ddpm_jax.cli.main import main

EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
CONFIGS = [path for path in EXAMPLES if "get_config" in path.read_text()]
SMALL = ("--train.steps", "4", "--train.log-every", "2", "--train.save-every", "2")
CHAIN = ("--schedule.num-steps", "8", "--evaluation.num-samples", "4")
UNET = ("--network.channels", "4", "--network.norm-groups", "2", "--network.multipliers", "1")
FEWER = {"own_network": ("--network.width", "8"), "own_sampler": ("--sampler.steps", "4")}


@pytest.fixture(autouse=True)
def promotion_of_users():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Trains a copy of an example in a folder of its own, and deletes the copy."""
    monkeypatch.chdir(tmp_path)

    def train(path):
        shutil.copy(path, "example.py")
        network = () if path.stem == "own_network" else UNET
        options = (*SMALL, *CHAIN, *network, *FEWER.get(path.stem, ()))
        assert main(["train", "example.py", *options, "--workdir", "run"]) == 0
        (tmp_path / "example.py").unlink()
        return tmp_path / "run"

    return train


QUICK = ("own_network",)
"""The others compile a U-Net each, too."""


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=() if path.stem in QUICK else pytest.mark.thorough)
        for path in CONFIGS
    ],
)
def test_an_example_trains_and_is_sampled_without_its_file(path, trained, tmp_path, monkeypatch):
    run = trained(path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["sample", str(run), "--num", "4", "--out", "x.npz"]) == 0
    assert np.load("x.npz")["images"].shape == (4, 8, 8, 1)


def test_an_own_loop_says_what_it_reaches(capsys):
    runpy.run_path(str(ROOT / "docs/examples/own_loop.py"))["main"](3)
    assert "bits/dim" in capsys.readouterr().out.splitlines()[-1]


def test_a_run_is_loaded_in_two_lines(trained, capsys):
    run = trained(ROOT / "docs/examples/own_network.py")
    runpy.run_path(str(ROOT / "docs/examples/load_run.py"))["main"](str(run))
    assert "16 images, (8, 8, 1)" in capsys.readouterr().out


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(path):
    assert len(path.read_text().splitlines()) <= (100 if path.stem == "own_loop" else 60)
