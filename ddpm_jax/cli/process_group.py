"""The processes of one command that shares its work out: how they connect and who prints.

A command with the option `hosts: Hosts = DEFAULTS.hosts` parses its arguments, and then does all
its work in `with process_group(options, console) as console:`.
"""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from ddpm_jax.errors import UserError
from ddpm_jax.parallel import hosts, watchdog
from ddpm_jax.terminal import complain

__all__ = ["complain_once", "process_group"]

_OWN = ("hosts", "data")
"""Options that may differ between the processes."""


@contextlib.contextmanager
def process_group(options: Any, console: Console) -> Iterator[Console]:
    """Connects the processes of a command. Enter it before any other use of JAX.

    Without `--hosts` this process is alone, and nothing is done.

    Args:
        options: a dataclass with the field `hosts`; the other fields have to be the same in all
            processes, except for the place of the data set.
        console: of this process.

    Yields:
        The console for the command: that of the first process; the others print nothing.

    Raises:
        UserError: the processes cannot be found or reached, or have other options.
        hosts.HostLossError: in place of the errors of JAX after the loss of another process.
    """
    if options.hosts.several:
        watchdog.install()
    options.hosts.join()
    if hosts.alone():
        yield console
        return
    if threading.current_thread() is threading.main_thread():
        # JAX catches SIGTERM to pass it on; only the training loop asks whether it came.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with hosts.watched():
        _compare(options)
        yield console if hosts.is_first() else Console(quiet=True)
        # The first process draws and prints last; at an exit, JAX waits for others only for the
        # seconds of a heartbeat.
        hosts.barrier("the command is done")


def complain_once(sentence: str) -> None:
    """`terminal.complain` in the first process only."""
    if hosts.is_first():
        complain(sentence)


def _compare(options: Any) -> None:
    """Raises a UserError in all processes if one has other options than the first."""
    names = [field.name for field in dataclasses.fields(options) if field.name not in _OWN]
    values = {name: str(getattr(options, name)) for name in names}
    first, *others = hosts.gathered(values)
    for index, other in enumerate(others, start=1):
        different = "; ".join(
            f"--{name.replace('_', '-')} is {value} there and {first.get(name)} in process 0"
            for name, value in other.items()
            if value != first.get(name)
        )
        if different:
            hosts.leave()
            raise UserError(f"process {index} has other arguments ({different})")
