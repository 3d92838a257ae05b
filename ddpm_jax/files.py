"""Files that are there whole or not at all, whatever happens while they are written."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

__all__ = ["PARTIAL", "whole_file"]

PARTIAL = ".partial"
"""The end of the names of files that are being written."""


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` when the context ends well.

    Its folder is made if it is not there. Whoever reads `path` sees all of the old file or all of
    the new one, also if the process or the machine dies half way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
