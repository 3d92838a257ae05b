"""A small disk to fill up; `disk` of conftest.py mounts it."""

import contextlib
import os
import shutil
import subprocess

import pytest

UNAWAITED_WRITES = [
    pytest.mark.filterwarnings("ignore:coroutine .*write_fragment:RuntimeWarning"),
    pytest.mark.filterwarnings(
        "ignore:.*write_fragment:pytest.PytestUnraisableExceptionWarning"  # in pytest-xdist
    ),
]
"""Marks: Orbax starts no more writes after one has failed, and leaves the others as they are."""


def mount(place):
    """An empty folder becomes a disk of 24 MB; a checkpoint of test_disk takes five."""
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a small disk to fill")
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk to fill is not permitted here")


def unmount(place):
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk, *, leaving):
    """A file that takes all but `leaving` bytes, whoever else is writing."""
    size = 0
    with (disk / "other people's").open("wb") as file:
        while (free := _free(disk) - leaving) > 0:
            with contextlib.suppress(OSError):  # somebody was quicker
                os.posix_fallocate(file.fileno(), size, free)
                size += free


def _free(disk):
    stat = os.statvfs(disk)
    return stat.f_bavail * stat.f_frsize
