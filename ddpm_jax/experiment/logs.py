"""The logger of a run; whatever happens to it, the run goes on."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.config import Logger, LoggingRun, check_made
from ddpm_jax.errors import UserError, first_line
from ddpm_jax.parallel import hosts

__all__ = ["RunLog", "open_log"]


class RunLog:
    """The calls of a `LoggingRun`; an error is one line, until the same call works again.

    Args:
        name: of the logger, for the line.
        logger: the log; None ignores all calls.
        say: prints a line.
    """

    def __init__(self, name: str, logger: LoggingRun | None, say: Callable[[str], None]) -> None:
        self._name, self._logger, self._say = name, logger, say
        self._failing: set[str] = set()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Logs numbers."""
        self._call("scalars", step, values)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Logs a picture."""
        self._call("picture", step, name, picture)

    def close(self) -> None:
        """Ends the log."""
        self._call("close")

    def _call(self, method: str, *arguments: Any) -> None:
        if self._logger is None:
            return
        try:
            getattr(self._logger, method)(*arguments)
            self._failing.discard(method)
        except Exception as error:  # of a service, or of a user's own logger
            if method not in self._failing:
                self._say(f"logger {self._name}: {type(error).__name__}: {first_line(error)}")
            self._failing.add(method)


@contextlib.contextmanager
def open_log(
    member: Logger, directory: Path, *, resumed_at: int, say: Callable[[str], None]
) -> Iterator[RunLog]:
    """The log of a run, which only the first process has; the others ignore all calls.

    Args:
        member: the logger.
        directory: of the run.
        resumed_at: number of steps done before.
        say: prints a line.

    Raises:
        UserError: of the member's `make`.
    """
    name, logger = type(member).__name__, None
    with hosts.together():
        if hosts.is_first():
            try:
                logger = member.make(directory, resumed_at)
                check_made("logger", member, logger, LoggingRun)
            except UserError:
                raise
            except Exception as error:
                say(f"no logger {name}: {type(error).__name__}: {first_line(error)}")
    log = RunLog(name, logger, say)
    try:
        yield log
    finally:
        log.close()
