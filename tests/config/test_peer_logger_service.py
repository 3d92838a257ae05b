"""The loggers with the packages of their services, offline: what is written is read back."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ddpm_jax import config

CONFIG = {"train": {"steps": 40, "eval_every": None}, "data": {"class": "Digits"}}
PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def log_run(member, directory, *steps, resumed_at=0, **results):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    log = member.make(directory, resumed_at)
    for step in steps:
        log.scalars(step, {"loss": 1.0 / step})
        log.picture(step, "samples", PICTURE)
    log.scalars(steps[-1], results)
    log.close()


# In a process of its own: these packages import much, and warn.
READ_WANDB = """
import json, pathlib, sys
from wandb.proto import wandb_internal_pb2
data, place, record, rows = pathlib.Path(sys.argv[1]).read_bytes(), 7, b"", []
while place < len(data):  # the format of LevelDB's logs: checksum, length, type, a part of a record
    if 32768 - place % 32768 < 7:
        place += 32768 - place % 32768
        continue
    size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
    record, place = record + data[place + 7 : place + 7 + size], place + 7 + size
    if kind not in (1, 4):  # the whole of one, or its last part
        continue
    record, whole = b"", record
    record_of = wandb_internal_pb2.Record.FromString(whole)
    if record_of.WhichOneof("record_type") == "run":
        rows.append(["run", record_of.run.run_id, record_of.run.project])
    if record_of.WhichOneof("record_type") == "history":
        items = {item.key or ".".join(item.nested_key): item.value_json
                 for item in record_of.history.item}
        rows.append(["history", items])
print(json.dumps(rows))
"""
READ_MLFLOW = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(tracking_uri=sys.argv[1])
(run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
names = sorted(run.data.metrics)
history = {name: [[point.step, point.value] for point in
                  client.get_metric_history(run.info.run_id, name)] for name in names}
files = [file.path for folder in ("", "pictures")
         for file in client.list_artifacts(run.info.run_id, folder)]
print(json.dumps([run.info.run_id, run.info.status, run.data.params, history, files,
                  run.data.tags]))
"""


def read(program, *arguments):
    command = [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_weights_and_biases_offline_has_all_of_a_run_and_its_id_when_resumed(tmp_path):
    pytest.importorskip("wandb", reason="wandb comes with the extra 'peers'")
    member, run = config.Wandb(project="digits", offline=True, wait_seconds=300.0), tmp_path / "run"
    log_run(member, run, 10, 20)
    log_run(member, run, 30, 40, resumed_at=20, final_bits_per_dim=2.0)
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    ids, points = set(), {}
    for file in files:
        for kind, *row in read(READ_WANDB, file):
            if kind == "run":
                ids.add(tuple(row))
            else:
                step = int(row[0]["_step"])
                points |= {(step, name): json.loads(value) for name, value in row[0].items()}
    stored = json.loads((run / "wandb" / "run.json").read_text())["id"]
    assert ids == {(stored, "digits")}
    assert [points[step, "loss"] for step in (10, 20, 30, 40)] == [0.1, 0.05, 1 / 30, 0.025]
    assert points[40, "final_bits_per_dim"] == 2.0
    assert len(list(run.glob("wandb/offline-run-*/files/media/images/samples_*.png"))) == 4


@pytest.mark.thorough  # MLflow makes its tables in 10 s
def test_mlflow_in_a_file_has_all_of_a_run_once_also_when_it_is_resumed(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow comes with the extra 'peers'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    member, run = (
        config.Mlflow(experiment="digits", tags=("who=me",), wait_seconds=300.0),
        tmp_path / "run",
    )
    log_run(member, run, 10, 20, 30)
    log_run(member, run, 30, 40, resumed_at=20, final_bits_per_dim=2.0)
    run_id, status, params, history, files, tags = read(
        READ_MLFLOW, f"sqlite:///{run / 'mlflow' / 'mlflow.db'}"
    )
    assert run_id == json.loads((run / "mlflow" / "run.json").read_text())["id"]
    assert status == "FINISHED"
    assert params == {"train.steps": "40", "train.eval_every": "null", "data.class": "Digits"}
    assert history == {
        "loss": [[10, 0.1], [20, 0.05], [30, 1 / 30], [40, 0.025]],
        "final_bits_per_dim": [[40, 2.0]],
    }
    pictures = [f"pictures/samples_{step:07d}.png" for step in (10, 20, 30, 40)]
    assert {"config.json", *pictures} <= set(files)
    assert (tags["who"], tags["mlflow.runName"]) == ("me", "run")
