"""Checkpoints: the train state and the data iterator's state together, saved in the background.

One thin layer over Orbax's CheckpointManager. The older of its two interfaces is used, because
its errors can be read: the new one answers a truncated file with a bare `NoEntryError`. What is
kept is decided by a policy, the latest n or the best n. The older way of asking for the best,
`best_fn` with `max_to_keep`, may delete the newest checkpoint; `best_fn` is given here only
because without it no metric is stored, and the next process would not know the best.
"""

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    LatestN,
)

from ddpm_jax.errors import UserError
from ddpm_jax.training.state import TrainState

__all__ = ["CheckpointError", "Checkpoints", "Restored"]

_ITEMS = ("state", "data")
_COMMITTED = "_CHECKPOINT_METADATA"
_METRIC = "held_out_loss"


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another network."""


class Restored(NamedTuple):
    """What `Checkpoints.restore` found."""

    step: int
    state: TrainState
    data_state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, one folder for each saved step.

    Args:
        directory: created if it is missing, unless `read_only`.
        keep_latest: how many of the newest to keep, at least 1.
        keep_best: how many of those with the lowest held-out loss to keep besides.
        read_only: for sampling and evaluation, perhaps beside a running training.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep_latest: int = 2,
        keep_best: int = 1,
        read_only: bool = False,
    ) -> None:
        self.directory = Path(directory).absolute()
        if not read_only:
            self._move_incomplete_aside()
        best = BestN(
            get_metric_fn=_held_out_loss,
            reverse=True,
            n=keep_best,
            keep_checkpoints_without_metrics=False,
        )
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy([LatestN(n=keep_latest), best]),
                best_fn=_held_out_loss,
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
                enable_async_checkpointing=not read_only,
            ),
            item_names=_ITEMS,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        """Waits for a save that is under way."""
        try:
            self._manager.close()
        except Exception as failure:
            raise CheckpointError(
                f"the last save in {self.directory} failed ({_first_line(failure)})"
            ) from failure

    def save(
        self, step: int, state: TrainState, data_state: dict[str, Any], *, held_out_loss: float
    ) -> None:
        """Saves in the background; the arrays may be donated as soon as this returns.

        Raises:
            CheckpointError: there is a later checkpoint already, or the disk refuses.
        """
        try:
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data_state)
                ),
                metrics={_METRIC: held_out_loss},
            )
        except Exception as error:
            raise CheckpointError(
                f"step {step} cannot be saved in {self.directory} ({_first_line(error)})"
            ) from error
        if not saved:
            raise CheckpointError(
                f"step {step} is not saved: {self.directory} holds steps {self.steps()}"
            )

    def steps(self) -> list[int]:
        """Steps whose checkpoints are complete, rising. A folder without its commit mark is not."""
        return sorted(int(folder.name) for folder in self._folders() if _is_complete(folder))

    def _check_arrays(self, step: int, like: TrainState) -> None:
        """Orbax would say that the structures differ, but not where."""
        with ocp.StandardCheckpointer() as checkpointer:
            described = checkpointer.metadata(self.directory / str(step) / _ITEMS[0]).item_metadata
        if described is None:
            raise ValueError("what describes its arrays is damaged")
        stored = _shapes(described.tree)
        wanted = _shapes(jax.tree.map(_without_key_type, like))
        for name in sorted(stored.keys() | wanted.keys()):
            if stored.get(name) != wanted.get(name):
                raise CheckpointError(
                    f"the checkpoint {self.directory / str(step)} is of another network or"
                    f" optimizer: {name} is {stored.get(name, 'absent')} there and"
                    f" {wanted.get(name, 'absent')} here"
                )

    def _folders(self) -> list[Path]:
        if not self.directory.is_dir():
            return []
        return [folder for folder in self.directory.iterdir() if folder.name.isdigit()]

    def _move_incomplete_aside(self) -> None:
        """Orbax takes such a folder for the latest step, and silently skips all saves before it."""
        for folder in self._folders():
            if not _is_complete(folder):
                folder.rename(folder.with_name(f"{folder.name}.incomplete-{time.time_ns()}"))

    def restore(self, like: TrainState, step: int | None = None) -> Restored | None:
        """The checkpoint of `step`, or the newest complete one; None if there is none yet.

        Args:
            like: a state, or its shapes with shardings; what is restored is laid out like it.
            step: a step of `steps()`.

        Raises:
            CheckpointError: no such step; a file is damaged; or the arrays are not those of
                `like`.
        """
        steps = self.steps()
        if step is None:
            if not steps:
                return None
            step = steps[-1]
        if step not in steps:
            raise CheckpointError(
                f"step {step} has no complete checkpoint in {self.directory}; there are {steps}"
            )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            self._check_arrays(step, like)
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
                ),
            )
        except CheckpointError:
            raise
        except Exception as error:
            others = [other for other in steps if other != step]
            raise CheckpointError(
                f"the checkpoint {self.directory / str(step)} cannot be read"
                f" ({_first_line(error)}); delete that folder to go on from"
                f" {f'step {others[-1]}' if others else 'the start'}"
            ) from error
        return Restored(step, restored.state, restored.data)


def _is_complete(folder: Path) -> bool:
    return all((folder / part).exists() for part in (_COMMITTED, *_ITEMS))


def _shapes(tree: Any) -> dict[str, str]:
    """`params/w -> float32[3, 5]` for each array of a tree."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _without_key_type(leaf: Any) -> Any:
    """A typed key is stored as the numbers that it is made of."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.eval_shape(jax.random.key_data, leaf)
    return leaf


def _held_out_loss(metrics: dict[str, float]) -> float:
    return metrics[_METRIC]


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__
