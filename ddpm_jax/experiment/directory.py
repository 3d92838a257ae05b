"""The folder of one run: what is in it, whose it is, and that only one process trains in it."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddpm_jax import config as configs
from ddpm_jax.config import Affects, Config, ConfigError, Difference
from ddpm_jax.errors import UserError
from ddpm_jax.experiment.results import read_results, sealed
from ddpm_jax.files import (
    PARTIAL,
    JsonFileError,
    is_partial,
    parse_json,
    read_json,
    whole_file,
)
from ddpm_jax.training import manifest

__all__ = ["RunDirectory", "RunDirectoryError", "run_differences", "write_json"]


_BELONGS = {Affects.MODEL, Affects.TRAINING}
"""What a run cannot change: its checkpoints were trained with it."""


class RunDirectoryError(UserError):
    """A run directory that cannot be used as asked."""


class RunDirectory:
    """Names of the files of a run.

    config.json     the run's config, as it went on last
    config_history.jsonl  what was changed in it, and at which step
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
        self.config_history = self.path / "config_history.jsonl"
        self.images = self.path / "images.json"
        self.metrics = self.path / "metrics.jsonl"
        self.results = self.path / "results.json"
        self.checkpoints = self.path / "checkpoints"
        self.snapshots = self.path / "snapshots"
        self.pictures = self.path / "pictures"
        self.tensorboard = self.path / "tensorboard"
        self.evaluation = self.path / "evaluation"

    def read_config(self, *, for_training: bool = False) -> Config:
        """The config of the run that is here, which its checkpoints were trained with.

        Each checkpoint and snapshot has the config in its manifest, too. They have to agree in all
        that decides what the parameters mean, and `for_training` in all that decides which
        parameters training ends with; other fields may have been changed.

        Raises:
            RunDirectoryError: there is no run here, or its config cannot be read, or a checkpoint
                was trained with another one.
        """
        if not self.config.exists():
            raise RunDirectoryError(
                f"{str(self.path)!r} is no run directory: it has no config.json"
                " (ddpm-jax train makes one)"
            )
        values = read_json(self.config)
        try:
            config = configs.from_json(values)
        except ConfigError as error:
            raise RunDirectoryError(f"{str(self.config)!r}: {error}") from None
        self._compare_with_manifests(config, _BELONGS if for_training else {Affects.MODEL})
        return config

    def _compare_with_manifests(self, config: Config, kinds: set[Affects]) -> None:
        here, defaults = (configs.flat(configs.to_json(each)) for each in (config, Config()))
        for folder in (self.checkpoints, self.snapshots):
            for step, place in manifest.step_folders(folder).items():
                try:
                    there = configs.flat(manifest.read(place, step).config)
                except manifest.DamageError:  # a restore says what is wrong with it
                    continue
                for field in sorted(there.keys() - here.keys()):
                    raise RunDirectoryError(
                        f"{place} was trained with {field} {configs.shown(there[field])}, a field"
                        " that this version of ddpm_jax does not have; take the version that"
                        " trained it"
                    )
                for field, value in here.items() if there else ():
                    # A field that is younger than the checkpoint had no other value.
                    trained = Difference(field, there.get(field, defaults[field]), value)
                    if trained.first != value and configs.affects(trained) in kinds:
                        raise RunDirectoryError(
                            f"{str(self.config)!r} has {field} {configs.shown(value)}, and {place}"
                            f" was trained with {configs.shown(trained.first)}; write that into"
                            " config.json again, or begin a run of its own in another directory"
                        )

    def update_config(self, config: Config, step: int) -> str:
        """Stores what `config` changes from `step` on, and says it; "" if nothing is worth it.

        `check_owner` comes before.
        """
        changes = configs.differences(self.read_config(), config)
        if not changes:
            return ""
        # Where the processes of a run meet is another place each time.
        told = [change for change in changes if not change.field.startswith("hosts.")]
        if told:
            line = {"step": step, "changes": {name: values for name, *values in told}}
            with self.config_history.open("a") as file:
                file.write(json.dumps(line) + "\n")
        write_json(self.config, configs.to_json(config))
        return f"from step {step} on {_as_sentence(told)}" if told else ""

    def past_values(self, field: str) -> list[Any]:
        """Values that a field of the config had before."""
        if not self.config_history.is_file():
            return []
        values = []
        for line in self.config_history.read_bytes().splitlines():
            # A line that is damaged, or was cut off by a kill, says nothing.
            with contextlib.suppress(JsonFileError, KeyError, TypeError, IndexError):
                values.append(parse_json(line, "line")["changes"][field][0])
        return values

    def read_metrics(self, until: int | None = None) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl up to step `until`, or all.

        The last line may have been cut off by a kill, and lines past `until` are written again:
        what is wrong with those is no matter.

        Raises:
            RunDirectoryError: another line is damaged.
        """
        name = repr(str(self.metrics))
        if not self.metrics.exists():
            return []
        if not self.metrics.is_file():
            raise RunDirectoryError(f"{name} is not a file; move it away to go on without its past")
        try:
            *pieces, last = self.metrics.read_bytes().split(b"\n")
        except OSError as error:
            raise RunDirectoryError(f"{name} cannot be read ({error.strerror})") from None
        lines: list[dict[str, Any]] = []
        before, is_past = 0, True
        for number, piece in enumerate([*pieces, last], start=1):
            if not piece.strip():
                continue
            try:
                line = _metrics_line(piece, f"line {number}")
            except JsonFileError as error:
                if is_past and number <= len(pieces):
                    raise self._damaged_metrics(str(error)) from None
                continue
            step = line["step"]
            is_past = until is None or step <= until
            if is_past:
                same = [old for old in lines[-2:] if old["step"] == step]
                if step < before:
                    raise self._damaged_metrics(
                        f"line {number} is of step {step}, after one of {before}"
                    )
                if any(old.keys() & line.keys() > {"step"} for old in same):
                    raise self._damaged_metrics(f"line {number} repeats step {step}")
                lines.append(line)
            before = step
        return lines

    def _damaged_metrics(self, what: str) -> "RunDirectoryError":
        return RunDirectoryError(
            f"{str(self.metrics)!r} is damaged: {what}; mend or delete this line, or delete the"
            " file, to go on without what it held"
        )

    def read_results(self) -> dict[str, Any] | None:
        """The final evaluation, or None if the run is not finished.

        Raises:
            ResultsError: the file is not as a run writes it.
        """
        return read_results(self.results) if self.results.exists() else None

    def write_results(self, results: dict[str, Any]) -> None:
        """Marks the run as finished."""
        write_json(self.results, sealed(results))

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
        if not self.config.exists():
            write_json(self.config, configs.to_json(config))

    def check_owner(self, config: Config) -> None:
        """Raises RunDirectoryError unless the directory is free or belongs to `config`."""
        if self.path.exists() and not self.path.is_dir():
            raise RunDirectoryError(f"workdir {str(self.path)!r} is a file, not a directory")
        if not self.config.exists():
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
        different = run_differences(self.read_config(for_training=True), config)
        if different:
            raise RunDirectoryError(
                f"workdir {str(self.path)!r} belongs to a run with another config"
                f" ({_as_sentence(different)}); give another --workdir or the same values"
            )


def run_differences(first: Config, second: Config) -> list[Difference]:
    """The fields that make two configs those of two runs."""
    return [
        difference
        for difference in configs.differences(first, second)
        if configs.affects(difference) in _BELONGS
    ]


def _as_sentence(differences: list[Difference]) -> str:
    return "; ".join(f"{field} was {before} and is {now}" for field, before, now in differences)


def _metrics_line(text: bytes, name: str) -> dict[str, Any]:
    """A step, and numbers or null.

    Raises:
        JsonFileError: it is anything else.
    """
    line = parse_json(text, name)
    step = line.get("step") if isinstance(line, dict) else None
    if type(step) is not int or not 0 < step < 2**31:
        raise JsonFileError(f"{name} has no step from 1 on")
    for metric, value in line.items():
        is_number = type(value) in (int, float) and abs(value) < 1e300
        if value is not None and not is_number:
            raise JsonFileError(
                f"{name} has {configs.shown(metric)} {configs.shown(value)}, which is no number"
            )
    values: dict[str, Any] = line
    return values


def write_json(path: Path, values: dict[str, Any]) -> None:
    """All of it or nothing, also if the process dies half way."""
    with whole_file(path) as file:
        file.write((json.dumps(values, indent=2) + "\n").encode())
