"""Parameters averaged with a width that is chosen after training: post-hoc EMA.

An average uses all snapshots that the run should have, or names those that are missing: without one
of them it would be another model.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax import config as configs
from ddpm_jax import training
from ddpm_jax.config import Config
from ddpm_jax.experiment.experiment import Experiment
from ddpm_jax.experiment.run_directory import RunDirectory, RunDirectoryError, run_differences
from ddpm_jax.training import ema
from ddpm_jax.training.manifest import Manifest, UnfinishedError

__all__ = ["MISSED_SNAPSHOTS", "missed_snapshots", "post_hoc_params"]

MISSED_SNAPSHOTS = "missed_snapshots"
"""The note of a checkpoint that lists the steps whose snapshots could not be saved."""
_NAMED = 3
"""Number of bad snapshots that a sentence names."""


class _Snapshots(NamedTuple):
    """The snapshots of which an average is made."""

    widths: dict[int, tuple[float, ...]]
    """Widths of the averages in each snapshot, by its step, rising."""
    sentences: list[str]
    """Sentences for the user."""


def post_hoc_params(
    experiment: Experiment,
    run: RunDirectory,
    sigma_rel: float,
    *,
    verify: bool = True,
    skip_missing: bool = False,
    report: Callable[[str], None] = warnings.warn,
) -> tuple[Any, int]:
    """The post-hoc average of a run's parameters, of any width, at its last snapshot.

    It is a weighted sum of all snapshots, which are read one after the other (see
    `ddpm_jax.training.ema`).

    Args:
        experiment: of the run.
        run: its directory.
        sigma_rel: relative width of the average, in (0, 0.2886].
        verify: whether to compare the checksums of the files; sizes are always compared.
        skip_missing: use the sound snapshots only.
        report: gets a line for each snapshot that is not used: it could not be saved in training,
            is not finished, or is skipped.

    Returns:
        The average, as variables of the network, and the step of the last snapshot.

    Raises:
        UserError: there are no snapshots; one is missing, damaged, or of another run; or no average
            has this width.
    """
    try:
        gamma = ema.gamma_of(sigma_rel)
    except ValueError as error:
        raise RunDirectoryError(str(error)) from None
    stored, sentences = _find_snapshots(
        experiment.config, run, verify=verify, skip_missing=skip_missing
    )
    for sentence in sentences:
        report(sentence)
    profiles = [(step, ema.gamma_of(width)) for step, widths in stored.items() for width in widths]
    times, gammas = np.array(profiles, np.float64).T
    last = max(stored)
    weights = ema.post_hoc_weights(times, gammas, time=float(last), gamma=gamma)
    like = experiment.abstract_state.params
    snapshots = (
        average
        for step in stored
        for average in training.load_snapshot(run.snapshots, step, like, verify=False).averages
    )
    return ema.reconstruct(snapshots, weights), last


def missed_snapshots(notes: dict[str, Any]) -> set[int]:
    """The steps whose snapshots could not be saved, from a checkpoint's notes."""
    steps = notes.get(MISSED_SNAPSHOTS)
    return {step for step in steps if type(step) is int} if isinstance(steps, list) else set()


def _find_snapshots(
    config: Config, run: RunDirectory, *, verify: bool, skip_missing: bool
) -> _Snapshots:
    """The snapshots that the run should have up to its newest checkpoint or snapshot.

    Raises:
        RunDirectoryError: there are none, or some are missing.
    """
    last, promise = config.train.steps, config.averages.snapshots
    every = last if promise is None else promise.every
    # In this order: training may be running, and saves a step's snapshot before its checkpoint.
    finished = run.results.is_file()
    checkpoint = training.newest_manifest(run.checkpoints)
    sound, refused = training.survey_snapshots(run.snapshots, verify=verify)
    if not (sound or refused) and promise is None:
        raise RunDirectoryError(
            f"{str(run.path)!r} has no snapshots for an average; train with --averages post-hoc-ema"
            " to store them"
        )
    ends = {last, *run.past_values("train.steps")}
    widths, bad, sentences = {}, {}, []
    for step, stored in sound.items():
        folder = run.snapshots / str(step)
        own = training.sigma_rels_of(folder, stored)
        if why := _not_of_this_run(stored, own, config, ends):
            bad[step] = f"{folder}: {why}"
        else:
            widths[step] = own
    newest = max([0, *widths, checkpoint.step if checkpoint else 0])
    if finished:
        newest = last
    promised = {*range(every, newest + 1, every)} | ({last} if newest >= last else set())
    missed = (missed_snapshots(checkpoint.notes) if checkpoint else set()) - widths.keys()
    for step, error in refused.items():
        if isinstance(error, UnfinishedError) and (step > newest or step in missed):
            sentences.append(f"{error}; the average is without it")
        else:
            bad[step] = str(error)
    missing = sorted(promised - widths.keys() - missed)
    for step in missing:
        bad.setdefault(step, f"{run.snapshots / str(step)}: it is missing")
    if missed:
        sentences.append(
            f"the snapshots of steps {_few(sorted(missed))} could not be saved during training; the"
            " average is without them"
        )
    if bad:
        sentence = (
            f"the snapshots of {str(run.path)!r} are not those that averages.every {every}"
            f" promises up to step {newest}: {_few([bad[step] for step in sorted(bad)], '; ')}"
        )
        if missing:
            sentence += f"; without them there is none of steps {_few(missing)}"
        if not (skip_missing and widths):
            raise RunDirectoryError(
                f"{sentence}; restore them, or make the average of the others with"
                " --skip-missing-snapshots"
            )
        sentences.append(f"{sentence}; the average is without them")
    if not widths:
        raise RunDirectoryError(
            f"{str(run.path)!r} has no snapshot yet; the first comes at step {min(every, last)}"
        )
    return _Snapshots(widths, sentences)


def _not_of_this_run(
    stored: Manifest, widths: tuple[float, ...], config: Config, ends: set[int]
) -> str:
    """Why a snapshot cannot come from the run with this config; nothing if it can."""
    promise, steps = config.averages.snapshots, config.train.steps
    if promise is None or widths != promise.widths:
        return f"its widths are {widths}, and those of the run are {promise and promise.widths}"
    if stored.step not in ends and (stored.step > steps or stored.step % promise.every):
        return f"the run keeps none of step {stored.step}"
    if "format" not in stored.config:
        return "the config in its manifest cannot be compared (it has no format)"
    different = run_differences(stored.config, configs.to_json(config), config)
    return "".join(
        f"it is of another run: {change.field} is {change.first} there and {change.second} in"
        " config.json"
        for change in different[:1]
    )


def _few(items: list[Any], separator: str = ", ") -> str:
    """The first of them, and how many there are more."""
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return separator.join(map(str, items[:_NAMED])) + more
