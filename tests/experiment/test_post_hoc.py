"""Averages of a run's snapshots are made of all that training promised, or it is said of which."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from manifests import rewrite
from marks import thorough_but
from snapshots import WIDTHS, checkpoint, snapshot

from ddpm_jax.config import PostHocEMA
from ddpm_jax.errors import UserError
from ddpm_jax.experiment import RunDirectory, build, post_hoc_params

EVERY, STEPS = 6, 20


@pytest.fixture(scope="module")
def experiment():
    config = tiny.get_config()
    config = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, steps=STEPS, keep_latest=9),
        averages=PostHocEMA(decays=(0.9,), widths=WIDTHS, every=EVERY),
    )
    return build(config, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def pristine(experiment, tmp_path_factory):
    """A run of 20 steps: snapshots at 6, 12, 18 and 20, and a checkpoint at 20."""
    run = RunDirectory(tmp_path_factory.mktemp("pristine") / "run")
    run.make(experiment.config)
    for step in (6, 12, 18, 20):
        snapshot(experiment, run.snapshots, step)
    checkpoint(experiment, run, 20)
    return run.path


@pytest.fixture
def run(pristine, tmp_path):
    return RunDirectory(shutil.copytree(pristine, tmp_path / "run"))


def average(experiment, run, **how):
    sentences = []
    params, step = post_hoc_params(experiment, run, 0.07, report=sentences.append, **how)
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)], step, sentences


@pytest.fixture(scope="module")
def whole(experiment, pristine):
    bits, step, sentences = average(experiment, RunDirectory(pristine))
    assert (step, sentences) == (20, [])
    return bits


def flip(path, at=0.5):
    contents = bytearray(path.read_bytes())
    contents[int(len(contents) * at)] ^= 1
    path.write_bytes(contents)


def biggest(folder):
    return max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda p: (p.stat().st_size, p)
    )


def swap(one, other):
    between = one.with_name("between")
    one.rename(between)
    other.rename(one)
    between.rename(other)


def swap_averages(run):
    swap(run.snapshots / "12/averages", run.snapshots / "18/averages")


def foreign_in(experiment, run):
    """Puts a snapshot of another run where that of `step` is."""

    def put(step=12, widths=WIDTHS, **values):
        shutil.rmtree(run.snapshots / str(step), ignore_errors=True)
        config = dataclasses.replace(experiment.config, **values)
        snapshot(experiment, run.snapshots, step, widths, config)

    return put


WRONG = {
    "a flipped bit in a manifest": (
        lambda run, _: flip(run.snapshots / "12/manifest.json"),
        ["snapshots/12: manifest.json is ", "there is none of steps 12;"],
    ),
    "a flipped bit in the first one's arrays": (
        lambda run, _: flip(biggest(run.snapshots / "6")),
        ["snapshots/6: averages/", "has been altered", "none of steps 6;"],
    ),
    "a file of no length": (
        lambda run, _: biggest(run.snapshots / "18").write_bytes(b""),
        ["snapshots/18: averages/", "has 0 bytes in place of", "none of steps 18;"],
    ),
    "no manifest": (
        lambda run, _: (run.snapshots / "18/manifest.json").unlink(),
        ["snapshots/18: it has no manifest.json", "none of steps 18;"],
    ),
    "a folder deleted": (
        lambda run, _: shutil.rmtree(run.snapshots / "12"),
        ["snapshots/12: it is missing", "none of steps 12;"],
    ),
    "the last one deleted": (
        lambda run, _: shutil.rmtree(run.snapshots / "20"),
        ["promises up to step 20: ", "snapshots/20: it is missing", "none of steps 20;"],
    ),
    "all deleted": (
        lambda run, _: shutil.rmtree(run.snapshots),
        ["snapshots/6: it is missing", "and 1 more; without them there is none of steps 6, 12, 18"],
    ),
    "one renamed to another step": (
        lambda run, _: (run.snapshots / "6").rename(run.snapshots / "7"),
        ["snapshots/6: it is missing", "snapshots/7: manifest.json is of step 6", "steps 6;"],
    ),
    "two that have changed places": (
        lambda run, _: swap(run.snapshots / "6", run.snapshots / "12"),
        ["6: manifest.json is of step 12", "12: manifest.json is of step 6", "steps 6, 12;"],
    ),
    "arrays that have changed places": (
        lambda run, _: swap_averages(run),
        ["snapshots/12: averages/", "snapshots/18: averages/", "none of steps 12, 18;"],
    ),
    "one of another seed": (
        lambda _, foreign: foreign(seed=5),
        ["12: it is of another run: seed is 5 there and 0 in config.json", "none of steps 12;"],
    ),
    "one of other widths": (
        lambda _, foreign: foreign(widths=(0.05, 0.2)),
        ["12: its widths are (0.05, 0.2), and those of the run are (0.05, 0.1)", "steps 12;"],
    ),
    "a step that the run does not keep": (
        lambda _, foreign: foreign(step=7),
        ["snapshots/7: the run keeps none of step 7"],
    ),
    "a stray folder": (
        lambda run, _: (run.snapshots / "7").mkdir(),
        ["snapshots/7: it is empty"],
    ),
    "no widths": (
        lambda run, _: rewrite(run.snapshots / "6", lambda body: body["notes"].clear()),
        ["6: manifest.json: notes['sigma_rels'] is None; it has to be a list of widths"],
    ),
    "odd widths": (
        lambda run, _: rewrite(
            run.snapshots / "6", lambda body: body["notes"].update(sigma_rels=["0.05", 0.1])
        ),
        ["6: manifest.json: notes['sigma_rels'] is ['0.05', 0.1]; it has to be a list of widths"],
    ),
    "no config in it": (
        lambda run, _: rewrite(run.snapshots / "6", lambda body: body["config"].clear()),
        ["snapshots/6: the config in its manifest cannot be compared ("],
    ),
}


QUICK = ("a flipped bit in the first one's arrays", "a folder deleted", "one of another seed")


@pytest.mark.parametrize("wrong", thorough_but(QUICK, WRONG))
def test_what_is_not_as_promised_is_refused_by_name(experiment, run, wrong):
    do, parts = WRONG[wrong]
    do(run, foreign_in(experiment, run))
    with pytest.raises(UserError) as caught:
        average(experiment, run)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert f"are not those that averages.every {EVERY} promises up to step 20" in sentence
    for part in parts:
        assert part in sentence


def test_the_average_of_those_that_are_sound(experiment, run, whole):
    flip(run.snapshots / "12/manifest.json")
    bits, step, (sentence,) = average(experiment, run, skip_missing=True)
    assert step == 20
    assert bits != whole
    assert sentence.endswith("none of steps 12; the average is without them")
    shutil.rmtree(run.snapshots)
    with pytest.raises(UserError, match="6: it is missing"):
        average(experiment, run, skip_missing=True)


def test_what_is_no_step_is_none_of_ours(experiment, run, whole):
    for name in ("6.bak", "007", "notes"):
        shutil.copytree(run.snapshots / "6", run.snapshots / name)
    (run.snapshots / "24").write_text("a file")
    assert average(experiment, run) == (whole, 20, [])


def test_a_run_that_went_elsewhere_and_is_evaluated_otherwise(experiment, run, whole):
    """Nothing that makes other parameters."""
    config = experiment.config
    elsewhere = dataclasses.replace(
        config,
        workdir="elsewhere",
        mesh=dataclasses.replace(config.mesh, data=1),
        evaluation=dataclasses.replace(config.evaluation, likelihood_times=3),
    )
    moved = dataclasses.replace(experiment, config=elsewhere)
    assert average(moved, run) == (whole, 20, [])


def test_one_that_the_disk_refused_is_said_each_time(experiment, run):
    shutil.rmtree(run.snapshots / "12")
    shutil.rmtree(run.checkpoints)
    checkpoint(experiment, run, 20, missed=[12])
    for _ in range(2):
        _, step, (sentence,) = average(experiment, run)
        assert step == 20
        assert "the snapshots of steps 12 could not be saved during training" in sentence
    shutil.rmtree(run.snapshots / "18")
    with pytest.raises(UserError, match=r"18: it is missing; without them .* steps 18;"):
        average(experiment, run)


def test_beside_a_training_that_goes_on(experiment, run):
    """Snapshots later than the checkpoint, and the next one under way, are no damage."""
    for step in (18, 20):
        shutil.rmtree(run.snapshots / str(step))
    shutil.rmtree(run.checkpoints)
    checkpoint(experiment, run, 8)
    bits, step, sentences = average(experiment, run)
    assert (step, sentences) == (12, [])
    (run.snapshots / "18" / "averages").mkdir(parents=True)
    (run.snapshots / "20.orbax-checkpoint-tmp").mkdir()
    same, step, (sentence,) = average(experiment, run)
    assert (same, step) == (bits, 12)
    assert "18: it has no manifest.json: its save was interrupted, or is in progress" in sentence
    for step in (6, 12):
        shutil.rmtree(run.snapshots / str(step))
    with pytest.raises(UserError, match=r"up to step 8: \S+6: it is missing; .* steps 6;"):
        average(experiment, run)


def test_before_the_first_one(experiment, tmp_path):
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(UserError, match="has no snapshot yet; the first comes at step 6"):
        average(experiment, run)


def test_a_finished_run_promises_the_last_one(experiment, run):
    shutil.rmtree(run.checkpoints)
    shutil.rmtree(run.snapshots / "20")
    run.results.write_text(json.dumps({"step": 20}))
    with pytest.raises(UserError, match="20: it is missing"):
        average(experiment, run)
