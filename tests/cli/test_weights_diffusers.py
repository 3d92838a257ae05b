"""`ddpm-jax weights` and folders of diffusers: out and in, by path and by a name on the hub."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from foreign import foreign, imported
from hub import NAME, SHA, serve
from paths import ROOT

from ddpm_jax import load_run
from ddpm_jax.cli import main
from ddpm_jax.config import NoThreshold
from ddpm_jax.experiment import RunDirectory
from ddpm_jax.experiment.imported import write_imported_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("foreign") / "run"
    write_imported_run(foreign(network={"null_class": False}, classes=("cat", "dog")), path)
    return path


@pytest.fixture(scope="module")
def folder(run):
    """The run as a pipeline of diffusers."""
    folder = run.parent / "pipeline"
    assert main(["weights", "export", str(run), "--format", "diffusers", "--out", str(folder)]) == 0
    return folder


def equal(first, second):
    return jax.tree.all(jax.tree.map(np.array_equal, first, second))


def test_a_run_goes_out_and_in_again_with_the_same_bits(run, folder, tmp_path):
    assert imported(folder, tmp_path / "again", "--classes", "cat, dog") == 0
    first, second = (load_run(path) for path in (run, tmp_path / "again"))
    assert equal(first.params, second.params)
    assert first.network == second.network
    assert first.process == second.process
    assert second.images.classes == ("cat", "dog")
    assert second.config.sampler.threshold == NoThreshold()
    stored = json.loads((tmp_path / "again" / "imported.json").read_text())
    assert stored["source"]["kind"] == "diffusers"


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ('{"1": ["n02", "dog"], "0": ["n01", "cat"]}', ("n01, cat", "n02, dog")),
        ("cat\ndog\n", ("cat", "dog")),
    ],
)
def test_names_of_classes_are_of_a_file(content, names, folder, tmp_path):
    (tmp_path / "names.txt").write_text(content)
    assert imported(folder, tmp_path / "again", "--classes", str(tmp_path / "names.txt")) == 0
    assert load_run(tmp_path / "again").images.classes == names


@pytest.mark.parametrize(
    ("classes", "part"),
    [("cat", "has 1 names; the network has 2 classes"), ("names.txt", "there is no such file")],
)
def test_other_names_of_classes_are_a_sentence(classes, part, folder, tmp_path, capsys):
    assert imported(folder, tmp_path / "again", "--classes", classes) == 2
    assert part in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_a_pipeline_of_2022_has_all_files_in_one_folder(run, folder, tmp_path):
    """As google/ddpm-cifar10-32 and its sisters have."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in filter(Path.is_file, folder.rglob("*")):
        shutil.copy(file, flat)
    assert imported(flat, tmp_path / "again") == 0
    again = load_run(tmp_path / "again")
    assert again.process == load_run(run).process
    assert equal(again.params, load_run(run).params)


def test_a_network_alone_wants_its_chain(folder, tmp_path, capsys):
    assert imported(folder / "unet", tmp_path / "run") == 2
    assert "without a scheduler" in capsys.readouterr().err
    options = ["--options", "chain=linear num_steps=9 beta_max=0.3 predicts=v"]
    assert imported(folder / "unet", tmp_path / "run", *options) == 0
    config = RunDirectory(tmp_path / "run").read_config()
    assert (config.schedule.num_steps, config.schedule.beta_max) == (9, 0.3)
    assert config.network.predicts == "v"


def test_a_disk_that_fills_leaves_nothing(run, disk, capsys):
    import disks

    disks.fill(disk, leaving=20_000)
    before = sorted(disk.iterdir())
    out = ["--out", str(disk / "pipeline")]
    assert main(["weights", "export", str(run), "--format", "diffusers", *out]) == 2
    assert "No space left" in capsys.readouterr().err
    assert sorted(disk.iterdir()) == before


@pytest.mark.thorough
def test_a_name_on_the_hub_becomes_a_run(run, folder, tmp_path):
    """In processes of their own: huggingface_hub reads HF_ENDPOINT when it is imported."""
    pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")
    program = """
import sys
from ddpm_jax.cli import main
print([main(["weights", "import", name, "--workdir", sys.argv[1]]) for name in sys.argv[2:]])
"""
    home = {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}

    def start(*arguments, **environment):
        command = [sys.executable, "-c", program, *map(str, arguments)]
        whole = os.environ | home | environment
        ended = subprocess.run(command, env=whole, capture_output=True, text=True, check=True)
        return ended.stdout.splitlines()[-1], ended.stderr

    with serve(folder) as hub:
        code, errors = start(tmp_path / "run", "no/such", NAME, HF_ENDPOINT=hub.endpoint)
        assert code == "[2, 0]"
        assert errors.count("\n") == 1
        assert f"there is no model 'no/such' on {hub.endpoint}" in errors
    assert start(tmp_path / "offline", NAME, HF_HUB_OFFLINE="1") == ("[0]", "")
    for name in ("run", "offline"):
        assert equal(load_run(tmp_path / name).params, load_run(run).params)
        source = json.loads((tmp_path / name / "imported.json").read_text())["source"]
        assert (source["name"], source["commit"]) == (NAME, SHA)
