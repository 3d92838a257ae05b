"""Imported runs: the weights of other programs, or of a file, as a run directory.

Like each run it has config.json and images.json. The weights are in ema.safetensors, and in
raw.safetensors if there are two sets. imported.json has their origin, and the SHA-256 of each file.
There are no checkpoints, and training does not use the directory.
"""

import contextlib
import dataclasses
import inspect
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from ddpm_jax import config as configs
from ddpm_jax import schedules
from ddpm_jax.config import Config, ConfigError
from ddpm_jax.data import ImageSpec
from ddpm_jax.experiment.data_record import (
    DataRecord,
    plain_record,
    record_from_plain,
    write_data_record,
)
from ddpm_jax.experiment.experiment import Experiment
from ddpm_jax.experiment.run_directory import RunDirectory, RunDirectoryError
from ddpm_jax.experiment.weight_files import (
    WeightFile,
    check_weight_file,
    open_weight_file,
    read_params,
    write_weight_file,
)
from ddpm_jax.files import read_json, whole_folder, write_json
from ddpm_jax.weights import LazyArray, Recipe, Weights, WeightsError
from ddpm_jax.weights.weights import expected_shapes, match_arrays

__all__ = [
    "check_new_run",
    "check_params_name",
    "config_of",
    "imported_files",
    "read_imported",
    "recipe_of",
    "write_imported_run",
    "write_run_of_file",
]

_LEVELS = 256
_OTHER_NAMES = {"constant": "constant_beta", "unipc": "uni_pc"}
"""Functions whose members have other names."""
_NO_THRESHOLD = "no_threshold"
"""Name of the member for no threshold."""


def config_of(weights: Weights, workdir: str | os.PathLike[str]) -> Config:
    """The config with which the weights were trained, as far as it is known.

    Raises:
        WeightsError: no member of a config makes the network, the schedule or the sampler.
    """
    default = Config()
    network = _network_of(weights)
    learned = weights.variance == "learned_range"
    hides_labels = weights.classes is not None and getattr(network, "null_class", True)
    config = Config(
        data=_of(configs.Data, "in_memory", name=_name_of(weights)),
        schedule=_member(configs.Schedule, weights.chain),
        network=network,
        objective=_of(configs.Objective, "hybrid") if learned else default.objective,
        sampler=_sampler_of(weights.sampler),
        train=dataclasses.replace(
            default.train, label_dropout=default.train.label_dropout if hides_labels else 0.0
        ),
        workdir=str(workdir),
    )
    return configs.validate(config)


def write_imported_run(
    weights: Weights,
    workdir: str | os.PathLike[str],
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Makes a run directory of somebody else's weights, all of it or nothing.

    Args:
        weights: as a reader of `ddpm_jax.weights` returns them; read parameter by parameter.
        workdir: a new or an empty folder.
        report: gets a line for each file of weights.

    Raises:
        UserError: the folder holds something, or the disk refuses; a network, a schedule or a
            sampler that no config has.
    """
    check_new_run(workdir)
    config = config_of(weights, workdir)
    shapes = expected_shapes(weights.network, weights.image_shape)
    arrays = {name: match_arrays(shapes, own, ()) for name, own in weights.arrays.items()}
    record = DataRecord(_spec_of(weights))
    source = json.loads(json.dumps(weights.source))
    step = source.get("step")
    step = step if type(step) is int else 0
    with _new_run(workdir) as run:
        _fill(run, config, record, arrays, step=step, source=source, report=report)


def write_run_of_file(
    path: Path,
    workdir: str | os.PathLike[str],
    *,
    raw: Path | None = None,
    config_file: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Makes a run directory of what `ddpm-jax weights export --format safetensors` has written.

    Args:
        path: the file.
        workdir: a new or an empty folder.
        raw: another such file, of the parameters of the last step.
        config_file: the config file that defines members of the config, if there are such. It is
            executed.
        report: gets a line for each file of weights.

    Raises:
        UserError: a file that is damaged or of another program, or `raw` is of another network; the
            folder holds something; the disk refuses.
    """
    check_new_run(workdir)
    files = {"ema": open_weight_file(path)}
    if raw is not None:
        files["raw"] = open_weight_file(raw)
        _check_same_network(files["ema"], files["raw"])
    for file in files.values():
        check_weight_file(file)
    ema = files["ema"]
    try:
        config = configs.from_json(ema.config, copy=config_file, report=report)
    except ConfigError as error:
        more = "" if config_file or not ema.config.get("source") else "; give it with --config-file"
        raise WeightsError(f"{path}: {error}{more}") from None
    config = dataclasses.replace(config, workdir=str(workdir))
    record = record_from_plain(ema.images, f"images in the metadata of {path}")
    source = ema.source or {"kind": "ddpm_jax", "file": path.name, "sha256": ema.sha256}
    arrays = {name: file.arrays for name, file in files.items()}
    with _new_run(workdir) as run:
        _fill(run, config, record, arrays, step=ema.step, source=source, report=report)


def imported_files(run: RunDirectory) -> dict[str, WeightFile]:
    """The files of weights of an imported run, "ema" first; none of another run.

    Raises:
        UserError: one is missing, damaged, or not the one that was imported.
    """
    if not run.imported.exists():
        return {}
    stated = read_json(run.imported).get("files")
    if not isinstance(stated, dict) or not {"ema"} <= {*stated} <= {"ema", "raw"}:
        raise RunDirectoryError(f"{str(run.imported)!r} names no files; import the weights again")
    files = {name: open_weight_file(run.weights / f"{name}.safetensors") for name in stated}
    for name, file in files.items():
        if not isinstance(stated[name], dict) or stated[name].get("sha256") != file.sha256:
            raise WeightsError(
                f"{file.path} is not the file that was imported: its SHA-256 differs from that in"
                f" {run.imported}"
            )
    return files


def read_imported(
    files: Mapping[str, WeightFile], experiment: Experiment, name: str | None = None
) -> dict[str, Any]:
    """The parameters of an imported run, or those of one name, on the experiment's devices.

    Raises:
        UserError: no parameters of this name; a file that is damaged or of another network.
    """
    if name is not None:
        check_params_name(files, name)
    verify, like = experiment.config.train.verify_checkpoints, experiment.abstract_state.params
    return {
        own: read_params(file, like, verify=verify)
        for own, file in files.items()
        if name in (own, None)
    }


def check_params_name(files: Mapping[str, WeightFile], name: str) -> None:
    """Raises RunDirectoryError unless the imported run has parameters of this name."""
    if name not in files:
        raise RunDirectoryError(
            f"the imported run {str(files['ema'].path.parent.parent)!r} has no parameters {name!r};"
            f" it has {' and '.join(map(repr, files))}"
        )


def recipe_of(member: configs.Member) -> Recipe | None:
    """The function of this library that a schedule, a sampler or a threshold stands for.

    None for no threshold, for a schedule that is shifted or bent, and for members of the user's.
    """
    kind = type(member)
    name = configs.member_name(kind).replace("-", "_")
    if name == _NO_THRESHOLD or not kind.__module__.startswith("ddpm_jax."):
        return None
    own = {member: function for function, member in _OTHER_NAMES.items()}
    name = own.get(name, name)
    values = {field.name: getattr(member, field.name) for field in dataclasses.fields(kind)}
    if isinstance(member, configs.Schedule):
        if member.zero_terminal_snr or member.shift_resolution is not None:
            return None
        taken = inspect.signature(getattr(schedules, name)).parameters
        values = {key: value for key, value in values.items() if key in taken}
    if isinstance(member, configs.Sampler):
        values = {key: value for key, value in values.items() if "guidance" not in key}
        values["threshold"] = recipe_of(member.threshold)
    return Recipe(name, values)


def check_new_run(workdir: str | os.PathLike[str]) -> None:
    """Raises RunDirectoryError unless `workdir` is an empty folder or not there."""
    path = Path(workdir)
    if path.exists() and not path.is_dir():
        raise RunDirectoryError(f"workdir {str(path)!r} is a file, not a directory")
    if path.is_dir() and any(path.iterdir()):
        raise RunDirectoryError(
            f"workdir {str(path)!r} is not empty; an import needs a new or an empty directory"
        )


@contextlib.contextmanager
def _new_run(workdir: str | os.PathLike[str]) -> Iterator[RunDirectory]:
    """A run directory to fill, all of it or nothing; a disk that refuses is a sentence."""
    try:
        with whole_folder(Path(workdir)) as folder:
            yield RunDirectory(folder)
    except OSError as error:
        raise RunDirectoryError(
            f"workdir {str(workdir)!r} cannot be written ({error.strerror}); nothing was written"
        ) from None


def _fill(
    run: RunDirectory,
    config: Config,
    record: DataRecord,
    arrays: Mapping[str, Mapping[str, LazyArray]],
    *,
    step: int,
    source: dict[str, Any],
    report: Callable[[str], None],
) -> None:
    """All files of an imported run."""
    run.make(config)
    write_data_record(run.images, record)
    files = {}
    for name, own in arrays.items():
        path = run.weights / f"{name}.safetensors"
        sha256 = write_weight_file(path, own, config, plain_record(record), step, source)
        files[name] = {"sha256": sha256, "bytes": path.stat().st_size}
        count = sum(math.prod(array.shape) for array in own.values())
        report(f"{name}: {count:,} parameters, {path.stat().st_size:,} bytes")
    write_json(run.imported, {"step": step, "source": source, "files": files})


def _network_of(weights: Weights) -> configs.Network:
    """The member that makes the network: the one of the same name with the same fields."""
    network, name = weights.network, type(weights.network).__name__
    kind = getattr(configs, name, None)
    if not (isinstance(kind, type) and issubclass(kind, configs.Network)):
        raise WeightsError(f"the network is a {name}, which no member of a config makes")
    fields = [field.name for field in dataclasses.fields(kind)]
    values = {name: _field(network, name) for name in fields if hasattr(network, name)}
    values |= {"predicts": weights.predicts, "variance": weights.variance}
    values["classes"] = getattr(network, "num_classes", 0)
    member: configs.Network = kind(**values)
    made = member.make(_spec_of(weights))
    other = [
        field.name
        for field in dataclasses.fields(network)
        if field.name not in ("parent", "name")
        and _field(made, field.name) != _field(network, field.name)
    ]
    if other:
        raise WeightsError(f"config.{name} makes no {name} with this {' and '.join(other)}")
    return member


def _field(network: nn.Module, name: str) -> Any:
    """A field of a network as a config has it."""
    value = getattr(network, name)
    if isinstance(value, list):
        return tuple(value)
    return np.dtype(value).name if name == "dtype" else value


def _sampler_of(recipe: Recipe) -> Any:
    """The member, with a member for its threshold, which may be None."""
    values = dict(recipe.arguments)
    if "threshold" in values:
        threshold = values["threshold"] or Recipe(_NO_THRESHOLD, {})
        values["threshold"] = _member(configs.Threshold, threshold)
    return _member(configs.Sampler, Recipe(recipe.name, values))


def _member(family: type[configs.Member], recipe: Recipe) -> Any:
    """The member that stands for a function of this library."""
    try:
        kind = configs.find_member(family, _OTHER_NAMES.get(recipe.name, recipe.name), "it")
    except ConfigError as error:
        name = family.__name__.lower()
        raise WeightsError(f"the weights need a {name} that no config has: {error}") from None
    known = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(recipe.arguments.keys() - known):
        raise WeightsError(
            f"the weights want {recipe.name} with {' and '.join(unknown)}, which"
            f" config.{kind.__name__} does not have"
        )
    return kind(**recipe.arguments)


def _of(family: type[configs.Member], name: str, /, **values: Any) -> Any:
    """A built-in member."""
    return configs.find_member(family, name, name)(**values)


def _name_of(weights: Weights) -> str:
    """What the images are called: after the file or the name that the weights have."""
    name = weights.source.get("name") or Path(str(weights.source.get("path", ""))).name
    return str(name) or "imported"


def _spec_of(weights: Weights) -> ImageSpec:
    classes = weights.classes
    return ImageSpec(
        name=_name_of(weights),
        shape=weights.image_shape,
        levels=_LEVELS,
        classes=classes,
        class_counts=None if classes is None else (1,) * len(classes),
    )


def _check_same_network(ema: WeightFile, raw: WeightFile) -> None:
    shapes = [{name: array.shape for name, array in file.arrays.items()} for file in (ema, raw)]
    if shapes[0] != shapes[1] or ema.step != raw.step:
        raise WeightsError(
            f"{raw.path} holds parameters of another network or step than {ema.path}"
        )
