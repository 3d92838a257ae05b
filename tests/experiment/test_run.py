"""Training from Python, a trained run as a value, longer runs, and runs that begin with another."""

import dataclasses
import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import ddpm_jax
from ddpm_jax import config
from ddpm_jax.data import Arrays, DataError, ImageSet, read_digits, to_levels
from ddpm_jax.errors import UserError
from ddpm_jax.experiment import RunDirectory, make_drawer
from ddpm_jax.training import Checkpoints

KEY = jax.random.key(3, impl="threefry2x32")
QUIET = Console(quiet=True)


def small(workdir, steps=4, **changes):
    """Eight steps of a chain on images of the caller's."""
    given = {
        "data": config.InMemory("few digits"),
        "schedule": config.LinearLogSNR(num_steps=8),
        "network": config.UNet(4, (1,), 1, (), norm_groups=2, classes=10),
        "optimizer": config.Adam(learning_rate=1e-3, warmup_steps=2),
        "averages": config.EMA(decays=(0.9,)),
        "sampler": config.DDIM(steps=3),
        "evaluation": config.BitsPerDim(batch_size=16, num_samples=4),
        "train": config.Train(
            steps=steps, batch_size=8, log_every=2, save_every=2, draw_every=8, keep_latest=9
        ),
        "mesh": config.Jit(data=1),
        "workdir": str(workdir),
    }
    return config.Config(**given | changes)


def train(workdir, **changes):
    return ddpm_jax.train(small(workdir, **changes), images=few_digits(), console=QUIET)


def few_digits():
    images, labels = read_digits().train[np.arange(48)]
    train, held_out = Arrays(images[:32], labels[:32], 17), Arrays(images[32:], labels[32:], 17)
    classes = tuple(map(str, range(10)))
    return ImageSet("few digits", train, held_out, levels=17, classes=classes)


PRINTED = io.StringIO()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    console = Console(file=PRINTED, width=200)
    assert ddpm_jax.train(small(path), images=few_digits(), console=console)["images"] == 16
    return path


@pytest.fixture(scope="module")
def run(path):
    return ddpm_jax.load_run(path)


def test_images_in_memory_have_to_be_handed_over(tmp_path):
    with pytest.raises(DataError, match="pass its images in Python"):
        ddpm_jax.train(small(tmp_path / "run"), console=QUIET)


def test_a_run_says_which_devices_it_uses_and_which_stay_idle(path):
    assert "mesh: data 1 x fsdp 1, 1 cpu device; 7 more stay idle\n" in PRINTED.getvalue()


def test_likelihood_of_a_network_with_classes_is_given_the_class(run):
    assert run.results["given_class"] is True
    table = run.config.evaluation.table(run.results)
    assert any("this model given the class" in cell for cell in table.columns[0].cells)


def test_a_run_is_loaded_without_its_images(run):
    assert run.step == 4
    assert run.config.network == config.UNet(4, (1,), 1, (), norm_groups=2, classes=10)
    assert run.images.shape == (8, 8, 1)
    assert run.process.num_steps == 8
    assert run.results["step"] == 4


@pytest.mark.thorough
def test_a_sample_is_the_grey_levels_that_the_command_draws(run):
    drawer = make_drawer(run.experiment, num=4, sampler=run.config.sampler)
    drawn = drawer(run.params, KEY).images
    np.testing.assert_array_equal(to_levels(run.sample(KEY, 4), 17), drawn)


def test_a_sample_follows_from_its_number(run):
    five = run.sample(KEY, 5, batch_size=2)
    np.testing.assert_allclose(run.sample(KEY, 3), five[:3], atol=1e-5)


@pytest.mark.thorough
def test_another_sampler_is_given_with_its_parameters(run):
    ancestral = run.sample(KEY, 2, sampler=config.Ancestral(steps=4), label=3)
    assert ancestral.shape == (2, 8, 8, 1)
    with pytest.raises(UserError, match=r"sampler.steps is 9; it has to be at most .* 8"):
        run.sample(KEY, 2, sampler=config.DDIM(steps=9))


def test_a_class_is_named_and_one_that_is_not_there_is_refused(run):
    for label in (-1, 11, "3x"):
        with pytest.raises(UserError, match=rf"label is {label!r}; the run has the classes 0, 1"):
            run.sample(KEY, 2, label=label)
        with pytest.raises(UserError, match=rf"label is {label!r}; the run has the classes 0, 1"):
            run.export("sampler.bin", label=label)
    three = run.sample(KEY, 2, label="3")
    np.testing.assert_array_equal(three, run.sample(KEY, 2, label=3))


def test_a_run_is_shown_in_one_line(run):
    assert repr(run).startswith("Run(")
    assert "\n" not in repr(run)
    assert len(repr(run)) < 400


def test_predict_is_the_network_at_its_parameters(run):
    x_t, t = jnp.ones((2, 8, 8, 1)), jnp.array([0, 7])
    labels = jnp.array([1, 2])
    wanted = run.network.apply(run.params, x_t, t, labels=labels)
    np.testing.assert_array_equal(run.predict(x_t, t, labels), wanted)


def test_the_last_parameters_are_others_than_their_average(path, run):
    raw = ddpm_jax.load_run(path, params="raw")
    leaves = jax.tree.leaves(jax.tree.map(np.array_equal, run.params, raw.params))
    assert not all(leaves)


def test_parameters_of_no_such_kind_are_a_sentence(path, without_annotation_checks):
    with pytest.raises(UserError, match="params is 'best'; it has to be 'ema', 'raw' or a width"):
        ddpm_jax.load_run(path, params="best")


def state_of(run):
    """The last checkpoint, as bytes."""
    with Checkpoints(run.path / "checkpoints", read_only=True) as checkpoints:
        state = checkpoints.restore(run.experiment.abstract_state).state
    state = state._replace(key=jax.random.key_data(state.key))
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def test_an_extended_run_ends_as_a_longer_one(path, tmp_path):
    shutil.copytree(path, tmp_path / "longer")
    train(tmp_path / "longer", steps=6)
    train(tmp_path / "whole", steps=6)
    longer, whole = (ddpm_jax.load_run(tmp_path / name) for name in ("longer", "whole"))
    assert longer.step == 6
    assert state_of(longer) == state_of(whole)
    assert longer.results == whole.results
    assert json.loads((tmp_path / "longer/results_0000004.json").read_text())["step"] == 4


@pytest.mark.thorough
def test_a_run_is_not_extended_where_the_learning_rate_was_another(tmp_path):
    cosine = config.Adam(warmup_steps=1, decay=config.CosineDecay())
    train(tmp_path / "run", optimizer=cosine)
    with pytest.raises(UserError, match=r"changed the learning rate of CosineDecay from step 3 on"):
        train(tmp_path / "run", optimizer=cosine, steps=8)
    assert RunDirectory(tmp_path / "run").read_results()["step"] == 4


def test_a_run_is_not_shortened(path):
    with pytest.raises(UserError, match=r"train.steps is 3, and .* has done 4 steps"):
        train(path, steps=3)


@pytest.mark.thorough
def test_a_run_begins_with_the_parameters_of_another(path, run, tmp_path):
    given = {"init_from": str(path), "steps": 2, "optimizer": config.SGD(learning_rate=1e-30)}
    train(tmp_path / "new", **given)
    new = ddpm_jax.load_run(tmp_path / "new", params="raw")
    jax.tree.map(np.testing.assert_array_equal, new.params, run.params)
    record = json.loads((tmp_path / "new/initial.json").read_text())
    assert (record["run"], record["step"], record["params"]) == (str(path), 4, "ema")


def test_parameters_that_do_not_fit_are_listed_before_anything_is_written(path, tmp_path):
    wider = config.UNet(8, (1,), 1, (), norm_groups=2, classes=10)
    with pytest.raises(UserError, match=r"'conv_0'.* is \[4\] there and is \[8\] here; .* more"):
        train(tmp_path / "new", init_from=str(path), network=wider)
    assert not (tmp_path / "new").exists()


def test_a_run_that_was_stopped_before_its_first_step_begins_with_the_same_parameters(
    path, tmp_path
):
    raw = small(tmp_path / "new", init_from=str(path), init_params="raw")
    directory = RunDirectory(tmp_path / "new")
    with directory.claim(raw):
        record = {"run": str(path), "step": 2, "params": "raw", "sha256": "0" * 64}
        directory.initial.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"other parameters of .* \(step 2 then, 4 now\)"):
        train(tmp_path / "new", init_from=str(path), init_params="raw")


def test_members_of_python_have_to_be_of_a_file_that_can_be_copied(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Mine(config.Sampler):
        def make(self, model):
            raise NotImplementedError

    with pytest.raises(UserError, match="define its class at the top level"):
        train(tmp_path / "run", sampler=Mine())
