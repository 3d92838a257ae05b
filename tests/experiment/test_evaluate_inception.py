"""A run in the space of Inception-v3, from a file of weights as people have it."""

import hashlib
import json

import numpy as np
import pytest
import tiny
from inceptions import random_state
from torch_pickles import as_file

from ddpm_jax.cli import main
from ddpm_jax.evaluation import inception, inception_weights

pytestmark = pytest.mark.usefixtures("mixers")


@pytest.fixture(scope="module", autouse=True)
def _small_inputs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "SIDE", 75)  # the least that the layers take
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    path.write_bytes(as_file(random_state()))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trained on few images without labels."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (36, 8, 8, 1), dtype=np.uint8)
    np.savez(folder / "noise.npz", train_images=images[:24], test_images=images[24:])
    told = ["--data", "archive", "--data.path", str(folder / "noise.npz"), "--train.steps", "2"]
    assert main(["train", tiny.__file__, *told, "--workdir", str(folder / "run")]) == 0
    return folder / "run"


def evaluate(run, weights, *arguments):
    told = [
        "--params",
        "ema",
        "--num",
        "12",
        "--evaluation.batch-size",
        "12",
        "--inception",
        str(weights),
    ]
    return main(["evaluate", str(run), *told, *arguments])


@pytest.mark.thorough
def test_fid_by_its_name_and_only_with_the_public_weights(run, weights, capsys, monkeypatch):
    assert evaluate(run, weights) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(weights) in said
    # Were these the public weights, numbers would have the names that papers give them.
    converted = weights.with_suffix(".npz")
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    monkeypatch.setattr(inception_weights, "PUBLIC_SHA256", sha256)
    assert main(["data", "inception", str(weights), str(converted)]) == 0
    assert "Inception-v3, 472 tensors" in capsys.readouterr().out
    assert evaluate(run, converted) == 0
    said = capsys.readouterr().out
    results = json.loads((run / "evaluation" / "step_0000002" / "results.json").read_text())
    metrics = results["params"]["ema"]["metrics"]
    names = ["FID-12", "sFID-12", "KID-12", "precision, Inception-v3, 12 samples"]
    names += [f"{kind}, Inception-v3, 12 samples" for kind in ("recall", "density", "coverage")]
    names += ["IS-12"]
    assert [score["name"] for score in metrics] == names
    assert all(
        np.isfinite(score["value"]) and name.split(",")[0] in said
        for name, score in zip(names, metrics, strict=True)
    )
    assert [network["network"] for network in results["networks"]] == ["Inception-v3"]
    # As other weights, their numbers are never called so, nor mixed with those that are.
    monkeypatch.undo()
    assert evaluate(run, weights, "--other-weights") == 2
    other = f"'Inception-v3, weights {sha256[:8]}'"
    assert (
        f"network is 'Inception-v3' in one of the statistics and {other}" in capsys.readouterr().err
    )


def test_the_command_that_converts_tells_what_is_wrong(weights, tmp_path, capsys):
    for arguments, part in [
        ([], "needs convert, prepare or inception, not nothing"),
        (["inceptoin"], "not 'inceptoin'"),
        (["inception", tmp_path / "none.pth", tmp_path / "a.npz"], "none.pth"),
        (["inception", weights, tmp_path / "a.npz"], "6726825d"),
    ]:
        assert main(["data", *map(str, arguments)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert part in said
