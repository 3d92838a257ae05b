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
    "train": "train a config, or go on with it, then evaluate and draw",
    "data": "convert public files of images, or prepare a data set of TensorFlow Datasets",
    "sample": "draw images from a run",
    "export": "the whole sampler of a run as one program that runs on JAX alone",
    "evaluate": "bits per dimension of a run on held-out images, beside baselines",
    "weights": "weights of other programs as a run, and a run's for other programs",
    "configs": "the configs that come with the package, and a copy of one to edit",
    "list": "what a config can choose from: families, members, their fields",
    "replay": "one step of a run once more: which examples and parameters were bad in it",
    "inspect": "the network of a config as a table: shapes, parameters, FLOPs",
    "plan": "memory, traffic and time of a config on a pod, before the pod is rented",
}

EXIT_USAGE = 2
EXIT_DISK = 3
EXIT_SIGNAL = 128
"""Plus the signal's number."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit code.

    0 done, 1 training diverged, 2 something in the arguments or files that a person can mend,
    3 the disk refused one save too many, or a file that standard output goes to, 4 another process
    of the run is gone, 70 an error that nobody foresaw, 129, 130 or 143 stopped by SIGHUP, ctrl-C
    or SIGTERM. `train` has saved the step at hand in the last three cases, but for a second ctrl-C.
    A closed pipe changes no exit code; nor does, of `train`, a standard output that refuses.
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
            terminal.complain(f"standard output did not take all of it: {out.refusal}")
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
            "usage: ddpm-jax COMMAND ...   (ddpm-jax COMMAND --help tells more)",
            "",
            *lines,
            "",
            "  ddpm-jax train digits --train.steps 500 --workdir runs/a",
        ]
    )


@contextlib.contextmanager
def quiet_interrupts() -> Iterator[None]:
    """For imports and arguments: a signal leaves at once, with a line; no library can swallow it.

    Signals that are ignored or that somebody else handles are left to them.
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
