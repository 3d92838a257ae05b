"""`ddpm-jax export`: the images of `ddpm-jax sample`, and what it refuses before it computes."""

import jax
import jax.export
import jaxtyping
import numpy as np
import pytest

from ddpm_jax import load_run
from ddpm_jax.cli import main

pytestmark = pytest.mark.usefixtures("mixers")


@pytest.fixture(scope="module", autouse=True)
def _sizes_are_symbols():
    """Annotations have int for a batch size, which is a symbol here."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def run(tiny_run):
    return str(tiny_run)


def images_of(path, seed, count):
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    key = jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))
    return np.asarray(jax.jit(program.call)(key, np.arange(count, dtype=np.int32)))


def test_the_program_draws_the_images_of_sample(run, tmp_path, capsys):
    out, samples = tmp_path / "sampler.bin", tmp_path / "samples.npz"
    ddim = ["--sampler", "ddim", "--sampler.eta", "0.3"]
    platforms = ["--platforms", "cpu,tpu", "cuda"]
    assert main(["export", run, *ddim, "--steps", "3", *platforms, "--out", str(out)]) == 0
    line = capsys.readouterr().out
    assert "ddim, 3 steps, of step 24, for cpu, tpu, cuda" in line
    drawn = ["--num", "5", "--seed", "2", "--sampler.steps", "3", "--out", str(samples)]
    assert main(["sample", run, *ddim, *drawn]) == 0
    expected = np.load(samples)["images"]
    images = images_of(out, 2, 5)
    assert np.mean(images != expected) <= 0.002
    assert np.abs(images.astype(int) - expected).max() <= 1
    text = (tmp_path / "README.md").read_text()
    assert "| From | run tiny_run, step 24, parameters ema |" in text
    assert str(tmp_path) not in text


def test_a_run_in_python_writes_the_same_program(run, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one, other = tmp_path / "a" / "sampler.bin", tmp_path / "b" / "sampler.bin"
    assert main(["export", run, "--params", "raw", "--platforms", "cpu", "--out", str(one)]) == 0
    files = load_run(run, params="raw").export(other, platforms=("cpu",))
    assert files.program == other
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "9"], "sampler.steps is 9; it has to be at most schedule.num_steps, 8"),
        (["--steps", "0"], "sampler.steps is 0; it has to be 1 or more"),
        (["--steps", "2", "--sampler.steps", "3"], "--steps is short for --sampler.steps"),
        (["--platforms", "cpu,gpu"], "--platforms is cpu, gpu; it has to be one or several"),
        (["--label", "3"], "--label is for runs with classes"),
        (["--out", "absent/sampler.bin"], "--out is 'absent/sampler.bin'; there is no folder"),
        (["--out", "sampler.npz"], "--out is 'sampler.npz'; its name has to end in .bin"),
        (["--out", "there.bin"], "--out is 'there.bin'; 'there.bin' exists already"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    run, tmp_path, monkeypatch, capsys, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.bin").write_bytes(b"")
    assert main(["export", run, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"ddpm-jax: {sentence}")
    assert [path.name for path in tmp_path.iterdir()] == ["there.bin"]


def test_a_folder_that_is_no_run_is_one_line(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "a.bin")]) == 2
    assert "is not a run directory" in capsys.readouterr().err
