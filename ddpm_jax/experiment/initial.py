"""Parameters of another run that a new one begins with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from ddpm_jax.errors import UserError
from ddpm_jax.experiment.cache import params_sha256
from ddpm_jax.experiment.experiment import Experiment
from ddpm_jax.experiment.run import load_run
from ddpm_jax.experiment.run_directory import RunDirectory
from ddpm_jax.files import read_json
from ddpm_jax.training.manifest import step_folders

__all__ = ["InitialParams", "read_initial_params"]

_MOST_LISTED = 10
"""A sentence lists at most so many parameters."""


class InitialParams(NamedTuple):
    """What a run begins with, and what it records of it."""

    params: Any
    record: dict[str, Any]


def read_initial_params(
    experiment: Experiment, run: RunDirectory, report: Callable[[str], None]
) -> InitialParams | None:
    """The parameters that `config.init_from` names; None without it, or if there is a checkpoint.

    Args:
        experiment: of the new run.
        run: its directory.
        report: gets a line that names the parameters.

    Raises:
        UserError: there is no such run, its parameters have other names or shapes, or they have
            changed since this run started.
    """
    config = experiment.config
    if config.init_from is None or step_folders(run.checkpoints):
        return None
    source = load_run(
        config.init_from,
        params=config.init_params,
        devices=list(experiment.mesh.devices.flat),
        report=report,
    )
    _check_shapes(source.params, experiment.abstract_state.params, config.init_from)
    record = {
        "run": str(source.path),
        "step": source.step,
        "params": config.init_params,
        "sha256": params_sha256(source.params),
    }
    if run.initial.exists() and read_json(run.initial).get("sha256") != record["sha256"]:
        raise UserError(
            f"{str(run.path)!r} started from other parameters of {str(source.path)!r} than it has"
            f" now (step {read_json(run.initial).get('step')} then, {source.step} now); choose"
            " another --workdir"
        )
    what = {"ema": "moving average", "raw": "last parameters"}.get(
        str(config.init_params), f"post-hoc average of width {config.init_params}"
    )
    report(f"starting from the {what} of {source.path} at step {source.step}")
    return InitialParams(source.params, record)


def _check_shapes(params: Any, wanted: Any, run: str) -> None:
    here, there = (
        {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (wanted, params))
    )
    different = [
        f"{name} {_shape(there.get(name))} there and {_shape(here.get(name))} here"
        for name in {**here, **there}
        if here.get(name) != there.get(name)
    ]
    if different:
        more = len(different) - _MOST_LISTED
        listed = "; ".join(different[:_MOST_LISTED]) + (f"; and {more} more" if more > 0 else "")
        raise UserError(f"the parameters of {run!r} do not fit this network: {listed}")


def _shape(shape: tuple[int, ...] | None) -> str:
    return "is absent" if shape is None else f"is {[*shape]}"
