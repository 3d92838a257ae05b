"""Snapshots: power-function averages of the parameters at some steps, kept for ever.

Post-hoc EMA (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion
Models", section 3.2, https://arxiv.org/abs/2312.02696) makes any other average out of these, after
training. They are saved and verified as checkpoints are, see `ddpm_jax.training.manifest`, but none
is ever deleted.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from ddpm_jax.training import manifest
from ddpm_jax.training.manifest import CheckpointError, DamageError, describe
from ddpm_jax.training.saver import Saver, reason

__all__ = ["Snapshot", "list_snapshots", "load_snapshot", "save_snapshot"]

_SIGMA_RELS = "sigma_rels"


class Snapshot(NamedTuple):
    """What `load_snapshot` found."""

    step: int
    averages: tuple[Any, ...]
    """Trees of parameters, float32."""
    sigma_rels: tuple[float, ...]
    """The width of each average, relative to the steps done."""


def save_snapshot(
    folder: Path,
    step: int,
    averages: tuple[Any, ...],
    sigma_rels: tuple[float, ...],
    *,
    config: Mapping[str, Any] | None = None,
    saver: Saver | None = None,
) -> None:
    """Saves the averages of `step` in a folder of their own below `folder`.

    A run that was interrupted comes by the same steps again: a snapshot that is there already,
    with its manifest and all its files, is left as it is. All processes of a run have to call this.

    Args:
        folder: of all snapshots of a run; made if it is missing.
        step: steps done.
        averages: trees of parameters, float32, one for each width.
        sigma_rels: their widths.
        config: of the run, plain values, for the manifest.
        saver: saves in the background, waiting only for what it saves already; whoever made it
            closes it. Without one this returns when the manifest is on the disk.

    Raises:
        ValueError: not one width for each average, or another type than float32.
        SaveError: the disk refuses; with a `saver` perhaps what it saved before.
    """
    if not averages or len(averages) != len(sigma_rels):
        raise ValueError(f"{len(averages)} averages and {len(sigma_rels)} sigma_rels")
    arrays = describe(averages)
    for name, described in arrays.items():
        if not described.startswith("float32["):
            raise ValueError(f"averages are float32, and {name} is {described}")
    place = Path(folder).absolute() / str(step)
    if _is_there(place, step):
        return
    own = Saver("snapshot", tree="averages") if saver is None else saver
    try:
        own.save(
            place,
            ocp.args.Composite(averages=ocp.args.PyTreeSave(averages)),
            step=step,
            arrays=arrays,
            notes={_SIGMA_RELS: list(sigma_rels)},
            config=config,
        )
    finally:
        if saver is None:
            own.close()


def load_snapshot(folder: Path, step: int, like: Any, *, verify: bool = True) -> Snapshot:
    """The averages of `step`.

    Args:
        folder: of all snapshots of a run.
        step: one of `list_snapshots`.
        like: one tree of parameters, or its shapes with shardings: how each average is laid out.
        verify: whether to hash what is in the files; sizes are compared in any case.

    Raises:
        CheckpointError: there is none; it is damaged; or it is of another network.
    """
    place = Path(folder).absolute() / str(step)
    if not place.is_dir():
        raise CheckpointError(
            f"step {step} has no snapshot in {folder}; there are {sorted(list_snapshots(folder))}"
        )
    found = manifest.verify(place, step, contents=verify)
    sigma_rels = tuple(found.notes[_SIGMA_RELS])
    one = jax.tree.map(_as_float32, like)
    averages = (one,) * len(sigma_rels)
    manifest.check_like(place, found.arrays, describe(averages))
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(
                place, args=ocp.args.Composite(averages=ocp.args.StandardRestore(averages))
            )
    except Exception as error:
        raise CheckpointError(f"the snapshot {place} cannot be read ({reason(error)})") from error
    return Snapshot(step, restored.averages, sigma_rels)


def list_snapshots(folder: Path) -> dict[int, tuple[float, ...]]:
    """The steps that have a snapshot, rising, and the widths in each; only manifests are read."""
    found = {}
    for step, place in manifest.step_folders(folder).items():
        try:
            found[step] = tuple(manifest.read(place, step).notes[_SIGMA_RELS])
        except DamageError:
            continue
    return dict(sorted(found.items()))


def _is_there(place: Path, step: int) -> bool:
    try:
        manifest.verify(place, step, contents=False)
    except DamageError:
        return False
    return True


def _as_float32(leaf: Any) -> jax.ShapeDtypeStruct:
    return ocp.utils.to_shape_dtype_struct(leaf, dtype=jnp.float32)
