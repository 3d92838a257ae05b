"""The folder of one run: what is in it, whose it is, and that only one process trains in it."""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax import config as configs
from ddpm_jax.config import Affects, Config, ConfigError, Difference
from ddpm_jax.errors import UserError
from ddpm_jax.experiment.weight_files import open_weight_file
from ddpm_jax.files import (
    PARTIAL,
    JsonFileError,
    is_partial,
    json_digest,
    parse_json,
    read_json,
    whole_file,
)
from ddpm_jax.training import manifest
from ddpm_jax.weights import WeightsError

__all__ = ["ResultsError", "RunDirectory", "RunDirectoryError", "run_differences", "write_json"]


_BELONGS = {Affects.MODEL, Affects.TRAINING}
"""What a run cannot change: its checkpoints were trained with it."""


class RunDirectoryError(UserError):
    """A run directory that cannot be used in this way."""


class ResultsError(UserError):
    """A results.json that a run did not write so."""


class RunDirectory:
    """Names of the files of a run.

    config.json     the run's config, as it went on last
    config.py       a copy of the config file, if members of the config are defined in it
    config_history.jsonl  what was changed in it, and at which step
    images.json     what the run records of its data set, see `ddpm_jax.experiment.data_record`
    initial.json    which parameters of which run it began with, if it has `init_from`
    imported.json   where its weights are from, if they were not trained here
    weights/        these, see `ddpm_jax.experiment.imported`; such a run has no checkpoints
    metrics.jsonl   one line for each log, the same bytes however often the run was interrupted
    results.json    the final evaluation; its presence says that the run is finished
    checkpoints/    one folder a saved step, each with a manifest
    snapshots/      averages for post-hoc EMA, one folder for each step
    pictures/       sample grids and denoising strips
    tensorboard/    the same as events, and the speed
    evaluation/     what `ddpm-jax evaluate` found, one folder a step
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.config_copy = self.path / configs.OWN
        self.config_history = self.path / "config_history.jsonl"
        self.images = self.path / "images.json"
        self.initial = self.path / "initial.json"
        self.imported = self.path / "imported.json"
        self.weights = self.path / "weights"
        self.metrics = self.path / "metrics.jsonl"
        self.results = self.path / "results.json"
        self.checkpoints = self.path / "checkpoints"
        self.snapshots = self.path / "snapshots"
        self.pictures = self.path / "pictures"
        self.tensorboard = self.path / "tensorboard"
        self.evaluation = self.path / "evaluation"

    def read_stored(self) -> dict[str, Any]:
        """What config.json holds, as it is; nothing of it is executed.

        Raises:
            RunDirectoryError: there is no run here, or no JSON.
        """
        if not self.config.exists():
            raise RunDirectoryError(
                f"{str(self.path)!r} is no run directory: it has no config.json"
                " (ddpm-jax train makes one)"
            )
        return read_json(self.config)

    def read_config(
        self, *, for_training: bool = False, report: Callable[[str], None] = lambda line: None
    ) -> Config:
        """The config of the run that is here, which its checkpoints were trained with.

        If members of it are of the run's own config.py, that is executed. Each checkpoint and
        snapshot has the config in its manifest, too. They have to agree in all that decides what
        the parameters mean, and `for_training` in all that decides which parameters training ends
        with; other fields may have been changed.

        Args:
            for_training: see above.
            report: gets a line before config.py is executed, and for each field that is absent.

        Raises:
            RunDirectoryError: there is no run here, or its config cannot be read, or a checkpoint
                was trained with another one.
        """
        stored = self.read_stored()
        config = self._config_of(stored, report=report)
        self._compare_with_manifests(stored, config, _BELONGS if for_training else {Affects.MODEL})
        return config

    def _config_of(self, stored: dict[str, Any], **kwargs: Any) -> Config:
        try:
            return configs.from_json(stored, copy=self.config_copy, **kwargs)
        except ConfigError as error:
            raise RunDirectoryError(f"{str(self.config)!r}: {error}") from None

    def _compare_with_manifests(
        self, stored: dict[str, Any], config: Config, kinds: set[Affects]
    ) -> None:
        here = configs.flat(stored)
        for place, trained in self._trained_configs():
            for change in configs.differences(trained, stored, config):
                field, before = change.field, configs.shown(change.first)
                if field not in here:
                    raise RunDirectoryError(
                        f"{place} was trained with {field} {before}, a field that this version"
                        " of ddpm_jax does not have; take the version that trained it"
                    )
                if change.affects in kinds:
                    raise RunDirectoryError(
                        f"{str(self.config)!r} has {field} {configs.shown(change.second)}, and"
                        f" {place} was trained with {before}; write that into config.json"
                        " again, or begin a run of its own in another directory"
                    )

    def _trained_configs(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Those that are stored beside parameters; a restore says what is wrong with the others."""
        for folder in (self.checkpoints, self.snapshots):
            for step, place in manifest.step_folders(folder).items():
                with contextlib.suppress(manifest.DamageError):
                    if trained := manifest.read(place, step).config:
                        yield place, trained
        for place in sorted(self.weights.glob("*.safetensors")):
            with contextlib.suppress(WeightsError):
                yield place, open_weight_file(place).config

    def update_config(self, config: Config, step: int) -> str:
        """Stores what `config` changes from `step` on, and returns it as a sentence; "" if none.

        `check_owner` comes before.
        """
        stored, now = self.read_stored(), configs.to_json(config)
        if stored == now:
            return ""
        # Where the processes of a run meet is another place each time.
        changes = [
            change
            for change in configs.differences(stored, now, config)
            if change.field.split(".")[0] != "hosts"
        ]
        if changes:
            values = {change.field: [change.first, change.second] for change in changes}
            with self.config_history.open("a") as file:
                file.write(json.dumps({"step": step, "changes": values}) + "\n")
        self._write_config(config)
        return f"from step {step} on {_as_sentence(changes)}" if changes else ""

    def _write_config(self, config: Config) -> None:
        """The copy of the config file, if classes of it are needed, and config.json."""
        source = configs.source_of(config)
        if source is not None:
            with whole_file(self.config_copy) as file:
                file.write(source.content)
        write_json(self.config, configs.to_json(config))

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
        if not self.results.exists():
            return None
        remedy = "remove it, and the same `ddpm-jax train` evaluates the last checkpoint again"
        try:
            values = read_json(self.results)
        except JsonFileError as error:
            raise ResultsError(f"{error}; {remedy}") from None
        if values.pop("sha256", None) != json_digest(values):
            raise ResultsError(
                f"{str(self.results)!r} is not as it was written, by its sha256; {remedy}"
            )
        if type(values.get("step")) is not int:
            raise ResultsError(f"{str(self.results)!r} has no step; {remedy}")
        return values

    def set_results_aside(self, step: int) -> None:
        """Renames the results of a run that is extended after `step`, so that it is unfinished."""
        if self.results.exists():
            self.results.rename(self.path / f"results_{step:07d}.json")

    def write_results(self, results: dict[str, Any]) -> None:
        """Marks the run as finished."""
        write_json(self.results, {**results, "sha256": json_digest(results)})

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
        source = configs.source_of(config)
        if not self.config.exists() or (source is not None and not self.config_copy.exists()):
            self._write_config(config)

    def check_owner(self, config: Config) -> None:
        """Raises RunDirectoryError unless the directory is free or belongs to `config`."""
        if self.path.exists() and not self.path.is_dir():
            raise RunDirectoryError(f"workdir {str(self.path)!r} is a file, not a directory")
        if self.imported.exists():
            raise RunDirectoryError(
                f"workdir {str(self.path)!r} holds imported weights, without the optimizer's state"
                f" that training goes on with; --init-from {self.path} and another --workdir begin"
                " a run with them"
            )
        if not self.config.exists():
            # What a claim that was killed half way leaves is no other thing.
            others = sorted(
                item.name for item in self.path.glob("*") if not self._is_of_claim(item, config)
            )
            if others:
                raise RunDirectoryError(
                    f"workdir {str(self.path)!r} holds other things ({', '.join(others[:3])});"
                    " give an empty or a new one"
                )
            return
        stored = self.read_stored()
        own = {type(member).__name__: type(member) for _, member in configs.members_of(config)}
        try:
            configs.from_json(stored, own=own)
        except configs.UnknownClassError:
            pass  # a member is another one now, and may be, as the differences say
        except ConfigError as error:
            raise RunDirectoryError(f"{str(self.config)!r}: {error}") from None
        different = run_differences(stored, configs.to_json(config), config)
        if different:
            raise RunDirectoryError(
                f"workdir {str(self.path)!r} belongs to a run with another config"
                f" ({_as_sentence(different)}); give another --workdir or the same values"
            )
        self._check_length(stored, config)
        self._compare_with_manifests(stored, config, _BELONGS)
        self._check_source(stored, config)

    def _check_length(self, stored: dict[str, Any], config: Config) -> None:
        """Raises RunDirectoryError unless the steps that are done would have been the same."""
        before, now = configs.flat(stored).get("train.steps"), config.train.steps
        if before == now or not isinstance(before, int):
            return
        last = max([0, *manifest.step_folders(self.checkpoints)])
        if now < last:
            raise RunDirectoryError(
                f"train.steps is {now}, and {str(self.path)!r} has done {last} steps; it can be"
                " extended, not shortened"
            )
        done = np.arange(last, dtype=np.int32)
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats by steps
            then, here = (
                np.asarray(jax.vmap(configs.make_learning_rate(config.optimizer, steps))(done))
                for steps in (before, now)
            )
        if not np.array_equal(then, here):
            first = int(np.argmax(then != here)) + 1
            decay = type(config.optimizer.decay).__name__
            raise RunDirectoryError(
                f"train.steps was {before} and is {now}, with which the learning rate of {decay}"
                f" would have been another from step {first} on, and {last} steps are done; begin a"
                f" run of its own, with --init-from {self.path}"
            )

    def _is_of_claim(self, item: Path, config: Config) -> bool:
        """Whether a file is what a claim leaves that is killed before config.json is there."""
        if item.name == self.config_copy.name:
            source = configs.source_of(config)
            return source is not None and item.read_bytes() == source.content
        whole = (self.config.name, self.config_copy.name)
        partial = any(item.name == name + PARTIAL or is_partial(item.name, name) for name in whole)
        return item.name == "lock" or partial

    def _check_source(self, stored: dict[str, Any], config: Config) -> None:
        """Raises RunDirectoryError if the config file defines other members than when it began."""
        source, before = configs.source_of(config), stored.get("source")
        if source is None or not isinstance(before, dict) or before["sha256"] == source.sha256:
            return
        copy = self.config_copy.read_bytes() if self.config_copy.is_file() else b""
        if not configs.same_definitions(copy, source.content):
            raise RunDirectoryError(
                f"{source.name} has changed since the run {str(self.path)!r} began, and members of"
                f" its config are defined in it; `ddpm-jax train {self.config_copy}` goes on with"
                " the run's copy, and another --workdir begins a run of the new file"
            )


def run_differences(
    first: Mapping[str, Any], second: Mapping[str, Any], config: Config
) -> list[Difference]:
    """The fields that make two stored configs those of two runs; see `config.differences`."""
    return [
        change
        for change in configs.differences(first, second, config)
        if change.affects in _BELONGS
    ]


def _as_sentence(differences: list[Difference]) -> str:
    return "; ".join(
        f"{change.field} was {change.first} and is {change.second}" for change in differences
    )


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
