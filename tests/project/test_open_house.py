"""The one rule of everything that can be chosen: a member is declared once, and nobody knows it."""

import ast
import json
import shutil

import jax
import numpy as np
import pytest
from paths import ROOT, SUPPORT

from ddpm_jax import config
from ddpm_jax.cli.main import main
from ddpm_jax.evaluation import classifier

HOUSE = SUPPORT / "open_house.py"
PACKAGE = ROOT / "ddpm_jax"
ABOVE = ("config", "experiment", "plan", "cli")
"""Rooms that could know members; those before `config` cannot import them."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run in which every member is of a config file, ended after some steps and resumed."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        run = tmp_path_factory.mktemp("house") / "run"
        assert main(["train", str(HOUSE), "--train.steps", "3", "--workdir", str(run)]) == 0
        assert main(["train", str(HOUSE), "--workdir", str(run)]) == 0
        yield run


def test_each_family_has_a_member_of_the_users(run):
    stored = config.flat(json.loads((run / "config.json").read_text()))
    for family, base in config.families().items():
        assert stored[family] not in [member.__name__ for member in config.members(base)], family


@pytest.mark.thorough
def test_a_run_of_members_of_the_users_is_the_same_when_it_was_extended(run, tmp_path):
    assert main(["train", str(HOUSE), "--workdir", str(tmp_path / "whole")]) == 0
    lines, whole = (
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (run, tmp_path / "whole")
    )
    assert [line for line in lines if line in whole] == whole


def test_a_logger_of_the_users_gets_figures_and_pictures(run):
    lines = [json.loads(line) for line in (run / "lines.jsonl").read_text().splitlines()]
    assert {"loss", "images_per_second"} <= lines[0].keys()
    assert any("picture" in line for line in lines)
    final = {"step": 6.0, "parameters": 37 * 36 + 36, "held_out_images": 16.0}
    assert lines[-1] == {"step": 6, **{f"final_{name}": value for name, value in final.items()}}


def test_an_evaluation_of_the_users_ends_the_run(run):
    results = json.loads((run / "results.json").read_text())
    assert results["step"] == 6
    assert results["parameters"] == 37 * 36 + 36


def test_it_is_sampled(run, tmp_path):
    out = tmp_path / "x.npz"
    assert main(["sample", str(run), "--num", "4", "--out", str(out)]) == 0
    assert np.load(out)["images"].shape == (4, 6, 6, 1)
    built_in = ["--sampler", "ddim", "--sampler.steps", "4", "--sampler.eta", "0.5"]
    assert main(["sample", str(run), "--num", "4", *built_in, "--out", str(out)]) == 0
    assert main(["sample", str(run), "--num", "4", "--sampler", "guess", "--out", str(out)]) == 0


@pytest.mark.parametrize(
    "num",
    ["0", pytest.param("8", marks=pytest.mark.thorough)],  # which trains a classifier
)
def test_it_is_evaluated(run, tmp_path, num, monkeypatch):
    monkeypatch.setattr(classifier, "_STEPS", 20)
    assert main(["evaluate", str(run), "--num", num, "--out", str(tmp_path / "e")]) == 0
    results = json.loads((tmp_path / "e" / "results.json").read_text())
    assert results["params"]["ema"]["results"] == {"parameters": 37 * 36 + 36}


def test_it_is_inspected_and_replayed(run, capsys):
    assert main(["inspect", str(HOUSE)]) == 0
    assert main(["replay", str(run), "--step", "5"]) == 0
    assert "step 5, replayed from" in capsys.readouterr().out


def test_a_run_is_inspected_without_executing_it(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "config.py").write_text("raise SystemExit(9)")
    assert main(["inspect", str(copy)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "OneLayer" in out
    assert "CHANGED since it was stored; it was not executed" in out


@pytest.mark.parametrize("room", ABOVE)
def test_no_module_outside_of_a_family_names_a_member_of_it(room):
    homes = {
        member.__name__: member.__module__
        for base in config.families().values()
        for member in config.members(base)
    }
    for path in sorted((PACKAGE / room).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if module in ("ddpm_jax.config.config", "ddpm_jax.config.__init__"):
            continue  # the defaults are members
        for node in ast.walk(ast.parse(path.read_text())):
            names = {getattr(node, "id", None), getattr(node, "attr", None)}
            names |= {alias.name for alias in getattr(node, "names", ()) if hasattr(alias, "name")}
            for name in names & homes.keys():
                assert homes[name] == module, f"{module} names {name}"


def test_names_of_members_are_distinct():
    names = [
        config.member_name(member)
        for base in config.families().values()
        for member in config.members(base)
    ]
    assert len(names) == len(set(names))
