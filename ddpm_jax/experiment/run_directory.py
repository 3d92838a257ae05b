"""The directory of a run: its files, its owner, and the lock that lets only one process train."""

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
    write_json,
)
from ddpm_jax.training import manifest
from ddpm_jax.weights import WeightsError

__all__ = ["ResultsError", "RunDirectory", "RunDirectoryError", "run_differences"]


_BELONGS = {Affects.MODEL, Affects.TRAINING}
"""Kinds of fields that a run cannot change, because its checkpoints were trained with them."""


class RunDirectoryError(UserError):
    """A run directory cannot be used in this way."""


class ResultsError(UserError):
    """The file results.json has been damaged or altered."""


class RunDirectory:
    """The files of a run, as attributes.

    ::

        config.json           the config with which the run was started last
        config.py             a copy of the config file, if it defines members of the config
        config_history.jsonl  changes of the config, and their steps
        images.json           record of the data set, see `ddpm_jax.experiment.data_record`
        initial.json          run and parameters that it started from, if it has `init_from`
        imported.json         origin of its weights, if they were imported
        weights/              imported weights; such a run has no checkpoints
        metrics.jsonl         one line for each log; interruptions do not change its bytes
        results.json          the final evaluation; it exists if the run is finished
        checkpoints/          one folder for each saved step, each with a manifest
        snapshots/            averages for post-hoc EMA, one folder for each step
        pictures/             sample grids and denoising strips
        tensorboard/          the same curves and pictures as events, and the speed
        wandb/, mlflow/       files of these loggers: the id of the run, what they print
        evaluation/           results of `ddpm-jax evaluate`, one folder for each step

    Args:
        path: the directory; it need not exist.
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

    def evaluation_of(self, step: int) -> Path:
        """The folder for the evaluation of the parameters of a step.

        Args:
            step: number of the step.

        Returns:
            Its path.
        """
        return self.evaluation / f"step_{step:07d}"

    def read_stored(self) -> dict[str, Any]:
        """The content of config.json; no code is executed.

        Returns:
            Plain values, see `config.to_json`.

        Raises:
            RunDirectoryError: there is no run here, or the file is not JSON.
        """
        if not self.config.exists():
            raise RunDirectoryError(
                f"{str(self.path)!r} is not a run directory: it has no config.json"
                " (ddpm-jax train makes one)"
            )
        return read_json(self.config)

    def read_config(
        self, *, for_training: bool = False, report: Callable[[str], None] = lambda line: None
    ) -> Config:
        """The config of the run, with which its checkpoints were trained.

        If the run's config.py defines members of it, that file is executed. The manifests of
        checkpoints and snapshots also contain the config. They have to agree with it in all fields
        that decide what the parameters mean; other fields may have been changed.

        Args:
            for_training: whether the fields that decide the result of training have to agree, too.
            report: gets a line before config.py is executed, and for each field that is absent.

        Returns:
            The config.

        Raises:
            RunDirectoryError: there is no run here, its config cannot be read, or a checkpoint was
                trained with another config.
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
                        " of ddpm_jax does not have; use the version that trained it"
                    )
                if change.affects in kinds:
                    raise RunDirectoryError(
                        f"{str(self.config)!r} has {field} {configs.shown(change.second)}, and"
                        f" {place} was trained with {before}; write that into config.json"
                        " again, or begin a new run in another directory"
                    )

    def _trained_configs(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The configs stored with parameters; damaged ones are reported by a restore."""
        for folder in (self.checkpoints, self.snapshots):
            for step, place in manifest.step_folders(folder).items():
                with contextlib.suppress(manifest.DamageError):
                    if trained := manifest.read(place, step).config:
                        yield place, trained
        for place in sorted(self.weights.glob("*.safetensors")):
            with contextlib.suppress(WeightsError):
                yield place, open_weight_file(place).config

    def update_config(self, config: Config, step: int) -> str:
        """Stores a config that differs from the stored one; call `check_owner` before.

        Args:
            config: the new config.
            step: number of steps done.

        Returns:
            The changes in a sentence, or "" if there are none.
        """
        stored, now = self.read_stored(), configs.to_json(config)
        if stored == now:
            return ""
        # The address of the coordinator may differ each time.
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
        """Writes the copy of the config file, if it defines members, and config.json."""
        source = configs.source_of(config)
        if source is not None:
            with whole_file(self.config_copy) as file:
                file.write(source.content)
        write_json(self.config, configs.to_json(config))

    def past_values(self, field: str) -> list[Any]:
        """Former values of a field of the config.

        Args:
            field: dotted name of the field.

        Returns:
            The values, the oldest first.
        """
        if not self.config_history.is_file():
            return []
        values = []
        for line in self.config_history.read_bytes().splitlines():
            # A damaged or truncated line is ignored.
            with contextlib.suppress(JsonFileError, KeyError, TypeError, IndexError):
                values.append(parse_json(line, "line")["changes"][field][0])
        return values

    def read_metrics(self, until: int | None = None) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl.

        A kill may have truncated the last line, and lines after `until` will be written again:
        damage to these is ignored.

        Args:
            until: last step to read; None for all.

        Returns:
            The lines as dictionaries.

        Raises:
            RunDirectoryError: another line is damaged.
        """
        name = repr(str(self.metrics))
        if not self.metrics.exists():
            return []
        if not self.metrics.is_file():
            raise RunDirectoryError(f"{name} is not a file; move it away to continue without it")
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
            f"{str(self.metrics)!r} is damaged: {what}; repair or delete this line, or delete the"
            " file to continue without its content"
        )

    def read_results(self) -> dict[str, Any] | None:
        """The final evaluation.

        Returns:
            The results by name, or None if the run is not finished.

        Raises:
            ResultsError: the file has been damaged or altered.
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
                f"{str(self.results)!r} has been altered: its SHA-256 differs; {remedy}"
            )
        if type(values.get("step")) is not int:
            raise ResultsError(f"{str(self.results)!r} has no step; {remedy}")
        return values

    def set_results_aside(self, step: int) -> None:
        """Renames the results of a run that is extended, so that it counts as unfinished.

        Args:
            step: the step of these results.
        """
        if self.results.exists():
            self.results.rename(self.path / f"results_{step:07d}.json")

    def write_results(self, results: dict[str, Any]) -> None:
        """Writes the final evaluation, which marks the run as finished.

        Args:
            results: values by name, which JSON can hold.
        """
        write_json(self.results, {**results, "sha256": json_digest(results)})

    @contextlib.contextmanager
    def claim(self, config: Config) -> Iterator[None]:
        """A context in which only this process may train in the directory.

        Args:
            config: of the run.

        Yields:
            None.

        Raises:
            RunDirectoryError: the directory belongs to another config, is not a directory, contains
                other files, or another process trains in it.
        """
        self.check_owner(config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirectoryError(
                f"workdir {str(self.path)!r} cannot be created: {error}"
            ) from None
        # The kernel releases the lock when the process ends, however it ends.
        with (self.path / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunDirectoryError(
                    f"another process is training in {str(self.path)!r}; wait for it, or choose"
                    " another --workdir"
                ) from None
            self.make(config)
            yield

    def make(self, config: Config) -> None:
        """Writes the config, unless it exists.

        Args:
            config: of the run.
        """
        source = configs.source_of(config)
        if not self.config.exists() or (source is not None and not self.config_copy.exists()):
            self._write_config(config)

    def check_owner(self, config: Config) -> None:
        """Checks that the directory is free, or belongs to a config.

        Args:
            config: of the run.

        Raises:
            RunDirectoryError: it belongs to another config, or contains other files.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunDirectoryError(f"workdir {str(self.path)!r} is a file, not a directory")
        if self.imported.exists():
            raise RunDirectoryError(
                f"workdir {str(self.path)!r} has imported weights without the optimizer's state, so"
                f" training cannot continue; to start a new run from them, give --init-from"
                f" {self.path} and another --workdir"
            )
        if not self.config.exists():
            # A claim that was killed may have left files.
            others = sorted(
                item.name for item in self.path.glob("*") if not self._is_of_claim(item, config)
            )
            if others:
                raise RunDirectoryError(
                    f"workdir {str(self.path)!r} contains other files ({', '.join(others[:3])});"
                    " choose an empty or a new directory"
                )
            return
        stored = self.read_stored()
        own = {type(member).__name__: type(member) for _, member in configs.members_of(config)}
        try:
            configs.from_json(stored, own=own)
        except configs.UnknownClassError:
            pass  # another member may be allowed: the differences decide
        except ConfigError as error:
            raise RunDirectoryError(f"{str(self.config)!r}: {error}") from None
        different = run_differences(stored, configs.to_json(config), config)
        if different:
            raise RunDirectoryError(
                f"workdir {str(self.path)!r} belongs to a run with another config"
                f" ({_as_sentence(different)}); choose another --workdir or the same values"
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
                f"train.steps is {now}, and {str(self.path)!r} has done {last} steps; a run can be"
                " extended, but not shortened"
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
                f"train.steps was {before} and is {now}; this would have changed the learning rate"
                f" of {decay} from step {first} on, and {last} steps are done; begin a new run with"
                f" --init-from {self.path} and another --workdir"
            )

    def _is_of_claim(self, item: Path, config: Config) -> bool:
        """Whether a claim that was killed before it wrote config.json has left this file."""
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
                f"{source.name} has changed since the run {str(self.path)!r} began, and it defines"
                f" members of the config; `ddpm-jax train {self.config_copy}` continues with the"
                " run's copy, and another --workdir begins a run with the new file"
            )


def run_differences(
    first: Mapping[str, Any], second: Mapping[str, Any], config: Config
) -> list[Difference]:
    """The differences of two stored configs that a run may not have; see `config.differences`."""
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
    """One line: a step, and numbers or null.

    Raises:
        JsonFileError: it is something else.
    """
    line = parse_json(text, name)
    step = line.get("step") if isinstance(line, dict) else None
    if type(step) is not int or not 0 < step < 2**31:
        raise JsonFileError(f"{name} has no step from 1 on")
    for metric, value in line.items():
        is_number = type(value) in (int, float) and abs(value) < 1e300
        if value is not None and not is_number:
            raise JsonFileError(
                f"{name} has {configs.shown(metric)} {configs.shown(value)}, which is not a number"
            )
    values: dict[str, Any] = line
    return values
