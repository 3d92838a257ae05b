"""A run whose config or metrics changed since: what may differ, what is refused, what is said."""

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest
from paths import TINY

from ddpm_jax import config as configs
from ddpm_jax.cli import main
from ddpm_jax.config import Config
from ddpm_jax.experiment import RunDirectory, RunDirectoryError, build
from ddpm_jax.training import Checkpoints

pytestmark = pytest.mark.usefixtures("mixers")


@pytest.fixture
def run(tiny_run, tmp_path):
    """A run of 24 steps, as if it had been killed after it saved step 20."""
    directory = tmp_path / "run"
    shutil.copytree(tiny_run, directory)
    (directory / "results.json").unlink()
    shutil.rmtree(directory / "checkpoints" / "24")
    return directory


def train(run, *arguments):
    return main(["train", TINY, "--mesh.data", "1", "--workdir", str(run), *arguments])


def edit(run, field, value):
    path = run / "config.json"
    config = json.loads(path.read_text())
    section, _, name = field.rpartition(".")
    (config[section] if section else config)[name] = value
    path.write_text(json.dumps(config))


def last_state(run):
    experiment = build(RunDirectory(run).read_config())
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        restored = checkpoints.restore(experiment.abstract_state, 24)
    state = restored.state._replace(key=jax.random.key_data(restored.state.key))
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state._replace(window=()))]


@pytest.mark.thorough
def test_what_cannot_change_the_state_may_differ_and_is_recorded(tiny_run, run, capsys):
    changes = {
        "train.log_every": 2,
        "train.save_every": 12,
        "train.draw_every": 12,
        "train.keep_latest": 3,
        "train.verify_checkpoints": False,
        "data.memory_gb": 1.0,
        "evaluation.batch_size": 40,
        "evaluation.num_samples": 2,
        "sampler.steps": 2,
        "sampler.guidance_rescale": 0.5,
        "evaluation.likelihood_times": 2,
    }
    arguments = []
    for field, value in changes.items():
        option = f"--{field.replace('_', '-')}"
        arguments += [option, str(value)] if value is not False else [f"--train.no-{option[8:]}"]
    before = json.loads((run / "config.json").read_text())
    assert train(run, *arguments) == 0
    out = capsys.readouterr().out
    assert out.count("from step 20 on ") == 1
    assert "train.log_every was 5 and is 2; " in out
    assert "has lost lines" not in out
    assert last_state(run) == last_state(tiny_run)
    after = json.loads((run / "config.json").read_text())
    for field, value in changes.items():
        section, name = field.split(".")
        assert after[section][name] == value
        before[section][name] = value
    before["workdir"] = str(run)
    assert after == before
    (line,) = map(json.loads, (run / "config_history.jsonl").read_text().splitlines())
    assert line["step"] == 20
    assert line["changes"]["evaluation.batch_size"] == [128, 40]
    # Of a finished run, results are those of the values that it had.
    assert train(run, *arguments, "--sampler.guidance", "1", "--evaluation.num-samples", "3") == 0
    assert "was evaluated with evaluation.num_samples 2, not 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "value", "refusing"),
    [
        ("network.predicts", "v", ["train", "sample", "evaluate", "replay"]),
        ("schedule.log_snr_max", 6.0, ["sample"]),
        ("network.channels", 8, ["sample"]),
        ("seed", 1, ["evaluate"]),
        ("optimizer.learning_rate", 1e-3, ["train", "replay"]),
        ("train.batch_size", 32, ["replay"]),
    ],
)
def test_config_json_has_to_be_what_the_checkpoints_were_trained_with(
    run, capsys, field, value, refusing
):
    before = json.loads((run / "config.json").read_text())
    section, _, name = field.rpartition(".")
    was = (before[section] if section else before)[name]
    edit(run, field, value)
    option = [f"--{field.replace('_', '-')}", str(value)]
    commands = {
        "train": ["train", TINY, "--workdir", str(run), *option],  # both say the same
        "sample": ["sample", str(run), "--out", str(run / "x.png")],
        "evaluate": ["evaluate", str(run), "--num", "0"],
        "replay": ["replay", str(run), "--step", "24"],
    }
    files = sorted(run.rglob("*"))
    for command in refusing:
        assert main(commands[command]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"config.json' has {field} {value!r}, and {run}/checkpoints/" in error
        assert f"was trained with {was!r}; write that into config.json again" in error
    assert sorted(run.rglob("*")) == files


def test_an_edit_of_a_harmless_field_and_of_a_place_stays_possible(run):
    for field, value in (
        *(("evaluation.num_samples", 2), ("train.log_every", 7), ("workdir", "elsewhere")),
        *(("mesh.data", 1), ("train.batch_size", 32), ("data.memory_gb", 0.5)),
    ):
        edit(run, field, value)
    config = RunDirectory(run).read_config()
    assert (config.evaluation.num_samples, config.train.log_every) == (2, 7)


def test_where_data_are_is_no_other_config(run):
    """Whether they are the same images is seen from their content: test_run_data.py."""
    directory = RunDirectory(run)
    config = directory.read_config()
    for data in (
        *(configs.Archive("./x.npz"), configs.Archive("/b/x.npz"), configs.Folder("x")),
        configs.TensorFlowDataset("fashion_mnist:3.0.1", dir="elsewhere"),
    ):
        directory.check_owner(dataclasses.replace(config, data=data))
        edit(run, "data", configs.plain(data))
        directory.check_owner(config)


@pytest.mark.thorough
def test_lost_metrics_are_said_and_the_run_goes_on(tiny_run, run, capsys):
    lines = (tiny_run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= 10]
    (run / "metrics.jsonl").write_bytes(b"".join(kept))
    assert train(run) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "has lost lines" in line]
    assert said == [
        f"{run}/metrics.jsonl has lost lines, no loss of steps 11 to 20 and no held_out_loss of"
        " steps 9 to 20; training continues without them"
    ]
    rest = [line for line in lines if json.loads(line)["step"] > 20]
    assert (run / "metrics.jsonl").read_bytes() == b"".join(kept + rest)


GOOD = [b'{"step": %d, "loss": 1.0}' % step for step in (5, 10, 15, 20)]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b'{"step": 10, "l\xfess": 1.0}', "line 2 is not UTF-8"),
        (b'{"step": 10, "loss": 1.0', "line 2 is not JSON"),
        (b'{"step": 10, {"step": 11, "loss": 1.0}', "line 2 is not JSON"),
        (b"[10]", "line 2 has no step"),
        (b'{"step": true, "loss": 1.0}', "line 2 has no step"),
        (b'{"step": -10, "loss": 1.0}', "line 2 has no step"),
        (b'{"step": 10, "loss": NaN}', "line 2 has 'loss' nan, which is not a number"),
        (b'{"step": 10, "loss": 1e999}', "line 2 has 'loss' inf"),
        (b'{"step": 10, "loss": "1"}', "line 2 has 'loss' '1'"),
        (b'{"step": 10, "loss": ' + b"9" * 400 + b"}", "line 2 has 'loss' 999"),
        (b'{"step": 10, "loss": ' + b"9" * 5000 + b"}", "thousands of digits"),
        (b"[" * 50_000, "line 2 is nested too deeply"),
        (b'{"step": 3, "loss": 1.0}', "line 2 is of step 3, after one of 5"),
        (b'{"step": 90, "loss": 1.0}', "line 3 is of step 15, after one of 90"),
        (b'{"step": 5, "loss": 1.0}', "line 2 repeats step 5"),
        (b'{"step": 10, "loss": 1.0, "loss": 2.0}', "'loss' twice"),
    ],
)
def test_a_damaged_line_of_the_past_is_named(tmp_path, bad, said):
    run = RunDirectory(tmp_path)
    run.metrics.write_bytes(b"\n".join([GOOD[0], bad, *GOOD[2:], b""]))
    with pytest.raises(RunDirectoryError) as caught:
        run.read_metrics(until=20)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{str(run.metrics)!r} is damaged: line ")
    assert "repair or delete this line" in str(caught.value)


def test_what_is_wrong_with_lines_that_are_written_again_is_no_matter(tmp_path):
    run = RunDirectory(tmp_path)
    run.metrics.write_bytes(b"\r\n".join([*GOOD[:3], b"{", b"\xff", b"", b'{"step": 20, "lo']))
    assert [line["step"] for line in run.read_metrics(until=10)] == [5, 10]
    with pytest.raises(RunDirectoryError, match="line 4"):
        run.read_metrics(until=20)
    run.metrics.write_bytes(b"\n".join(GOOD))  # whole, but for the end of its last line
    assert [line["step"] for line in run.read_metrics()] == [5, 10, 15, 20]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is empty"),
        (b'{"seed": "\xff"}', "is not UTF-8"),
        (b'{"seed": ' * 50_000, "is nested too deeply"),
        (b'{"seed": 1, "seed": 2}', "has the field 'seed' twice"),
        (
            b'{"train": ' + b"[" * 500 + b"]" * 500 + b"}",
            "has no format: an older version wrote it",
        ),
        ({"seed": "0"}, "seed is '0'; it has to be an integer; did you mean 0?"),
        ({"seed": 0.0}, "seed is 0.0; it has to be an integer; did you mean 0?"),
        ({"seed": True}, "seed is True; it has to be an integer"),
        ({"seed": [0]}, "seed is [0]; it has to be an integer"),
        ({"seed": math.nan}, "seed is nan; it has to be an integer"),
        ({"train": []}, "train is []; it has to be an object with fields"),
        ({"workdir": "a\0"}, "it has to be text that can be the name of a file"),
        (None, "is a folder, not a file"),
    ],
)
def test_a_damaged_config_json_is_a_sentence(tmp_path, capsys, text, said):
    path = tmp_path / "config.json"
    if text is None:
        path.mkdir()
    elif isinstance(text, dict):
        path.write_text(json.dumps(configs.to_json(Config()) | text))
    else:
        path.write_bytes(text)
    for command in (["sample", str(tmp_path)], ["train", TINY, "--workdir", str(tmp_path)]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"ddpm-jax: {str(path)!r}")
        assert said in error
        assert error.count("\n") == 1
