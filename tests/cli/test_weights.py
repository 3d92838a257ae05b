"""`ddpm-jax weights`: a run out and in again is the same; what cannot be done is one line."""

import numpy as np
import openai_states
import pytest
import torch_pickles
from foreign import export, foreign, imported

from ddpm_jax import load_run
from ddpm_jax.cli import main
from ddpm_jax.experiment.imported import write_imported_run


@pytest.fixture(scope="module")
def foreign_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("foreign") / "run"
    write_imported_run(foreign(names=("ema", "raw"), classes=("cat", "dog")), path)
    return path


def one_line(capsys, *parts):
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    for part in parts:
        assert part in captured.err


def test_a_run_goes_out_and_in_again_with_the_same_files(foreign_run, tmp_path, capsys):
    for name in ("ema", "raw"):
        assert export(foreign_run, tmp_path / f"{name}.safetensors", "--params", name) == 0
    line = capsys.readouterr().out.splitlines()[0]
    size = (tmp_path / "ema.safetensors").stat().st_size
    assert f"{size:,} bytes in {tmp_path}/ema.safetensors" in line
    again = ["--raw", str(tmp_path / "raw.safetensors")]
    assert imported(tmp_path / "ema.safetensors", tmp_path / "again", *again) == 0
    for name in ("ema", "raw"):
        file = (tmp_path / "again" / "weights" / f"{name}.safetensors").read_bytes()
        assert file == (foreign_run / "weights" / f"{name}.safetensors").read_bytes()
        assert file == (tmp_path / f"{name}.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("nowhere", ["there is no file or folder 'nowhere'"]),
        ("../nowhere/model", ["'../nowhere/model'", "not a name on the Hugging Face hub"]),
        ("a/..", ["'a/..'"]),
        ("file.txt", ["nor a file that ends in .safetensors"]),
        ("damaged.safetensors", ["damaged.safetensors"]),
    ],
)
def test_a_source_that_is_none_is_a_sentence(source, parts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").touch()
    (tmp_path / "damaged.safetensors").write_bytes((10**18).to_bytes(8, "little") + b"{}")
    assert imported(source, "run") == 2
    one_line(capsys, *parts)
    assert not (tmp_path / "run").exists()


def test_other_peoples_safetensors_are_no_run(tmp_path, capsys):
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    assert imported(tmp_path / "other.safetensors", tmp_path / "run") == 2
    one_line(capsys, "was not written by `ddpm-jax weights export`")


def test_runs_and_options_of_other_kinds_are_refused(foreign_run, tmp_path, capsys):
    assert imported(foreign_run, tmp_path / "run") == 2
    one_line(capsys, "is a run already")
    export(foreign_run, tmp_path / "a.safetensors")
    capsys.readouterr()
    assert imported(tmp_path / "a.safetensors", tmp_path / "run", "--revision", "main") == 2
    one_line(capsys, "--revision is 'main'; a .safetensors file does not take it")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (
            ["nothing", "--format", "safetensors", "--out", "a.safetensors"],
            "is not a run directory",
        ),
        (["RUN", "--format", "safetensors", "--out", "there.safetensors"], "which exists"),
        (["RUN", "--format", "diffusers", "--out", "there.safetensors"], "which exists"),
        (["RUN", "--format", "safetensors", "--out", "a.npz"], "has to end in .safetensors"),
    ],
)
def test_an_export_that_cannot_be_is_a_sentence(
    arguments, part, foreign_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.safetensors").touch()
    given = [str(foreign_run) if word == "RUN" else word for word in arguments]
    assert main(["weights", "export", *given]) == 2
    one_line(capsys, part)
    assert [path.name for path in tmp_path.iterdir()] == ["there.safetensors"]


def test_a_pt_file_of_openai_becomes_a_run_with_both_parameters(tmp_path):
    for seed, name in enumerate(("model000010.pt", "ema_0.9999_000010.pt")):
        state = openai_states.random_state(seed)
        (tmp_path / name).write_bytes(torch_pickles.as_file(state))
    flags = "--image_size 16 --num_channels 32 --num_res_blocks 1 --attention_resolutions 8"
    flags += " --diffusion_steps 50 --rescale_timesteps True"
    more = ["--raw", str(tmp_path / "model000010.pt"), "--options", flags]
    assert imported(tmp_path / "ema_0.9999_000010.pt", tmp_path / "run", *more) == 0
    ema, raw = (load_run(tmp_path / "run", params=name) for name in ("ema", "raw"))
    assert ema.images.shape == (16, 16, 3)
    assert ema.process.num_steps == 50
    bias = (run.params["params"]["output"]["bias"] for run in (ema, raw))
    assert not np.array_equal(*bias)


def test_a_run_without_raw_parameters_says_so(tmp_path, capsys):
    write_imported_run(foreign(), tmp_path / "run")
    assert export(tmp_path / "run", tmp_path / "a.safetensors", "--params", "raw") == 2
    one_line(capsys, "has no parameters 'raw'; it has 'ema'")


def test_a_disk_that_fills_leaves_nothing(foreign_run, disk, capsys):
    import disks

    disks.fill(disk, leaving=20_000)
    before = sorted(disk.iterdir())
    assert export(foreign_run, disk / "out.safetensors") == 2
    one_line(capsys, "No space left")
    assert sorted(disk.iterdir()) == before


def test_usage_names_both(capsys):
    assert main(["weights", "--help"]) == 0
    assert "import PATH_OR_NAME" in capsys.readouterr().out
    assert main(["weights", "steal"]) == 2
    one_line(capsys, "needs import or export, not 'steal'")


def test_a_sampler_of_parameters_that_a_run_does_not_have_is_a_sentence(tmp_path, capsys):
    write_imported_run(foreign(), tmp_path / "run")
    out = tmp_path / "sampler.bin"
    assert main(["export", str(tmp_path / "run"), "--params", "raw", "--out", str(out)]) == 2
    one_line(capsys, "has no parameters 'raw'; it has 'ema'")
    assert not out.exists()
