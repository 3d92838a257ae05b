"""Runs one subcommand, and turns its errors into one line and an exit code."""

import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

import jax

from ddpm_jax import terminal
from ddpm_jax.cli.main import EXIT_DISK, EXIT_SIGNAL, EXIT_USAGE
from ddpm_jax.cli.platforms import ignore_absent_accelerators
from ddpm_jax.errors import UserError
from ddpm_jax.parallel import watchdog
from ddpm_jax.parallel.hosts import HostLossError
from ddpm_jax.training import DivergenceError, InterruptedTraining, SaveError

__all__ = ["dispatch", "load"]

EXIT_DIVERGED = 1
EXIT_UNFORESEEN = 70
"""The code of sysexits.h; Python's own exit code for a traceback is 1."""


def load(command: str) -> ModuleType:
    """The module of a subcommand; importing it takes seconds."""
    # Orbax and grain warn through absl about errors that this package handles.
    logging.getLogger("absl").setLevel(logging.ERROR)
    ignore_absent_accelerators()
    return importlib.import_module(f"ddpm_jax.cli.{command}")


def dispatch(module: ModuleType, arguments: Sequence[str]) -> int:
    """Runs the subcommand of this module; returns the exit code."""
    try:
        module.run(arguments, terminal.make_console())
    except SaveError as error:
        return _fail(str(error), EXIT_DISK)
    except (UserError, OSError) as error:
        return _fail(str(error), EXIT_USAGE)
    except DivergenceError as error:
        return _fail(str(error), EXIT_DIVERGED)
    except InterruptedTraining as error:
        return _fail(str(error), EXIT_SIGNAL + error.signal_number)
    except HostLossError as error:
        return _fail(str(error), watchdog.EXIT_HOST_LOSS)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_SIGNAL + signal.SIGINT)
    except Exception:
        traceback.print_exc()
        if jax.distributed.is_initialized():
            _leave(EXIT_UNFORESEEN)
        return EXIT_UNFORESEEN
    return 0


def _fail(sentence: str, code: int) -> int:
    several = jax.distributed.is_initialized()
    if several:
        watchdog.claim_exit()
    terminal.complain(sentence)
    if several:
        _leave(code)
    return code


def _leave(code: int) -> NoReturn:
    """Exits at once: an orderly exit waits for other processes, which may be dead or wait, too."""
    sys.stdout.flush()
    os._exit(code)
