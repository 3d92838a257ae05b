"""Weights that were not trained here, as run directories: made, read, used, refused."""

import dataclasses
import json
import math
import tracemalloc

import jax
import numpy as np
import pytest
from foreign import SHAPE, foreign
from rich.console import Console

import ddpm_jax
from ddpm_jax import config as configs
from ddpm_jax import samplers
from ddpm_jax.cli import main
from ddpm_jax.config import ConfigError, FromBetas
from ddpm_jax.data import ImageSpec
from ddpm_jax.errors import UserError
from ddpm_jax.experiment import RunDirectory, RunDirectoryError, build, initial_state
from ddpm_jax.experiment.exported import export_file
from ddpm_jax.experiment.imported import config_of, recipe_of, write_imported_run
from ddpm_jax.experiment.initial import read_initial_params
from ddpm_jax.weights import LazyArray, Recipe, WeightsError

SMALL = {"train": configs.Train(steps=2, batch_size=8), "mesh": configs.Jit(data=1)}


@pytest.fixture(scope="module")
def weights():
    return foreign(names=("ema", "raw"))


@pytest.fixture(scope="module")
def path(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("imported") / "run"
    write_imported_run(weights, path)
    return path


@pytest.fixture
def archive(tmp_path):
    """Images that the network can have, 256 levels."""
    path = tmp_path / "images.npz"
    images = np.random.default_rng(0).integers(0, 256, (24, *SHAPE), np.uint8)
    np.savez(path, train_images=images[:16], test_images=images[16:])
    return path


def equal(first, second):
    return jax.tree.all(jax.tree.map(np.array_equal, first, second))


@pytest.mark.parametrize("name", ["ema", "raw"])
def test_the_parameters_are_read_as_they_were(path, weights, name):
    run = ddpm_jax.load_run(path, params=name)
    assert equal(run.params, weights.params(name))
    assert run.params["params"]["input"]["kernel"].dtype == np.float32


def test_on_a_mesh_each_device_reads_its_part(path, weights):
    run = ddpm_jax.load_run(path, mesh=configs.Jit(data=1, fsdp=4))
    assert equal(run.params, weights.params())
    shardings = jax.tree.map(lambda leaf: leaf.sharding, run.params)
    assert shardings == run.experiment.state_shardings.params
    assert not all(jax.tree.leaves(jax.tree.map(lambda one: one.is_fully_replicated, shardings)))


def test_the_network_is_the_one_that_was_imported(path, weights):
    assert ddpm_jax.load_run(path).network == weights.network


def test_the_config_says_what_the_weights_were_trained_for(path):
    config = RunDirectory(path).read_config()
    assert config.schedule == configs.Linear(num_steps=20, beta_min=1e-4, beta_max=0.2)
    assert config.sampler == configs.DDIM(steps=4, eta=0.5, threshold=configs.NoThreshold())
    assert config.network.channels == 8
    assert config.train.label_dropout == 0.0
    assert config.workdir == str(path)
    images = ddpm_jax.load_run(path).images
    assert (images.shape, images.levels, images.classes) == (SHAPE, 256, None)


@pytest.mark.parametrize(
    ("recipe", "member"),
    [
        (Recipe("constant", {"num_steps": 9, "beta": 0.1}), configs.ConstantBeta(0.1, num_steps=9)),
        (Recipe("from_betas", {"betas": (0.1, 0.5)}), FromBetas((0.1, 0.5))),
        (Recipe("cosine", {"num_steps": 9}), configs.Cosine(num_steps=9)),
        (Recipe("linear_log_snr", {"num_steps": 9}), configs.LinearLogSNR(num_steps=9)),
    ],
)
def test_a_schedule_becomes_its_member(recipe, member, tmp_path):
    weights = foreign(chain=recipe, sampler=Recipe("ancestral", {}))
    config = config_of(weights, tmp_path)
    assert config.schedule == member
    assert configs.make_schedule(config.schedule) == weights.schedule


@pytest.mark.parametrize("kind", configs.members(configs.Sampler), ids=configs.member_name)
def test_a_sampler_becomes_a_recipe_of_its_function_and_back(kind, tmp_path):
    recipe = recipe_of(kind(steps=4))
    assert callable(getattr(samplers, recipe.name))
    arguments = {key: value for key, value in recipe.arguments.items() if value is not None}
    again = Recipe(recipe.name, arguments | {"threshold": recipe.arguments["threshold"]})
    assert config_of(foreign(sampler=again), tmp_path).sampler == kind(steps=4)


def test_a_threshold_and_a_learned_variance_become_members(tmp_path):
    threshold = Recipe("dynamic_threshold", {"quantile": 0.9})
    sampler = Recipe("dpm_solver_pp", {"order": 1, "threshold": threshold})
    config = config_of(foreign(sampler=sampler, variance="learned_range"), tmp_path)
    assert config.sampler == configs.DPMSolverPP(1, threshold=configs.DynamicThreshold(0.9))
    assert config.network.variance == "learned_range"
    assert config.objective.teaches_variance


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"chain": Recipe("laplace", {})}, "a schedule that no config has"),
        ({"chain": Recipe("linear", {"power": 2})}, "want linear with power"),
        ({"sampler": Recipe("euler", {})}, "a sampler that no config has"),
        ({"chain": Recipe("from_betas", {"betas": (0.1, 1.5)})}, r"betas\[1\] is 1.5"),
    ],
)
def test_what_no_config_has_is_refused_by_name(changes, sentence, tmp_path):
    with pytest.raises((WeightsError, ConfigError), match=sentence):
        write_imported_run(foreign(**changes), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_classes_have_their_names(tmp_path):
    weights = foreign(classes=("cat", "dog"))
    write_imported_run(weights, tmp_path / "run")
    run = ddpm_jax.load_run(tmp_path / "run")
    assert run.network == weights.network
    assert run.images.classes == ("cat", "dog")
    assert run.images.trained_classes == (0, 1)


def test_it_is_sampled_evaluated_and_inspected_as_any_run(path, archive, tmp_path, capsys):
    out = tmp_path / "samples.npz"
    assert main(["sample", str(path), "--num", "2", "--out", str(out)]) == 0
    assert np.load(out)["arr_0"].shape == (2, *SHAPE)
    data = ["--data", "archive", "--data.path", str(archive), "--num", "0"]
    evaluation = ["--params", "raw", "--evaluation.batch-size", "8", "--out", str(tmp_path / "e")]
    assert main(["evaluate", str(path), *data, *evaluation]) == 0
    results = json.loads((tmp_path / "e" / "results.json").read_text())
    assert results["params"]["raw"]["results"]["bits_per_dim"] > 0.0
    capsys.readouterr()
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "imported, raw" in out
    assert "somebody/digits-8" in out


def test_without_a_data_set_an_evaluation_asks_for_one(path, capsys):
    assert main(["evaluate", str(path)]) == 2
    assert "8x8x1 each, as in --data folder" in capsys.readouterr().err


def test_images_of_another_shape_are_refused(path, tmp_path, capsys):
    np.savez(tmp_path / "other.npz", images=np.zeros((20, 16, 16, 1), np.uint8))
    arguments = ["--data", "archive", "--data.path", str(tmp_path / "other.npz")]
    assert main(["evaluate", str(path), *arguments]) == 2
    assert "16" in capsys.readouterr().err


@pytest.mark.parametrize("params", ["ema", "raw"])
def test_a_new_run_begins_with_the_weights_and_a_fresh_optimizer(params, path, weights, tmp_path):
    config = RunDirectory(path).read_config()
    config = dataclasses.replace(config, init_from=str(path), init_params=params, **SMALL)
    experiment = build(config, spec=ImageSpec("others", SHAPE))
    lines = []
    initial = read_initial_params(experiment, RunDirectory(tmp_path / "new"), lines.append)
    state = initial_state(experiment, initial.params)
    assert equal(state.params, weights.params(params))
    assert equal(state.ema_params, state.params)
    assert int(state.step) == 0
    assert lines[0].endswith(f"of {path} at step 0")


def test_training_in_it_is_refused_and_init_from_is_named(path):
    config = dataclasses.replace(RunDirectory(path).read_config(), **SMALL)
    with pytest.raises(RunDirectoryError, match=f"--init-from {path}"):
        ddpm_jax.train(config, console=Console(quiet=True))


@pytest.mark.parametrize("params", ["raw", 0.1])
def test_parameters_that_it_does_not_have_are_a_sentence(params, tmp_path):
    write_imported_run(foreign(), tmp_path / "run")
    with pytest.raises(RunDirectoryError, match=r"has no parameters 'raw'|has no snapshots"):
        ddpm_jax.load_run(tmp_path / "run", params=params)


@pytest.mark.thorough
def test_a_large_network_never_stands_in_memory_twice(tmp_path):
    """The host's memory while it is imported, read and exported, beside what is on the device: a
    few parameters, of which the largest is a tenth of all, and some megabytes of tracing."""
    weights = foreign(network={"channels": 128})
    sizes = [math.prod(array.shape) * 4 for array in weights.arrays["ema"].values()]
    assert sum(sizes) > 20_000_000
    steps = [
        lambda: write_imported_run(weights, tmp_path / "run"),
        lambda: ddpm_jax.load_run(tmp_path / "run").params,
        lambda: export_file(RunDirectory(tmp_path / "run"), tmp_path / "a.safetensors", "ema"),
    ]
    for step in steps:
        tracemalloc.start()
        try:
            jax.block_until_ready(step())
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 0.5 * sum(sizes)


class TestDamage:
    @pytest.fixture
    def run(self, tmp_path):
        write_imported_run(foreign(), tmp_path / "run")
        return RunDirectory(tmp_path / "run")

    def flip(self, run):
        file = run.weights / "ema.safetensors"
        content = bytearray(file.read_bytes())
        content[-2] ^= 1
        file.write_bytes(content)

    def test_of_one_bit_is_found(self, run):
        self.flip(run)
        with pytest.raises(WeightsError, match="the SHA-256 of its arrays differs"):
            ddpm_jax.load_run(run.path)

    def test_is_not_looked_for_without_verification(self, run):
        self.flip(run)
        stored = json.loads(run.config.read_text())
        stored["train"]["verify_checkpoints"] = False
        run.config.write_text(json.dumps(stored))
        ddpm_jax.load_run(run.path)

    def test_is_a_file_of_another_import(self, run, tmp_path):
        write_imported_run(foreign(seed=1), tmp_path / "other")
        other = RunDirectory(tmp_path / "other").weights / "ema.safetensors"
        other.rename(run.weights / "ema.safetensors")
        with pytest.raises(WeightsError, match="is not the file that was imported"):
            ddpm_jax.load_run(run.path)

    def test_is_a_config_that_was_edited(self, run):
        stored = json.loads(run.config.read_text())
        stored["schedule"]["beta_max"] = 0.1
        run.config.write_text(json.dumps(stored))
        with pytest.raises(RunDirectoryError, match=r"schedule\.beta_max 0\.1, and .* 0\.2"):
            ddpm_jax.load_run(run.path)

    def test_is_a_file_that_is_missing(self, run):
        (run.weights / "ema.safetensors").unlink()
        with pytest.raises(UserError, match=r"ema\.safetensors"):
            ddpm_jax.load_run(run.path)


class TestWritten:
    def test_into_a_folder_that_holds_something_is_refused(self, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "mine").touch()
        with pytest.raises(RunDirectoryError, match="is not empty; an import"):
            write_imported_run(foreign(), tmp_path / "run")

    def test_into_an_empty_folder(self, tmp_path):
        (tmp_path / "run").mkdir()
        write_imported_run(foreign(), tmp_path / "run")
        assert ddpm_jax.load_run(tmp_path / "run").step == 0

    def test_nothing_if_an_array_cannot_be_read(self, tmp_path):
        def fails():
            raise WeightsError("gone")

        weights = foreign()
        arrays = dict(weights.arrays["ema"])
        arrays["output/bias"] = LazyArray(arrays["output/bias"].shape, fails)
        weights = dataclasses.replace(weights, arrays={"ema": arrays})
        with pytest.raises(WeightsError, match="gone"):
            write_imported_run(weights, tmp_path / "run")
        assert list(tmp_path.iterdir()) == []

    def test_nothing_on_a_full_disk(self, disk):
        import disks

        disks.fill(disk, leaving=20_000)
        before = sorted(disk.iterdir())
        with pytest.raises(UserError, match="No space left"):
            write_imported_run(foreign(), disk / "run")
        assert sorted(disk.iterdir()) == before
