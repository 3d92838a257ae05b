"""One save at a time, in the background: Orbax's files, then the manifest, then a callback.

Checkpoints and snapshots use it. Orbax commits a folder by renaming it; a thread waits for that,
hashes the files and writes the manifest, so that the training loop waits for neither. With several
processes the first writes the manifest: Orbax commits after all of them have written their part.
The thread runs no collective of the devices.
"""

import contextlib
import errno
import functools
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from ddpm_jax.training import manifest
from ddpm_jax.training.manifest import CheckpointError

__all__ = ["SaveError", "Saver", "hush_orbax", "move_aside", "reason", "remove", "sweep"]

_TEMPORARY = ".orbax-checkpoint-tmp"
_DELETED = ".deleted"
_UNSOUND = ".unsound-"
_LEFTOVER = re.compile(
    rf"\d+({re.escape(_TEMPORARY)}(-\d+)?|({re.escape(_UNSOUND)}\d+)?{re.escape(_DELETED)})"
)
"""Names of folders that Orbax is writing, and of folders that are being deleted."""
_MOVED_ASIDE = re.compile(rf"\d+{re.escape(_UNSOUND)}(\d{{19,}})")
"""Names of damaged folders; the number is in nanoseconds since 1970."""
_SHARED_BYTES = 2**20
"""Bytes from which the devices that hold an array each write a part of it."""
_REFUSALS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.ESTALE),
)
"""Errors of disks; Orbax repeats their texts in its own errors."""


class SaveError(CheckpointError):
    """A save failed because of the disk. Training can go on: the next save tries again.

    Args:
        message: the sentence.
        steps: the steps that were not saved, rising: of this save, of the former one, or of both.
            If the step of this save is not among them, it is in progress.
    """

    def __init__(self, message: str, steps: tuple[int, ...]) -> None:
        super().__init__(message)
        self.steps = steps


class Saver:
    """Saves folders one after another, each in the background.

    Args:
        name: of what is saved, for the barriers among processes.
        tree: name of the item that is a tree of arrays, none of them a typed key.
        also: names of other items.
        timeout: seconds after which a save has failed. If one of several processes cannot write its
            part, the others wait this long for it.
    """

    def __init__(
        self, name: str, *, tree: str, also: tuple[str, ...] = (), timeout: int = 600
    ) -> None:
        self._name, self._items = name, (tree, also)
        self._timeout = timeout
        self._checkpointer: ocp.AsyncCheckpointer | None = None
        self._thread: threading.Thread | None = None
        self._last: tuple[int, Path] | None = None
        self._missed: dict[int, str] = {}

    def save(
        self,
        folder: Path,
        items: ocp.args.Composite,
        *,
        step: int,
        check: Callable[[], None] | None = None,
        then: Callable[[], None] | None = None,
        report: Callable[[str], None] | None = None,
        **manifest_values: Any,
    ) -> None:
        """Begins to save `items` in `folder`, and its manifest; arrays may be donated on return.

        It waits for the former save, if that is not done. All processes of a run have to call it.

        Args:
            folder: created, with its parents; an existing folder is renamed.
            items: what Orbax saves.
            step: for the manifest.
            check: called by the first process, when the former save is done; raises a
                CheckpointError if `step` may not be saved.
            then: called by the first process, in the background, once the manifest is on the disk.
            report: called by the first process: with "under way" when the save has begun, before
                this returns; with "saved" once the manifest is on the disk, or "not saved", in the
                background.
            **manifest_values: see `manifest.write`.

        Raises:
            SaveError: this save or the former one failed, see its `steps`.
        """
        self._join()
        if jax.process_index() == 0:
            self._look_for_last()
        self._missed.pop(step, None)  # in case of another try
        if jax.process_index() == 0:

            def move_aside_non_file() -> None:
                if check is not None:
                    check()
                _make_way(folder)

            self._attempt(step, folder, move_aside_non_file)
        self._agree(step)
        if step not in self._missed:
            self._attempt(step, folder, lambda: self._begin(folder, items), rubbish=True)
        missed, self._missed = self._missed, {}
        self._last = None
        if step not in missed:
            self._last = step, folder
            if report is None or jax.process_index() > 0:
                report = _say_nothing
            self._thread = threading.Thread(
                target=self._finish, args=(step, folder, manifest_values, then, report)
            )
            try:
                report("under way")
            finally:
                self._thread.start()
        _raise(missed)

    def wait(self) -> None:
        """Waits until the last save and its manifest are on the disk; all processes call it.

        Raises:
            SaveError: it failed.
        """
        self._join()
        self._agree(None)
        self._raise_missed()

    def close(self) -> None:
        """Waits for this process's part of the last save, and ends Orbax's threads.

        Raises:
            SaveError: the last save failed.
        """
        self._join()
        if self._checkpointer is not None:
            # A failure here is of a `save` that was interrupted, which has raised it already.
            with contextlib.suppress(Exception):
                self._checkpointer.close()
            self._checkpointer = None
        self._raise_missed()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _raise_missed(self) -> None:
        missed, self._missed = self._missed, {}
        if missed:
            self._last = None
        _raise(missed)

    def _look_for_last(self) -> None:
        """Notes if the folder of the last save has been deleted, or its disk is gone."""
        if self._last is not None:
            step, folder = self._last
            if step not in self._missed and not (folder / manifest.NAME).exists():
                self._missed[step] = f"step {step} was saved, but is missing in {folder.parent} now"

    def _agree(self, step: int | None) -> None:
        """Lets a save that one process missed count for all, so that none waits forever."""
        if jax.process_count() == 1:
            return
        saves = (None if self._last is None else self._last[0], step)
        mine = np.array([which in self._missed for which in saves])
        anywhere = multihost_utils.process_allgather(mine).any(axis=0)
        for which, failed in zip(saves, anywhere, strict=True):
            if failed and which is not None:
                self._missed.setdefault(
                    which, f"step {which} is not saved: another process of the run could not"
                )

    def _begin(self, folder: Path, items: ocp.args.Composite) -> None:
        hush_orbax()
        if self._checkpointer is None:
            self._checkpointer = ocp.AsyncCheckpointer(
                _handler(*self._items),
                self._timeout,
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    barrier_sync_key_prefix=self._name
                ),
            )
        self._checkpointer.save(folder, args=items)

    def _finish(
        self,
        step: int,
        folder: Path,
        manifest_values: dict[str, Any],
        then: Callable[[], None] | None,
        report: Callable[[str], None],
    ) -> None:
        """The thread."""

        def finish() -> None:
            if self._checkpointer is not None:
                self._checkpointer.wait_until_finished()
            if jax.process_index() == 0:
                manifest.write(folder, step=step, **manifest_values)

        done = self._attempt(step, folder, finish, rubbish=True)
        with contextlib.suppress(OSError, ValueError):  # the terminal is closed
            report("saved" if done else "not saved")
        if done and then is not None and jax.process_index() == 0:
            then()

    def _attempt(
        self, step: int, folder: Path, work: Callable[[], None], *, rubbish: bool = False
    ) -> bool:
        """Whether it worked; if not, notes why `step` is missed and removes its files."""
        try:
            work()
        except Exception as error:
            self._missed[step] = f"step {step} is not saved in {folder.parent}: {reason(error)}"
            if jax.process_index() == 0 and not isinstance(error, CheckpointError):
                if rubbish:
                    remove(folder)
                sweep(folder.parent, interrupted=0)  # the disk may be full
            return False
        return True


def move_aside(folder: Path) -> Path:
    """Renames `folder` so that it does not belong to a step any more."""
    return folder.rename(folder.with_name(f"{folder.name}{_UNSOUND}{time.time_ns()}"))


def remove(folder: Path) -> None:
    """Deletes `folder` as far as the disk allows; an incomplete folder never has its name."""
    doomed = folder.with_name(folder.name + _DELETED)
    if doomed.exists():
        shutil.rmtree(doomed, ignore_errors=True)
    try:
        folder.rename(doomed)
    except OSError:
        return
    shutil.rmtree(doomed, ignore_errors=True)


def sweep(directory: Path, *, interrupted: int = 1) -> None:
    """Removes leftovers of interrupted saves and deletions, as far as the disk allows.

    A renamed folder stays if it has a manifest: it was complete once, and a person may repair it.
    Folders with other names are not touched.

    Args:
        directory: of checkpoints or snapshots; it may be missing.
        interrupted: number of the newest renamed folders without a manifest that stay. Each is as
            large as a checkpoint.
    """
    aside = []
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            if path.is_symlink() or not path.is_dir():
                continue
            if _LEFTOVER.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
            elif (name := _MOVED_ASIDE.fullmatch(path.name)) and _has_no_manifest(path):
                aside.append((int(name[1]), path))
    aside.sort(reverse=True)
    for _, path in aside[interrupted:]:
        shutil.rmtree(path, ignore_errors=True)


def _has_no_manifest(folder: Path) -> bool:
    try:
        (folder / manifest.NAME).lstat()
    except FileNotFoundError:
        return True
    except OSError:  # unknown
        return False
    return False


def reason(error: BaseException) -> str:
    """The reason of a failure: the system's text if the system failed, or else the first line."""
    if isinstance(error, CheckpointError):
        return str(error)
    text = ""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        if isinstance(cause, TimeoutError):
            return "it took too long, or another process of the run could not write its part"
        text += str(cause)
        cause = cause.__cause__ or cause.__context__
    for code in _REFUSALS:
        if os.strerror(code) in text:
            return os.strerror(code)
    if "NOT_FOUND" in text:  # TensorStore's word for it
        return os.strerror(errno.ENOENT)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _make_way(folder: Path) -> None:
    """Makes room for `folder`, and checks that the disk takes files."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        move_aside(folder)
    sweep(folder.parent)
    # Orbax would notice it later, when other processes already wait for this one.
    with tempfile.TemporaryFile(dir=folder.parent) as probe:
        probe.write(b"?")


def _raise(missed: dict[int, str]) -> None:
    if missed:
        raise SaveError("; ".join(missed.values()), tuple(sorted(missed)))


@functools.cache
def _handler(tree: str, also: tuple[str, ...]) -> ocp.CompositeCheckpointHandler:
    """The handler of a tree of arrays and other items.

    By default Orbax splits each array into as many parts as there are replicas, even a bias of 64
    numbers, and compiles a program for each part.
    """
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_SHARED_BYTES)
    kinds = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=kinds)
    return ocp.CompositeCheckpointHandler(*also, **{tree: handler})


def hush_orbax() -> None:
    """Hides tracebacks of failed saves: `SaveError` reports them in one sentence.

    Orbax also logs the error in each of its threads. When one write fails, it abandons the others,
    which log to asyncio, or to a closed event loop, at any later time. Therefore this lasts as long
    as the process. A second call does nothing, unless `sys.unraisablehook` was set since.
    """
    for logger in ("absl", "asyncio"):
        logging.getLogger(logger).addFilter(_is_news)  # once: a logger knows its filters
    if not isinstance(sys.unraisablehook, _UnraisableHook):
        sys.unraisablehook = _UnraisableHook(sys.unraisablehook)


def _is_news(record: logging.LogRecord) -> bool:
    if not record.exc_info:
        return True
    about_a_save = _TEMPORARY in f"{record.getMessage()} {record.exc_info[1]}"
    return not (about_a_save or f"{os.sep}orbax{os.sep}" in record.pathname)


class _UnraisableHook:
    """Passes errors to the former hook, except those of Orbax and of a closed event loop."""

    def __init__(self, others: Callable[[Any], object]) -> None:
        self._others = others

    def __call__(self, ignored: Any) -> None:
        if ignored.object is None:
            known = str(ignored.exc_value) == "Event loop is closed"
        else:  # one of the reads or writes that were abandoned when another failed
            code = getattr(ignored.object, "cr_code", None)
            known = f"{os.sep}orbax{os.sep}" in getattr(code, "co_filename", "")
        if not known:
            self._others(ignored)


def _say_nothing(text: str) -> None:
    """Stands for no report."""
