"""The results.json of a finished run: read, checked and printed."""

import io
import json

import numpy as np
import pytest
import tiny
from rich.console import Console

from ddpm_jax.cli import main
from ddpm_jax.config import BitsPerDim
from ddpm_jax.data import read_digits
from ddpm_jax.errors import UserError
from ddpm_jax.experiment import RunDirectory
from ddpm_jax.files import json_digest

pytestmark = pytest.mark.usefixtures("mixers")
RESULTS = {
    "step": 24,
    "dataset": "digits",
    "images": 360,
    "levels": 17,
    "num_steps": 8,
    "num_times": 8,
    "bits_per_dim": 2.5,
    "standard_error": 0.125,
    "prior": 0.01,
    "kl": 2.0,
    "decoder": 0.49,
    "uniform": 4.087,
    "histogram": 2.43,
    "histogram_images": 1437,
}


def printed(run):
    out = io.StringIO()
    Console(file=out, width=120).print(BitsPerDim().table(run.read_results()))
    return out.getvalue()


def test_what_was_written_comes_back_and_is_printed(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.read_results() is None
    run.write_results(RESULTS)
    assert run.read_results() == RESULTS
    assert "2.500 +- 0.125" in printed(run)


def test_one_image_has_no_error_bar(tmp_path):
    run = RunDirectory(tmp_path)
    run.write_results(RESULTS | {"standard_error": None})
    assert "2.500" in printed(run)
    assert "+-" not in printed(run)


@pytest.mark.parametrize("value", ["text", None, [], {}, True, 1.5, "9" * 1000])
def test_a_step_that_is_none_is_a_sentence(tmp_path, value):
    """Other figures are those of whatever evaluation the run has."""
    run = RunDirectory(tmp_path)
    run.write_results(RESULTS | {"step": value})
    with pytest.raises(UserError, match="has no step; remove it, and the same") as refused:
        run.read_results()
    assert len(str(refused.value)) < 400


def sealed(values):
    return values | {"sha256": json_digest(values)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is empty"),
        (b"[]", "holds a list"),
        (b"{}", "has been altered: its SHA-256 differs"),
        (json.dumps(RESULTS).encode()[:100], "is not JSON"),
        (b"\xff\xfe{}", "is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (json.dumps(sealed({})).encode(), "has no step"),
    ],
)
def test_other_contents_are_a_sentence(tmp_path, text, said):
    run = RunDirectory(tmp_path)
    run.results.write_bytes(text)
    with pytest.raises(UserError, match=said):
        run.read_results()


def test_a_digit_that_was_changed_is_noticed(tmp_path):
    run = RunDirectory(tmp_path)
    run.write_results(RESULTS)
    run.results.write_text(run.results.read_text().replace("2.5", "1.5"))
    with pytest.raises(UserError, match=r"has been altered.*evaluates the last checkpoint"):
        run.read_results()


def test_a_folder_in_its_place_is_a_sentence(tmp_path):
    run = RunDirectory(tmp_path)
    run.results.mkdir()
    with pytest.raises(UserError, match="is a folder"):
        run.read_results()


@pytest.mark.thorough
def test_a_run_with_one_held_out_image_has_no_error_bars(tmp_path, capsys):
    archive, run = tmp_path / "images.npz", tmp_path / "run"
    images = read_digits().train.images[:17]
    np.savez(archive, train_images=images[:16], test_images=images[16:], levels=17)
    told = [
        "--data",
        "archive",
        "--data.path",
        str(archive),
        "--train.steps",
        "1",
        "--mesh.data",
        "1",
    ]
    assert main(["train", tiny.__file__, *told, "--workdir", str(run)]) == 0
    assert main(["evaluate", str(run), "--num", "0"]) == 0
    assert "+-" not in capsys.readouterr().out
    stored = json.loads((run / "results.json").read_text())
    found = json.loads((run / "evaluation" / "step_0000001" / "results.json").read_text())["params"]
    assert stored["standard_error"] is found["ema"]["results"]["standard_error"] is None
    assert found["ema"]["per_time"]["standard_error"] == [None] * 8
