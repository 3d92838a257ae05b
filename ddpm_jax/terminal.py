"""Printing: text is never markup, and an unwritable stream does not stop a run.

Names of files, classes, arrays and data sets come from outside. `say`, `complain` and `cell` show
control characters, bidirectional overrides and line breaks as `repr` does, and interpret nothing as
markup. `streams` replaces the standard streams, so that a full disk, a closed pipe, a lost terminal
or a character that the encoding lacks raises nothing.
"""

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from ddpm_jax.errors import require

require("ddpm_jax.terminal", "train", "rich")

from rich.console import Console
from rich.text import Text

__all__ = [
    "Stream",
    "cell",
    "complain",
    "count_text",
    "escape",
    "make_console",
    "open_closed",
    "say",
    "streams",
]

_CONTROL = re.compile(r"(\x1b\[[0-9;?]*[A-Za-z]|[\n\r\t])")
"""What rich and tqdm send to move the cursor and to colour; nothing else may pass."""


def escape(text: str) -> str:
    r"""`text` in one line, with all that is not printable as `repr` shows it.

    That is control characters (C0, DEL, C1), bidirectional and other invisible ones, line breaks,
    and the lone surrogates of file names that cannot be decoded.

    >>> print(escape("a\x1b]0;b\x07\n"))
    a\x1b]0;b\x07\n
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def make_console() -> Console:
    """On standard output; a str is text, neither markup nor emoji codes nor highlighted.

    Where FORCE_COLOR is set, as notebooks do, a pipe gets colours, and no progress bar.
    """
    bar = None if _is_terminal(sys.stdout) else False
    return Console(markup=False, emoji=False, highlight=False, force_interactive=bar)


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False


def say(console: Console, text: str) -> None:
    """One line: paths are neither wrapped nor coloured."""
    console.print(escape(text), highlight=False, markup=False, emoji=False, soft_wrap=True)


def cell(text: object) -> Text:
    """For a table: text from outside, whatever the console takes a str for."""
    return Text(escape(str(text)))


def count_text(count: int, of_all: int) -> str:
    """For a sentence: the number, and if it is not that of all, of how many."""
    return f"{count}" if count == of_all else f"{count} of {of_all}"


def complain(sentence: str) -> None:
    """One line on standard error."""
    with contextlib.suppress(OSError, ValueError):
        print(f"ddpm-jax: {escape(sentence)}", file=sys.stderr, flush=True)


class Stream:
    """A standard stream that may refuse: what it does not take is lost, and nothing else.

    Attributes:
        encoding: as the stream has it. A character that is not in it is escaped.
        errors: as the stream has it.
        refusal: why the stream did not take something; None so far.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream  # None if it was closed before Python started
        self.encoding = getattr(stream, "encoding", None) or "utf-8"
        self.errors = getattr(stream, "errors", None) or "strict"
        self.refusal: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Without any control sequence but those that move the cursor and colour."""
        parts = enumerate(_CONTROL.split(text))
        harmless = "".join(part if index % 2 else escape(part) for index, part in parts)
        encodable = harmless.encode(self.encoding, "backslashreplace").decode(self.encoding)
        with self._noting_refusals():
            if self._stream is not None:
                self._stream.write(encodable)
        return len(text)

    def flush(self) -> None:
        """As far as the stream takes it."""
        with self._noting_refusals():
            if self._stream is not None:
                self._stream.flush()

    def settle(self) -> None:
        """Writes what is in line. If that is refused, nothing is left that fails again at exit."""
        try:
            if self._stream is not None:
                self._stream.flush()
        except (OSError, ValueError) as error:
            self.refusal = self.refusal or error
            with contextlib.suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)
                self._stream.flush()

    @contextlib.contextmanager
    def _noting_refusals(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self.refusal = self.refusal or error

    def is_short(self) -> bool:
        """Whether a reader who still listens did not get all of it."""
        gone = isinstance(self.refusal, OSError) and self.refusal.errno == errno.EPIPE
        return self.refusal is not None and not gone


@contextlib.contextmanager
def streams() -> Iterator[tuple[Stream, Stream]]:
    """Standard output and error as streams that may refuse, while the context lasts."""
    before = sys.stdout, sys.stderr
    ours = Stream(before[0]), Stream(before[1])
    sys.stdout, sys.stderr = cast(tuple[TextIO, TextIO], ours)
    try:
        yield ours
    finally:
        for stream in ours:
            stream.settle()
        if cast(object, sys.stdout) is ours[0]:
            sys.stdout = before[0]
        if cast(object, sys.stderr) is ours[1]:
            sys.stderr = before[1]


def open_closed() -> None:
    """Opens those of the descriptors 0, 1 and 2 that are closed, as the null device.

    Else the next file would get such a number, and what C++ prints would land in it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            if null != number:
                os.dup2(null, number)
                os.close(null)
