"""The `ddpm-jax` command: usage, exit codes, and quiet first seconds.

Importing this module does not import JAX: that takes seconds, in which a person may press ctrl-C.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from ddpm_jax.errors import MissingExtra, require

__all__ = ["COMMANDS", "EXIT_DISK", "EXIT_SIGNAL", "EXIT_USAGE", "main", "quiet_interrupts"]

COMMANDS = {
    "train": "train a config, or resume its run; then evaluate and draw",
    "data": "convert public files of images, or prepare a data set of TensorFlow Datasets",
    "sample": "draw images from a run",
    "export": "write the sampler of a run as one program that needs only JAX",
    "evaluate": "measure bits per dimension of a run, and metrics of its samples",
    "compare": "lay several runs side by side on one page",
    "weights": "import the weights of other programs as a run, or export those of a run",
    "configs": "list the configs of the package, or copy one to edit",
    "list": "list what a config can choose from: families, members, their fields",
    "replay": "compute one step of a run again, and show its worst examples and parameters",
    "inspect": "show the network of a config as a table: shapes, parameters, FLOPs",
    "plan": "predict memory, traffic and time of a config on a pod that you do not have",
}
"""Subcommands, and what each does."""

EXIT_USAGE = 2
"""Exit code after an error that the user can fix."""
EXIT_DISK = 3
"""Exit code if the disk refuses."""
EXIT_SIGNAL = 128
"""Exit code after a signal, plus the signal's number."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        arguments: of the command line, without the program's name; by default those of the process.

    Returns:
        The exit code, one of these.

        - 0: done.
        - 1: training diverged.
        - 2: an error in the arguments or files, which the user can fix.
        - 3: too many saves failed, or standard output is a file that could not be written.
        - 4: another process of the run has died.
        - 70: an unexpected error.
        - 129, 130, 143: stopped by SIGHUP, ctrl-C or SIGTERM. `train` has saved its last step,
          unless there was a second ctrl-C.

        A closed pipe does not change the exit code. Nor does an unwritable standard output in
        `train`.
    """
    with quiet_interrupts():
        try:
            # What is imported late, but in each training, too: it must not be missed at its end.
            require("ddpm-jax", "train", "grain", "matplotlib", "rich", "tyro")
            from ddpm_jax import terminal
        except MissingExtra as error:
            print(f"ddpm-jax: {error}", file=sys.stderr)
            return EXIT_USAGE

        terminal.open_closed()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with terminal.streams() as (out, _):
        code = _run(arguments)
        out.settle()
        if code == 0 and out.is_short() and arguments[:1] != ["train"]:
            terminal.complain(f"standard output could not be written completely: {out.refusal}")
            code = EXIT_DISK
    return code


def _run(arguments: list[str]) -> int:
    from ddpm_jax import terminal

    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else EXIT_USAGE
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        known = ", ".join(COMMANDS)
        terminal.complain(f"the command is {command!r}; it has to be one of {known}")
        return EXIT_USAGE
    with quiet_interrupts():
        from ddpm_jax.cli.dispatch import dispatch, load

        try:
            module = load(command)
        except MissingExtra as error:
            terminal.complain(str(error))
            return EXIT_USAGE
    return dispatch(module, rest)


def _usage() -> str:
    lines = [f"  ddpm-jax {name:<10} {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ddpm-jax COMMAND ...   (ddpm-jax COMMAND --help shows its options)",
            "",
            *lines,
            "",
            "  ddpm-jax train digits --train.steps 500 --workdir runs/a",
        ]
    )


@contextlib.contextmanager
def quiet_interrupts() -> Iterator[None]:
    """During imports and parsing, a signal ends the process at once, with one line.

    Signals that are ignored, or that somebody else handles, are not changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        line = "interrupted" if number == signal.SIGINT else f"stopped by {name}; nothing was done"
        with contextlib.suppress(OSError):
            os.write(2, f"ddpm-jax: {line}\n".encode())
        os._exit(EXIT_SIGNAL + number)

    ours = [
        (number, before)
        for number, before in (
            (signal.SIGINT, signal.default_int_handler),
            (signal.SIGTERM, signal.SIG_DFL),
            (signal.SIGHUP, signal.SIG_DFL),
        )
        if signal.getsignal(number) is before
    ]
    for number, _ in ours:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number, before in ours:
            signal.signal(number, before)
