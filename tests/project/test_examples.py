"""The examples of the documentation: each trains, and is sampled when its file is gone."""

import json
import re
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
FEWER = {
    "own_network": ("--network.width", "8"),
    "own_sampler": ("--sampler.steps", "4"),
    "extending": ("--sampler.steps", "4", "--evaluation.t", "4"),
}


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
    assert np.load("x.npz")["arr_0"].shape == (4, 8, 8, 1)


@pytest.mark.thorough
def test_the_members_of_the_page_on_extending_train(trained, tmp_path):
    page = (ROOT / "docs" / "extending.md").read_text()
    path = tmp_path / "extending.py"
    path.write_text("\n".join(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)))
    run = trained(path)
    assert 0.0 < json.loads((run / "results.json").read_text())["rms_error"] < 2.0
    assert "loss" in json.loads((run / "lines.jsonl").read_text().splitlines()[0])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(path):
    assert len(path.read_text().splitlines()) <= 60
