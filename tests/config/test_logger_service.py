"""Loggers with a process of their own, beside services that work, fail, hang and die.

The services are modules of a few lines that stand where `wandb` would.
"""

import json
import os
import re
import time

import numpy as np
import pytest

from ddpm_jax import config
from ddpm_jax.config import ConfigError
from ddpm_jax.errors import MissingExtra

WORKS = """
import json, pathlib, sys
print("noise of the library")
class Settings(dict):
    pass
def Image(picture):
    return [picture.dtype.name, picture.tolist()]
class Run:
    def __init__(self, options):
        self.file = (pathlib.Path(options["dir"]) / "calls.jsonl").open("a")
        self.write("init", {name: value for name, value in options.items() if name != "settings"})
        self.config = self
    def write(self, *call):
        self.file.write(json.dumps(call) + "\\n")
        self.file.flush()
    def update(self, config, allow_val_change):
        self.write("config", config)
    def log(self, values, step):
        self.write("log", step, values)
    def finish(self, exit_code):
        self.write("finish", exit_code)
def init(**options):
    return Run(options)
"""
FAILS = WORKS.replace("return Run(options)", "raise ConnectionError('no route\\n to host')")
HANGS = WORKS.replace("return Run(options)", "import time; time.sleep(1000)")
DIES = WORKS.replace("return Run(options)", "import os; os._exit(9)")
DROPS = WORKS.replace(
    'self.write("log", step, values)', "step in (2, 3, 5) and 1 / 0; self.write(step)"
)


@pytest.fixture
def service(tmp_path, monkeypatch):
    """A function that puts a module in the place of wandb."""

    def put(text):
        folder = tmp_path / "modules"
        folder.mkdir(exist_ok=True)
        (folder / "wandb.py").write_text(text)
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return put


def open_run(directory, resumed_at=0, **options):
    directory.mkdir(exist_ok=True)
    return config.Wandb(**options).make(directory, resumed_at)


def errors_of(function, *arguments):
    with pytest.raises(ConnectionError) as caught:
        function(*arguments)
    return str(caught.value)


def calls(directory):
    return [json.loads(line) for line in (directory / "calls.jsonl").read_text().splitlines()]


def test_all_calls_come_through_in_their_order(service, tmp_path, capfd):
    service(WORKS)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text('{"train": {"steps": 3}}')
    log = open_run(run, project="p", tags=("a", "b"))
    log.scalars(1, {"loss": 0.5})
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    log.picture(1, "samples", picture[:, ::-1])
    log.scalars(2, {"loss": float("nan")})
    log.close()
    init, stored, *logged, finish = calls(run)
    options = init[1]
    assert (options["project"], options["tags"], options["name"]) == ("p", ["a", "b"], "run")
    assert (options["mode"], options["resume"]) == (None, "allow")
    assert stored == ["config", {"train": {"steps": 3}}]
    assert logged[0] == ["log", 1, {"loss": 0.5}]
    assert logged[1] == ["log", 1, {"samples": ["uint8", picture[:, ::-1].tolist()]}]
    assert np.isnan(logged[2][2]["loss"])
    assert finish == ["finish", 0]
    assert "noise of the library" in (run / "wandb" / "output.txt").read_text()
    assert capfd.readouterr() == ("", "")


def test_a_resumed_run_has_the_same_id_and_two_runs_have_not(service, tmp_path):
    service(WORKS)
    ids = []
    for name, resumed_at in (("one", 0), ("one", 40), ("two", 0)):
        open_run(tmp_path / name, resumed_at).close()
        ids.append([call[1]["id"] for call in calls(tmp_path / name) if call[0] == "init"][-1])
    assert ids[0] == ids[1] != ids[2]
    assert re.fullmatch("[0-9a-f]{16}", ids[0])


def test_a_service_that_fails_to_start_is_one_error(service, tmp_path):
    service(FAILS)
    log = open_run(tmp_path / "run")
    assert "ConnectionError: no route to host (see " in errors_of(log.close)
    log.scalars(1, {"loss": 1.0})  # for nobody
    log.close()


def test_calls_that_fail_one_after_the_other_are_one_error(service, tmp_path):
    service(DROPS)
    log, errors = open_run(tmp_path / "run"), []
    for step in range(1, 7):
        log._queue.put(["scalars", step, {"loss": 1.0}])
    errors = errors_of(log.close)
    assert errors.count("ZeroDivisionError: division by zero") == 2
    assert [call[0] for call in calls(tmp_path / "run")[2:]] == [1, 4, 6, "finish"]


def test_a_service_that_hangs_costs_no_time_until_the_end_and_is_killed_there(service, tmp_path):
    service(HANGS)
    begin = time.monotonic()
    log = open_run(tmp_path / "run", wait_seconds=0.5)
    big = np.zeros((300, 300, 3), np.uint8)
    for step in range(20):  # more than a pipe holds
        log.scalars(step, {"loss": 1.0})
        log.picture(step, "samples", big)
    assert "it did not end within 0.5 s; the rest is not sent (see " in errors_of(log.close)
    assert time.monotonic() - begin < 10
    with pytest.raises(ProcessLookupError):
        os.kill(log._process.pid, 0)
    assert not any(thread.is_alive() for thread in log._threads)


def test_calls_that_a_slow_service_cannot_take_are_lost(service, tmp_path, monkeypatch):
    service(HANGS)
    monkeypatch.setattr("ddpm_jax.config.logger_service._QUEUE", 5)
    log = open_run(tmp_path / "run", wait_seconds=0.1)
    big = np.zeros((300, 300, 3), np.uint8)
    for step in range(6):  # one is with the process
        log.picture(step, "samples", big)
        time.sleep(0.05)
    with pytest.raises(TimeoutError, match="5 calls wait; until it answers, others are lost"):
        log.picture(6, "samples", big)
    errors_of(log.close)


def test_a_process_that_dies_is_one_error(service, tmp_path):
    service(DIES)
    log = open_run(tmp_path / "run")
    assert "its process ended with code 9" in errors_of(log.close)


def test_a_run_that_is_killed_ends_the_process(service, tmp_path):
    service(WORKS)
    log = open_run(tmp_path / "run")
    log.scalars(1, {"loss": 1.0})
    log._queue.put(None)  # as the end of this process would: the pipe is closed without a word
    assert log._process.wait(20) == 0
    assert calls(tmp_path / "run")[-1] == ["finish", 1]
    log.close()


@pytest.mark.parametrize(
    ("member", "extra"), [(config.Wandb(), "wandb"), (config.Mlflow(), "mlflow")]
)
def test_a_missing_package_is_a_sentence(member, extra, tmp_path, monkeypatch):
    monkeypatch.setattr("ddpm_jax.errors.is_installed", lambda module: False)
    with pytest.raises(MissingExtra, match=rf"pip install 'ddpm_jax\[{extra}\]'"):
        member.make(tmp_path, 0)


@pytest.mark.parametrize("address", ["postgresql://me:secret@host/db", "https://secret@host"])
def test_a_password_in_a_config_is_refused_without_showing_it(address):
    with pytest.raises(ConfigError, match=r"logger\.tracking_uri has a password") as caught:
        config.validate(config.Config(logger=config.Mlflow(tracking_uri=address)))
    assert "secret" not in str(caught.value)


def test_tags_of_mlflow_have_values():
    with pytest.raises(ConfigError, match="it has to be texts such as 'key=value'"):
        config.validate(config.Config(logger=config.Mlflow(tags=("a",))))
