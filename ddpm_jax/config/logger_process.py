"""The process of a logger that sends to a service: it reads lines of JSON until its input ends.

A file that runs by itself: it imports nothing of this package, which would start JAX. The first
line names the service, the directory of the run and the options; each further line is one call.
What goes wrong is a line on standard output, and so is the id of a new run, which the process of
the run writes to a file. What the libraries print goes to standard error.

A call that fails right after another one that failed is not reported.
"""

import base64
import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["main"]

_QUIET = {
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "WANDB_ERROR_REPORTING": "false",
}
"""Environment variables of the services, where the user has not set them. A server that does not
answer is given up after a minute, not after an hour."""
_BATCH = 100
"""Parameters in one request to MLflow."""
_GRACE = 5
"""Seconds after which the process ends itself if the run has not ended it."""


class _WandBRun:
    """A run of Weights & Biases, new or resumed by its id."""

    new_id: str | None = None

    def __init__(self, directory: Path, config: dict[str, Any], options: dict[str, Any]) -> None:
        import wandb

        offline = options.pop("offline")
        options["name"] = options["name"] or directory.name
        self._picture = wandb.Image
        self._run = wandb.init(
            **options,
            dir=str(directory),
            mode="offline" if offline else None,
            resume=None if offline else "allow",
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                silent=True,
                x_stats_pid=os.getppid(),
            ),
        )
        self._run.config.update(config, allow_val_change=True)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Logs at a step; it ignores steps before the last one that it has."""
        self._run.log(values, step=step)

    def picture(self, step: int, name: str, picture: Any) -> None:
        """Logs an array."""
        self._run.log({name: self._picture(picture)}, step=step)

    def close(self, *, whole: bool) -> None:
        """Sends the rest."""
        self._run.finish(exit_code=0 if whole else 1)


class _MLflowRun:
    """A run of MLflow, new or resumed by its id, by a client without global state."""

    new_id: str | None = None

    def __init__(self, directory: Path, config: dict[str, Any], options: dict[str, Any]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        folder = directory / "mlflow"
        uri = options["tracking_uri"] or os.environ.get("MLFLOW_TRACKING_URI")
        local = None if uri else str(folder / "artifacts")
        self._client = MlflowClient(tracking_uri=uri or f"sqlite:///{folder / 'mlflow.db'}")
        self._id, self._last = self._resumed(folder / "run.json"), dict[str, int]()
        if self._id is None:
            experiment = self._experiment(options["experiment"], local)
            run = self._client.create_run(
                experiment,
                run_name=options["name"] or directory.name,
                tags=dict(tag.split("=", 1) for tag in options["tags"]),
            )
            self._id = self.new_id = run.info.run_id
        known = self._client.get_run(self._id).data
        for name in known.metrics:
            history = self._client.get_metric_history(self._id, name)
            self._last[name] = max(entry.step for entry in history)
        new = [Param(*item) for item in _flat(config) if item[0] not in known.params]
        for first in range(0, len(new), _BATCH):
            self._client.log_batch(self._id, params=new[first : first + _BATCH])
        self._client.log_dict(self._id, config, "config.json")

    def _resumed(self, file: Path) -> str | None:
        """The id of the run in `file`, which runs again; None if the server does not know it."""
        from mlflow.exceptions import MlflowException

        if not file.exists():
            return None
        run_id = json.loads(file.read_text())["id"]
        try:
            self._client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return str(run_id)

    def _experiment(self, name: str, local: str | None) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        return str(self._client.create_experiment(name, artifact_location=local))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Logs at a step what it does not have up to this step."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        new = {name: value for name, value in values.items() if step > self._last.get(name, -1)}
        if new:
            metrics = [Metric(name, value, now, step) for name, value in new.items()]
            self._client.log_batch(self._id, metrics=metrics)
            self._last |= dict.fromkeys(new, step)

    def picture(self, step: int, name: str, picture: Any) -> None:
        """Writes a PNG."""
        self._client.log_image(self._id, picture, artifact_file=f"pictures/{name}_{step:07d}.png")

    def close(self, *, whole: bool) -> None:
        """Marks the run as finished, or as failed."""
        self._client.set_terminated(self._id, "FINISHED" if whole else "FAILED")


_SERVICES: dict[str, type[_WandBRun] | type[_MLflowRun]] = {
    "wandb": _WandBRun,
    "mlflow": _MLflowRun,
}


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and texts."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value)


def main() -> None:
    """Serves one run until its input ends."""
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the run gets them, logs what it has, and closes
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    failing = False

    @contextlib.contextmanager
    def reported() -> Iterator[None]:
        nonlocal failing
        try:
            yield
            failing = False
        except Exception as error:
            if not failing:
                text = " ".join(f"{type(error).__name__}: {error}".split())
                print(json.dumps(text[:300]), file=reports, flush=True)
            failing = True
            raise

    with reported():
        request = json.loads(sys.stdin.readline())
        directory, whole = Path(request["directory"]), False
        file = directory / "config.json"
        config = json.loads(file.read_text()) if file.exists() else {}
        service = _SERVICES[request["service"]](directory, config, request["options"])
    if service.new_id is not None:
        print(json.dumps({"id": service.new_id}), file=reports, flush=True)
    for line in sys.stdin:
        call, *arguments = json.loads(line)
        with contextlib.suppress(Exception), reported():
            if call == "scalars":
                service.scalars(*arguments)
            elif call == "picture":
                step, name, shape, data = arguments
                service.picture(step, name, _array(shape, data))
            else:
                whole = True
    signal.alarm(math.ceil(request["seconds"]) + _GRACE)  # also where nobody waits any more
    with reported():
        service.close(whole=whole)


def _array(shape: list[int], data: str) -> Any:
    import numpy as np

    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(shape)


if __name__ == "__main__":
    try:
        main()
    except Exception:
        sys.exit(1)  # it is reported
