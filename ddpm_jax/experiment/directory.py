"""The folder of one run: what is in it, whose it is, and that only one process trains in it."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddpm_jax import config as configs
from ddpm_jax.config import Config
from ddpm_jax.errors import UserError
from ddpm_jax.experiment.results import read_results
from ddpm_jax.files import PARTIAL, is_partial, whole_file

__all__ = ["RunDirectory", "RunDirectoryError", "run_differences", "write_json"]

_MAY_DIFFER = (
    *("workdir", "data.dir", "compilation_cache", "hosts.", "mesh."),
    *("train.accumulate", "train.keep_", "train.verify_checkpoints", "train.missed_saves"),
    "model.remat",
)
"""Beginnings of the fields that say where things are, who computes them and in how many parts: they
change no more than rounding."""


class RunDirectoryError(UserError):
    """A run directory that cannot be used as asked."""


class RunDirectory:
    """Names of the files of a run.

    config.json     the run's config
    images.json     what the run records of its data set, see `ddpm_jax.experiment.data_record`
    metrics.jsonl   one line for each log, the same bytes however often the run was interrupted
    results.json    the final evaluation; its presence says that the run is finished
    checkpoints/    one folder a saved step, each with a manifest
    snapshots/      averages for post-hoc EMA, if asked for, one folder a step
    pictures/       sample grids and denoising strips
    tensorboard/    the same as events, and the speed
    evaluation/     what `ddpm-jax evaluate` found, one folder a step
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.images = self.path / "images.json"
        self.metrics = self.path / "metrics.jsonl"
        self.results = self.path / "results.json"
        self.checkpoints = self.path / "checkpoints"
        self.snapshots = self.path / "snapshots"
        self.pictures = self.path / "pictures"
        self.tensorboard = self.path / "tensorboard"
        self.evaluation = self.path / "evaluation"

    def read_config(self) -> Config:
        """The config of the run that is here.

        Raises:
            RunDirectoryError: there is no run here, or its config cannot be read.
        """
        if not self.config.is_file():
            raise RunDirectoryError(
                f"{str(self.path)!r} is no run directory: it has no config.json"
                " (ddpm-jax train makes one)"
            )
        return configs.from_json(_read(self.config))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The whole lines of metrics.jsonl; the last may have been cut off by a kill.

        Raises:
            RunDirectoryError: the file is damaged.
        """
        if not self.metrics.is_file():
            return []
        whole = self.metrics.read_text().split("\n")[:-1]
        try:
            lines = [json.loads(line) for line in whole]
            return [line for line in lines if isinstance(line["step"], int)]
        except (ValueError, KeyError, TypeError) as error:
            raise RunDirectoryError(
                f"{str(self.metrics)!r} is damaged ({error}); delete it to go on without its past"
            ) from error

    def read_results(self) -> dict[str, Any] | None:
        """The final evaluation, or None if the run is not finished.

        Raises:
            ResultsError: the file is not as a run writes it.
        """
        return read_results(self.results) if self.results.exists() else None

    def write_results(self, results: dict[str, Any]) -> None:
        """Marks the run as finished."""
        write_json(self.results, results)

    @contextlib.contextmanager
    def claim(self, config: Config) -> Iterator[None]:
        """Makes the directory `config`'s own while the context lasts.

        Raises:
            RunDirectoryError: it belongs to another config, is no directory, holds files of
                something else, or another process trains in it.
        """
        self.check_owner(config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirectoryError(f"workdir {str(self.path)!r} cannot be made: {error}") from None
        # The kernel lets go of the lock when the process ends, however it ends.
        with (self.path / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunDirectoryError(
                    f"another process is training in {str(self.path)!r}; wait for it, or give"
                    " another --workdir"
                ) from None
            self.make(config)
            yield

    def make(self, config: Config) -> None:
        """The directory and its config, unless they are there."""
        if not self.config.is_file():
            write_json(self.config, configs.to_json(config))

    def check_owner(self, config: Config) -> None:
        """Raises RunDirectoryError unless the directory is free or belongs to `config`."""
        if self.path.exists() and not self.path.is_dir():
            raise RunDirectoryError(f"workdir {str(self.path)!r} is a file, not a directory")
        if not self.config.is_file():
            # What a claim that was killed half way leaves is no other thing.
            others = sorted(
                item.name
                for item in self.path.glob("*")
                if item.name not in ("lock", self.config.name + PARTIAL)
                and not is_partial(item.name, self.config.name)
            )
            if others:
                raise RunDirectoryError(
                    f"workdir {str(self.path)!r} holds other things ({', '.join(others[:3])});"
                    " give an empty or a new one"
                )
            return
        stored = self.read_config()
        different = run_differences(stored, config)
        if different:
            fields = "; ".join(
                f"{field} was {before} and is {now}" for field, before, now in different
            )
            raise RunDirectoryError(
                f"workdir {str(self.path)!r} belongs to a run with another config ({fields});"
                " give another --workdir or the same values"
            )


def run_differences(first: Config, second: Config) -> list[configs.Difference]:
    """The fields that make two configs those of two runs."""
    return [
        difference
        for difference in configs.differences(first, second)
        if not difference.field.startswith(_MAY_DIFFER)
    ]


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise RunDirectoryError(f"{str(path)!r} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise RunDirectoryError(f"{str(path)!r} holds a {type(values).__name__}, not an object")
    return values


def write_json(path: Path, values: dict[str, Any]) -> None:
    """All of it or nothing, also if the process dies half way."""
    with whole_file(path) as file:
        file.write((json.dumps(values, indent=2) + "\n").encode())
