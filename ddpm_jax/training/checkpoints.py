"""Checkpoints: the train state and the data iterator's state, saved in the background.

Orbax writes and reads the files. This module adds manifests: a checkpoint is sound only if it
agrees with its manifest. `restore` skips damaged checkpoints, reports each in a sentence, and takes
the newest sound one. Older ones are deleted only after the newer one has its manifest. (Orbax's own
manager deletes at its commit, takes an empty folder for the latest step, and returns flipped bits.)
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from ddpm_jax.training import manifest
from ddpm_jax.training.manifest import (
    CheckpointError,
    DamageError,
    UnfinishedError,
    describe,
    step_folders,
)
from ddpm_jax.training.saver import Saver, hush_orbax, move_aside, reason, remove, sweep
from ddpm_jax.training.state import TrainState

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Choice",
    "Restored",
    "newest_manifest",
    "newest_sound",
]

_METRIC = "held_out_loss"


class Choice(NamedTuple):
    """The result of `newest_sound`."""

    step: int | None
    """The step, or None if nothing has been saved yet."""
    refused: dict[int, str]
    """For each later step that is not sound, the reason in a sentence."""


class Restored(NamedTuple):
    """The result of `Checkpoints.restore`."""

    step: int
    """The step of the checkpoint."""
    state: TrainState
    """The state after that step."""
    data_state: dict[str, Any]
    """State of the data iterator."""
    refused: dict[int, str]
    """For each later step that is not sound, the reason in a sentence."""
    notes: dict[str, Any]
    """The notes that were saved with it."""


def newest_sound(directory: Path, *, verify: bool = True) -> Choice:
    """The newest checkpoint that agrees with its manifest; nothing is changed.

    In a run of several processes the first one calls it, and sends the step to the others.

    Args:
        directory: folder of the checkpoints; it may be missing.
        verify: whether to compare the checksums of the files; sizes are always compared.

    Returns:
        The step, and the reasons why later ones are not sound.

    Raises:
        CheckpointError: there are checkpoints, and none is sound.
    """
    refused: dict[int, str] = {}
    unfinished = 0
    folders = step_folders(directory)
    for step in sorted(folders, reverse=True):
        try:
            manifest.verify(folders[step], step, contents=verify)
        except DamageError as error:
            if not folders[step].exists():  # training has deleted it since
                return newest_sound(directory, verify=verify)
            refused[step] = str(error)
            unfinished += isinstance(error, UnfinishedError)
        else:
            return Choice(step, refused)
    # A run that was killed during its first save has only this folder, and loses nothing.
    if refused and not len(refused) == unfinished == 1:
        raise CheckpointError(
            f"no checkpoint in {directory} is sound: {'; '.join(refused.values())}"
        )
    return Choice(None, refused)


class Checkpoints:
    """The checkpoints of one run, one folder for each saved step; a context manager.

    Args:
        directory: folder of the checkpoints; created if it is missing, unless `read_only`.
        keep_latest: number of newest checkpoints to keep, at least 1.
        keep_best: number of checkpoints with the lowest held-out loss to keep beside those.
        read_only: set it for sampling and evaluation, also while a training is running.
        config: of the run, plain values, for the manifests.
        save_timeout: seconds after which a save has failed. If one of several processes cannot
            write its part, the others wait this long for it.

    Raises:
        CheckpointError: `keep_latest` is below 1.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep_latest: int = 2,
        keep_best: int = 1,
        read_only: bool = False,
        config: Mapping[str, Any] | None = None,
        save_timeout: int = 600,
    ) -> None:
        if keep_latest < 1:
            raise CheckpointError(f"keep_latest is {keep_latest}; it has to be at least 1")
        self.directory = Path(directory).absolute()
        self._keep_latest, self._keep_best = keep_latest, keep_best
        self._read_only = read_only
        self._config = json.loads(json.dumps(config or {}))
        self._saver = Saver("checkpoint", tree="state", also=("data",), timeout=save_timeout)
        if not read_only and jax.process_index() == 0:
            sweep(self.directory)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Waits for an unfinished save."""
        try:
            self._saver.close()
        except CheckpointError as failure:
            if error is None:
                raise
            error.add_note(str(failure))

    def save(
        self,
        step: int,
        state: TrainState,
        data_state: dict[str, Any],
        *,
        held_out_loss: float,
        notes: Mapping[str, Any] | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        """Saves in the background; the arrays may be donated as soon as this returns.

        A save is done when its manifest is on the disk; then older checkpoints are deleted. The
        next save, `wait` and the end of the context wait for that.

        Args:
            step: number of steps done.
            state: the state to save.
            data_state: of the data iterator, JSON values.
            held_out_loss: ranks checkpoints for `keep_best`.
            notes: more plain values for the manifest, which `restore` returns.
            report: gets the progress of the save, see `Saver.save`.

        Raises:
            SaveError: the disk refuses this save or has refused the former one, or a checkpoint of
                this or a later step exists. Existing checkpoints stay, and the next save tries
                again, in a new folder if necessary.
        """

        def check() -> None:
            steps = self.steps()
            if steps and steps[-1] >= step:
                raise CheckpointError(f"there are steps {steps} already")

        self._saver.save(
            self.directory / str(step),
            ocp.args.Composite(
                state=ocp.args.PyTreeSave(_plain(state)), data=ocp.args.JsonSave(data_state)
            ),
            step=step,
            arrays=describe(state),
            notes={**(notes or {}), _METRIC: held_out_loss},
            config=self._config,
            check=check,
            then=self._prune,
            report=report,
        )

    def wait(self) -> None:
        """Waits until the last save is done.

        Raises:
            SaveError: the disk has refused it.
        """
        self._saver.wait()

    def steps(self) -> list[int]:
        """The steps whose checkpoints have a manifest; other files are not read.

        Returns:
            The steps, rising.
        """
        return sorted(
            step for step, folder in step_folders(self.directory).items() if _manifest(folder, step)
        )

    def move_aside(self, steps: Iterable[int]) -> None:
        """Renames the folders of damaged checkpoints, so that training can save these steps again.

        Of the folders without a manifest, which are interrupted saves, only the newest is kept. In
        a run of several processes only the first one has to call this.

        Args:
            steps: steps of the damaged checkpoints.

        Raises:
            CheckpointError: a folder cannot be renamed.
        """
        for step in steps:
            folder = self.directory / str(step)
            try:
                move_aside(folder)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise CheckpointError(f"{folder} cannot be moved aside: {reason(error)}") from None
        sweep(self.directory)

    def restore(
        self, like: TrainState, step: int | None = None, *, verify: bool = True
    ) -> Restored | None:
        """Reads the checkpoint of a step, or the newest sound one.

        Without a step, damaged checkpoints are skipped, and renamed unless `read_only`; show the
        sentences in `refused` to the user. In a run of several processes, the first one calls
        `newest_sound` and `move_aside`; then all restore its step with `verify=False`.

        Args:
            like: a state, or its shapes with shardings: the layout of the restored state.
            step: a step of `steps()`; if it is damaged, no other step is taken.
            verify: whether to compare the checksums of the files; sizes are always compared.

        Returns:
            The checkpoint, or None if nothing has been saved yet.

        Raises:
            CheckpointError: the step does not exist or is damaged, no checkpoint is sound, or the
                arrays are not those of `like`.
        """
        if step is not None:
            if step not in step_folders(self.directory):
                raise CheckpointError(
                    f"step {step} has no checkpoint in {self.directory}; there are {self.steps()}"
                )
            return self._read(step, like, {}, verify=verify)
        while True:
            choice = newest_sound(self.directory, verify=verify)
            restored = None
            if choice.step is not None:
                try:
                    restored = self._read(choice.step, like, choice.refused, verify=False)
                except CheckpointError:
                    if (self.directory / str(choice.step)).exists():
                        raise
                    continue  # training has deleted it since
            if not self._read_only and jax.process_index() == 0:
                self.move_aside(choice.refused)
            return restored

    def _read(
        self, step: int, like: TrainState, refused: dict[int, str], *, verify: bool
    ) -> Restored:
        folder = self.directory / str(step)
        stored = manifest.verify(folder, step, contents=verify)
        manifest.check_like(folder, stored.arrays, describe(like))
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _plain(like))
        hush_orbax()
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
                restored = checkpointer.restore(
                    folder,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
                    ),
                )
        except Exception as error:
            raise CheckpointError(
                f"the checkpoint {folder} cannot be read ({reason(error)});"
                f" there are {self.steps()}"
            ) from error
        if not isinstance(restored.data, dict):
            raise CheckpointError(
                f"the checkpoint {folder} has a data state that is a"
                f" {type(restored.data).__name__}; it has to be an object"
            )
        state = _with_keys(restored.state, like)
        return Restored(step, state, restored.data, refused, stored.notes)

    def _prune(self) -> None:
        """Deletes checkpoints with a manifest, except the newest and the best."""
        try:
            folders = step_folders(self.directory)
        except CheckpointError:
            return  # the next save will raise it
        losses = {
            step: _loss(content)
            for step, folder in folders.items()
            if (content := _manifest(folder, step))
        }
        latest = sorted(losses)[-self._keep_latest :]
        best = sorted(losses, key=lambda step: (losses[step], -step))[: self._keep_best]
        for step in losses.keys() - {*latest, *best}:
            remove(self.directory / str(step))


def newest_manifest(directory: Path) -> manifest.Manifest | None:
    """The manifest of the newest checkpoint that has one; no other file is read.

    Args:
        directory: folder of the checkpoints; it may be missing.

    Returns:
        The manifest, or None.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    folders = sorted(step_folders(directory).items(), reverse=True)
    manifests = (_manifest(folder, step) for step, folder in folders)
    return next(filter(None, manifests), None)


def _loss(stored: manifest.Manifest) -> float:
    """The held-out loss of a checkpoint; infinite if its manifest has none, or NaN."""
    loss = stored.notes.get(_METRIC)
    return loss if isinstance(loss, float) and not math.isnan(loss) else math.inf


def _manifest(folder: Path, step: int) -> manifest.Manifest | None:
    try:
        return manifest.read(folder, step)
    except DamageError:
        return None


def _plain(tree: Any) -> Any:
    """The tree with typed keys as their numbers, which is how they are stored."""

    def plain(leaf: Any) -> Any:
        if not _is_key(leaf):
            return leaf
        if isinstance(leaf, jax.Array):
            return jax.random.key_data(leaf)
        numbers = jax.eval_shape(jax.random.key_data, leaf)
        return jax.ShapeDtypeStruct(numbers.shape, numbers.dtype, sharding=leaf.sharding)

    return jax.tree.map(plain, tree)


def _with_keys(tree: Any, like: Any) -> Any:
    """The inverse of `_plain`."""

    def typed(leaf: Any, like: Any) -> Any:
        if not _is_key(like):
            return leaf
        return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(jnp.empty((), like.dtype)))

    return jax.tree.map(typed, tree, like)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
