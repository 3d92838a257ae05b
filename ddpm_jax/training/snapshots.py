"""Snapshots: power-function averages of the parameters at some steps, which are never deleted.

Post-hoc EMA (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion
Models", section 3.2, https://arxiv.org/abs/2312.02696) makes other averages of them after training.
They are saved and verified like checkpoints, see `ddpm_jax.training.manifest`.
"""

import functools
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from ddpm_jax.training import manifest
from ddpm_jax.training.manifest import CheckpointError, DamageError, UnfinishedError, describe
from ddpm_jax.training.saver import Saver, hush_orbax, reason

__all__ = [
    "Snapshot",
    "list_snapshots",
    "load_snapshot",
    "save_snapshot",
    "sigma_rels_of",
    "survey_snapshots",
]

_SIGMA_RELS = "sigma_rels"


class Snapshot(NamedTuple):
    """The snapshot of one step, see `load_snapshot`."""

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
    """Saves the averages of one step.

    An interrupted run passes the same steps again: an existing snapshot with the same arrays and
    widths, its manifest and all its files is not written again. All processes of a run have to call
    this function.

    Args:
        folder: folder of all snapshots of a run; created if it is missing.
        step: number of steps done.
        averages: trees of parameters, float32, one for each width.
        sigma_rels: relative width of each average.
        config: of the run, plain values, for the manifest.
        saver: saves in the background, after its last save; the caller closes it. Without one this
            function returns when the manifest is on the disk.

    Raises:
        ValueError: there is not one width for each average, or an array is not float32.
        SaveError: the disk refuses this snapshot, or the former save of `saver`.
    """
    if not averages or len(averages) != len(sigma_rels):
        raise ValueError(
            f"there are {len(averages)} averages and {len(sigma_rels)} sigma_rels; each average"
            " needs one"
        )
    arrays = describe(averages)
    for name, described in arrays.items():
        if not described.startswith("float32["):
            raise ValueError(f"averages: {name} is {described}; it has to be float32")
    place = Path(folder).absolute() / str(step)
    notes = {_SIGMA_RELS: list(sigma_rels)}
    if _is_there(place, step, arrays=arrays, notes=notes):
        return
    own = Saver("snapshot", tree="averages") if saver is None else saver
    try:
        own.save(
            place,
            ocp.args.Composite(averages=ocp.args.PyTreeSave(averages)),
            step=step,
            arrays=arrays,
            notes=notes,
            config=config,
        )
    finally:
        if saver is None:
            own.close()


def load_snapshot(folder: Path, step: int, like: Any, *, verify: bool = True) -> Snapshot:
    """Reads the snapshot of one step.

    Args:
        folder: folder of all snapshots of a run.
        step: a step of `list_snapshots`.
        like: one tree of parameters, or its shapes with shardings: the layout of each average.
        verify: whether to compare the checksums of the files; sizes are always compared.

    Returns:
        The averages and their widths.

    Raises:
        CheckpointError: the snapshot does not exist, is damaged, or is of another network.
    """
    place = Path(folder).absolute() / str(step)
    if not place.is_dir():
        raise CheckpointError(
            f"step {step} has no snapshot in {folder}; there are"
            f" {sorted(manifest.step_folders(folder))}"
        )
    content = manifest.verify(place, step, contents=verify)
    sigma_rels = sigma_rels_of(place, content)
    in_float32 = functools.partial(ocp.utils.to_shape_dtype_struct, dtype=jnp.float32)
    averages = (jax.tree.map(in_float32, like),) * len(sigma_rels)
    manifest.check_like(place, content.arrays, describe(averages))
    hush_orbax()
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(
                place, args=ocp.args.Composite(averages=ocp.args.StandardRestore(averages))
            )
    except Exception as error:
        raise CheckpointError(f"the snapshot {place} cannot be read ({reason(error)})") from error
    return Snapshot(step, restored.averages, sigma_rels)


def list_snapshots(folder: Path) -> dict[int, tuple[float, ...]]:
    """The snapshots of a run; only manifests are read.

    A snapshot without a manifest is left out: its save was interrupted, or is not finished.

    Args:
        folder: folder of all snapshots of a run.

    Returns:
        The widths of each snapshot by its step, rising.

    Raises:
        CheckpointError: a manifest is damaged. Averages without that snapshot would be different.
    """
    widths = {}
    for step, place in sorted(manifest.step_folders(folder).items()):
        try:
            widths[step] = sigma_rels_of(place, manifest.read(place, step))
        except UnfinishedError:
            continue
    return widths


def survey_snapshots(
    folder: Path, *, verify: bool = True
) -> tuple[dict[int, manifest.Manifest], dict[int, DamageError]]:
    """Verifies all snapshots of a run.

    Args:
        folder: folder of all snapshots of a run; it may be missing.
        verify: whether to compare the checksums of the files; sizes are always compared.

    Returns:
        The manifests of the sound snapshots, and the errors of the others, by step.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    sound, refused = {}, {}
    for step, place in sorted(manifest.step_folders(folder).items()):
        try:
            sound[step] = manifest.verify(place, step, contents=verify)
            sigma_rels_of(place, sound[step])
        except DamageError as error:
            sound.pop(step, None)
            refused[step] = error
    return sound, refused


def sigma_rels_of(place: Path, stored: manifest.Manifest) -> tuple[float, ...]:
    """The relative widths of the averages of a snapshot.

    Args:
        place: folder of the snapshot, for the sentence.
        stored: its manifest.

    Returns:
        A width for each average.

    Raises:
        DamageError: the manifest does not have them.
    """
    widths = stored.notes.get(_SIGMA_RELS)
    if not (
        isinstance(widths, list)
        and widths
        and all(isinstance(width, float) and 0.0 < width < 1.0 for width in widths)
    ):
        raise DamageError(
            f"{place}: {manifest.NAME}: notes[{_SIGMA_RELS!r}] is {reprlib.repr(widths)}; it has"
            " to be a list of widths"
        )
    return tuple(widths)


def _is_there(place: Path, step: int, **values: Any) -> bool:
    """Whether the snapshot is sound and its manifest has these values."""
    try:
        stored = manifest.verify(place, step, contents=False)
    except DamageError:
        return False
    return all(getattr(stored, field) == value for field, value in values.items())
