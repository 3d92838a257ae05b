"""One bad image among the digits: its step is skipped or ends the run, and is found by replay."""

import importlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from paths import TINY

from ddpm_jax.cli import main
from ddpm_jax.data import make_iterator, read_digits
from ddpm_jax.experiment import RunDirectory, build, replay
from ddpm_jax.training import Checkpoints

# quick: a replay in test_cli.py
pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("mixers")]

STEP, EXAMPLE = 7, 5
"""Where the bad image is."""
ARGUMENTS = ["train", TINY, "--train.log-every", "1", "--train.draw-every", "1000"]


@pytest.fixture(scope="module", autouse=True)
def bad_image():
    """An image that is NaN once it is scaled, as a float of a damaged file might be."""
    batches = make_iterator(read_digits().train, batch_size=16, seed=0, flip=False)
    for _ in range(STEP):
        batch = next(batches)
    building = importlib.import_module("ddpm_jax.experiment.step")
    scaled = building.to_model_range

    def damaged(images, levels):
        bad = (images == jnp.asarray(batch.images[EXAMPLE : EXAMPLE + 1])).all(
            (1, 2, 3), keepdims=True
        )
        return jnp.where(bad, jnp.nan, scaled(images, levels))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "to_model_range", damaged)
        yield


@pytest.fixture(scope="module")
def skipped(tmp_path_factory):
    """A run that was let go on."""
    directory = tmp_path_factory.mktemp("runs") / "skipped"
    assert main([*ARGUMENTS, "--train.skip-bad-steps", "1", "--workdir", str(directory)]) == 0
    return directory


def lines_of(run, name):
    """JSON has no NaN: it is null there."""
    lines = map(json.loads, RunDirectory(run).metrics.read_text().splitlines())
    values = {line["step"]: line[name] for line in lines if name in line}
    return {step: np.nan if value is None else value for step, value in values.items()}


def saved_states(run):
    experiment = build(RunDirectory(run).read_config())
    with Checkpoints(RunDirectory(run).checkpoints, read_only=True) as checkpoints:
        for step in checkpoints.steps():
            state = checkpoints.restore(experiment.abstract_state, step).state
            yield step, state._replace(key=jax.random.key_data(state.key))


def test_a_skipped_step_is_counted_and_the_run_goes_on(skipped):
    # The mean over a window that has no good step is no number.
    losses = lines_of(skipped, "loss")
    assert [step for step, loss in losses.items() if not np.isfinite(loss)] == [STEP]
    assert lines_of(skipped, "skipped_steps") == dict.fromkeys(range(STEP, 25), 1)
    assert lines_of(skipped, "last_skipped_step") == dict.fromkeys(range(STEP, 25), STEP)
    assert np.isfinite(json.loads((skipped / "results.json").read_text())["bits_per_dim"])


def test_no_bad_state_is_saved(skipped, tmp_path, capsys):
    states = dict(saved_states(skipped))
    assert 24 in states
    run = tmp_path / "stopped"
    assert main([*ARGUMENTS, "--workdir", str(run)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        f"ddpm-jax: the loss or the parameters became NaN or Inf at step {STEP};"
    )
    assert f"`ddpm-jax replay {run} --step {STEP}` shows what was bad" in said
    stopped = dict(saved_states(run))
    assert list(stopped) == [4]
    for state in [*states.values(), *stopped.values()]:
        for leaf in jax.tree.leaves(state):
            assert np.isfinite(leaf).all()


def test_replay_names_the_example(skipped, tmp_path, capsys):
    written = tmp_path / "replay.json"
    assert main(["replay", str(skipped), "--step", str(STEP), "--json", str(written)]) == 0
    said = capsys.readouterr().out
    assert "not finite: the losses of 1 of 16 examples" in said
    found = json.loads(written.read_text())
    assert [index for index, loss in enumerate(found["losses"]) if loss == "nan"] == [EXAMPLE]
    assert set(found["gradient_norms"].values()) == {"nan"}
    assert all(np.isfinite(norm) for norm in found["parameter_norms"].values())
    rows = [line.split("│")[1:-1] for line in said.splitlines() if line.count("│") == 4]
    assert [cell.strip() for cell in rows[0]] == [str(EXAMPLE), str(found["t"][EXAMPLE]), "nan"]


def test_replay_has_the_loss_of_the_log_and_the_state_of_the_run(skipped, tmp_path):
    # Only rounding is between them: the log's loss was summed over the mesh.
    experiment = build(RunDirectory(skipped).read_config())
    run = tmp_path / "run"
    shutil.copytree(skipped, run)
    from_last = {}
    for step in (6, 24):
        found = from_last[step] = replay(experiment, RunDirectory(run), step)
        np.testing.assert_allclose(found.losses.mean(), lines_of(run, "loss")[step], rtol=1e-6)
        norm = np.linalg.norm(list(found.gradient_norms.values()))
        np.testing.assert_allclose(norm, lines_of(run, "gradient_norm")[step], rtol=1e-5)
    assert from_last[24].replayed_from == 20
    # From the start, past the step that was skipped, with the same bits.
    shutil.rmtree(run / "checkpoints")
    for step, known in from_last.items():
        found = replay(experiment, RunDirectory(run), step)
        assert found.replayed_from == 0
        np.testing.assert_array_equal(found.losses, known.losses)
        np.testing.assert_array_equal(found.t, known.t)
        assert found.parameter_norms == known.parameter_norms
        assert found.gradient_norms == known.gradient_norms
    assert not (run / "checkpoints").exists()


@pytest.mark.parametrize("step", ["0", "25"])
def test_a_step_outside_the_run_is_refused(skipped, capsys, step):
    assert main(["replay", str(skipped), "--step", step]) == 2
    said = capsys.readouterr().err
    assert said == f"ddpm-jax: step is {step}; it has to be 1 to {tiny.get_config().train.steps}\n"
