"""The `ddpm-jax` command: finds the subcommand, and turns what a person can mend into one line."""

import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import jax
from rich.console import Console

from ddpm_jax.cli.platforms import ignore_absent_accelerators
from ddpm_jax.errors import UserError
from ddpm_jax.parallel import lost
from ddpm_jax.parallel.hosts import LostError
from ddpm_jax.training import DivergenceError, InterruptedTraining, SaveError

__all__ = ["main"]

COMMANDS = {
    "train": "train a config, or go on with it, then evaluate and draw",
    "data": "prepare a data set of TensorFlow Datasets",
    "sample": "draw images from a run",
    "evaluate": "bits per dimension of a run on held-out images, beside baselines",
    "replay": "one step of a run once more: which examples and parameters were bad in it",
    "inspect": "the network of a config as a table: shapes, parameters, FLOPs",
    "plan": "memory, traffic and time of a config on a pod, before the pod is rented",
}

EXIT_DIVERGED = 1
EXIT_USAGE = 2
EXIT_DISK = 3
EXIT_SIGNAL = 128
"""Plus the signal's number."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit code.

    0 done, 1 training diverged, 2 something in the arguments or files that a person can mend,
    3 the disk refused one save too many, 4 another process of the run is gone, 130 interrupted with
    ctrl-C, 143 asked to stop by SIGTERM. `train` has saved the step at hand in the last two cases,
    but for a second ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else EXIT_USAGE
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        known = ", ".join(COMMANDS)
        return _fail(f"the command is {command!r}; it has to be one of {known}", EXIT_USAGE)
    # Orbax and grain warn through absl about what is handled here.
    logging.getLogger("absl").setLevel(logging.ERROR)
    ignore_absent_accelerators()
    try:
        module = importlib.import_module(f"ddpm_jax.cli.{command}")
        module.run(rest, Console())
    except SaveError as error:
        return _fail(str(error), EXIT_DISK)
    except (UserError, OSError) as error:
        return _fail(str(error), EXIT_USAGE)
    except DivergenceError as error:
        return _fail(str(error), EXIT_DIVERGED)
    except InterruptedTraining as error:
        return _fail(str(error), EXIT_SIGNAL + error.signal_number)
    except LostError as error:
        return _fail(str(error), lost.EXIT_LOST)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_SIGNAL + signal.SIGINT)
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        _leave(1)  # as Python does for what nobody foresaw
    return 0


def _usage() -> str:
    lines = [f"  ddpm-jax {name:<10} {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ddpm-jax COMMAND ...   (ddpm-jax COMMAND --help tells more)",
            "",
            *lines,
            "",
            "  ddpm-jax train configs/digits.py --train.steps 500 --workdir runs/a",
        ]
    )


def _fail(sentence: str, code: int) -> int:
    several = jax.distributed.is_initialized()
    if several:
        lost.last_word()
    print(f"ddpm-jax: {sentence}", file=sys.stderr, flush=True)
    if several:
        _leave(code)
    return code


def _leave(code: int) -> NoReturn:
    """At once: an orderly exit waits for others, who may be gone or wait for this one."""
    sys.stdout.flush()
    os._exit(code)
