"""Runs with a network of the user's own config file: they need neither the file nor the folder."""

import json
import shutil

import numpy as np
import pytest

from ddpm_jax.cli.main import main
from ddpm_jax.experiment import RunDirectory

OWN = """import dataclasses
import flax.linen as nn
from ddpm_jax import config


class Layer(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x_t, t):
        return nn.Dense(1)(nn.swish(nn.Dense(self.width)(x_t)))


@dataclasses.dataclass(frozen=True)
class TwoLayers(config.Network):
    width: int = 4

    def make(self, images):
        return Layer(self.width)


def get_config():
    return config.Config(
        network=TwoLayers(),
        schedule=config.Linear(num_steps=8),
        sampler=config.DDIM(steps=2),
        evaluation=config.HeldOutLoss(batch_size=64, num_samples=2),
        train=config.Train(
            steps=4, batch_size=8, log_every=2, save_every=2, draw_every=100
        ),
        mesh=config.Jit(data=1),
    )
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a finished run whose config file is gone."""
    folder = tmp_path_factory.mktemp("own")
    path = folder / "own.py"
    path.write_text(OWN)
    arguments = ["--network.width", "6", "--workdir", str(folder / "run")]
    assert main(["train", str(path), *arguments]) == 0
    path.unlink()
    return folder / "run"


@pytest.fixture
def run(made, tmp_path):
    """A copy of it, as if it had been killed after step 2."""
    run = shutil.copytree(made, tmp_path / "run")
    (run / "results.json").unlink()
    shutil.rmtree(run / "checkpoints" / "4")
    return run


def train(run, text, tmp_path, *arguments):
    path = tmp_path / "own.py"
    path.write_text(text)
    arguments = ["--network.width", "6", "--workdir", str(run), *arguments]
    return main(["train", str(path), *arguments])


def test_it_is_sampled_from_elsewhere_without_its_file(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(made), "--num", "3", "--out", "x.npz"]) == 0
    assert np.load("x.npz")["images"].shape == (3, 8, 8, 1)
    stored = json.loads((made / "config.json").read_text())
    assert stored["network"] | {"width": 6} == stored["network"]
    assert stored["network"]["class"] == "config.py:TwoLayers"
    assert (made / "config.py").read_text() == OWN


def test_its_copy_goes_on_as_the_file_would(made, run, capsys):
    arguments = ["--network.width", "6", "--workdir", str(run)]
    assert main(["train", str(run / "config.py"), *arguments]) == 0
    assert "resuming from step 2" in capsys.readouterr().out
    lines = [RunDirectory(folder).metrics.read_bytes() for folder in (made, run)]
    assert lines[0] == lines[1]


def test_it_goes_on_after_a_change_of_get_config_alone(made, run, tmp_path, capsys):
    text = OWN.replace("draw_every=100", "draw_every=50 + 50  # as before\n        ")
    assert train(run, text, tmp_path) == 0
    assert "resuming from step 2" in capsys.readouterr().out
    lines = [RunDirectory(folder).metrics.read_bytes() for folder in (made, run)]
    assert lines[0] == lines[1]
    # The copy is of the file that the config is from now.
    assert (run / "config.py").read_text() == text
    assert main(["sample", str(run), "--num", "1", "--out", str(tmp_path / "x.npz")]) == 0


def test_it_is_refused_after_a_change_of_the_class(run, tmp_path, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert train(run, OWN.replace("swish", "relu"), tmp_path) == 2
    error = capsys.readouterr().err
    assert "own.py has changed since the run" in error
    assert f"`ddpm-jax train {run / 'config.py'}` continues with the run's copy" in error
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_it_may_go_on_with_another_sampler_of_the_file_or_of_the_package(made, run, tmp_path):
    """A member that affects reports alone may be another one, also one of the user's own."""
    own = (
        "@dataclasses.dataclass(frozen=True)\nclass Late(config.DDIM):\n    eta: float = 1.0\n\n\n"
    )
    text = OWN.replace("def get_config", f"{own}def get_config").replace("config.DDIM", "Late", 2)
    text = text.replace("class Late(Late)", "class Late(config.DDIM)")
    for number, (contents, arguments) in enumerate(
        [(OWN, ["--sampler", "heun"]), (OWN, ["--sampler", "ancestral"])]
    ):
        copy = shutil.copytree(run, tmp_path / f"run{number}")
        assert train(copy, contents, tmp_path, *arguments) == 0
        stored = json.loads((copy / "config.json").read_text())
        assert stored["sampler"]["class"].endswith(arguments[1].capitalize())
    # The classes of the new file are not those that the run began with.
    assert train(run, text, tmp_path) == 2
