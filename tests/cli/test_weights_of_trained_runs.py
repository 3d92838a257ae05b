"""`ddpm-jax weights export` of runs that were trained here, with any network, and the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from foreign import export, imported
from paths import MIXED

from ddpm_jax import config as configs
from ddpm_jax import load_run
from ddpm_jax.cli import main
from ddpm_jax.data import ImageSpec
from ddpm_jax.experiment import RunDirectory, build
from ddpm_jax.experiment.data_record import DataRecord, plain_record
from ddpm_jax.experiment.weight_files import arrays_of, write_weight_file
from ddpm_jax.models import init_params
from ddpm_jax.weights import WeightsError
from ddpm_jax.weights.safetensors_files import open_safetensors

pytestmark = pytest.mark.usefixtures("mixers")


def test_a_trained_run_has_its_averages_config_and_images(tiny_run, tmp_path, capsys):
    assert export(tiny_run, tmp_path / "out.safetensors") == 0
    assert "ema of step 24: " in capsys.readouterr().out
    assert imported(tmp_path / "out.safetensors", tmp_path / "again") == 0
    assert export(tmp_path / "again", tmp_path / "twice.safetensors") == 0
    first, second = (
        {name: array.read() for name, array in open_safetensors(tmp_path / file)[0].items()}
        for file in ("out.safetensors", "twice.safetensors")
    )
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    record = (tmp_path / "again" / "images.json").read_text()
    assert record == (tiny_run / "images.json").read_text()
    same = RunDirectory(tiny_run).read_stored() | {"workdir": str(tmp_path / "again")}
    assert RunDirectory(tmp_path / "again").read_stored() == same


def test_what_was_imported_draws_the_same_images(tiny_run, tmp_path):
    export(tiny_run, tmp_path / "out.safetensors")
    imported(tmp_path / "out.safetensors", tmp_path / "again")
    drawn = []
    for number, run in enumerate((tiny_run, tmp_path / "again")):
        out = tmp_path / f"{number}.npz"
        assert main(["sample", str(run), "--num", "3", "--out", str(out)]) == 0
        drawn.append(np.load(out)["images"])
    np.testing.assert_array_equal(*drawn)


def test_a_config_with_members_of_its_own_wants_its_file(tmp_path, capsys):
    config = configs.load(MIXED)
    spec = ImageSpec("digits", (8, 8, 1), 17)
    model = build(config, spec=spec).model
    params = meta.unbox(init_params(model, jax.random.key(0), spec.shape))
    file = tmp_path / "out.safetensors"
    write_weight_file(file, arrays_of(params), config, plain_record(DataRecord(spec)), 3, {})
    assert imported(file, tmp_path / "again") == 2
    assert "config.py, which is missing; give it with --config-file" in capsys.readouterr().err
    assert imported(file, tmp_path / "again", "--config-file", MIXED) == 0
    run = load_run(tmp_path / "again", report=lambda line: None)
    assert run.step == 3
    assert jax.tree.all(jax.tree.map(np.array_equal, run.params, params))
    with pytest.raises(WeightsError, match="is int32; a file of weights holds float32"):
        arrays_of({"params": {"steps": jnp.int32(1)}})
