"""Plans for several topologies, each made in a process of its own, two at a time."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from ddpm_jax.config import Config, to_json
from ddpm_jax.errors import UserError
from ddpm_jax.plan.topologies import Topology, check_compiler, environment

__all__ = ["plans"]

AT_ONCE = 2


def plans(
    asked: Sequence[tuple[Config, Topology]],
    *,
    advise: bool = True,
    largest_batch: bool = False,
    thorough: bool = False,
    say: Callable[[str], None] = lambda what: None,
) -> list[dict[str, Any]]:
    """What `plan.make_plan` finds, in the order of what is `asked`. Ctrl-C ends all of it.

    Args:
        asked: configs of training runs, each with a topology of `topologies.parse`.
        advise: look for what would make it fit, where it does not.
        largest_batch: look for the largest batch that fits.
        thorough: let the compiler optimize as it does for a run.
        say: told what is being compiled; may be called from other threads.

    Raises:
        UserError: no compiler for one of them, or a config that cannot work there.
    """
    for _, topology in asked:
        check_compiler(topology)
    running: set[subprocess.Popen[str]] = set()
    ending = threading.Event()

    def ask(config: Config, topology: Topology) -> dict[str, Any]:
        question = {
            "topology": str(topology),
            "config": to_json(config),
            "advise": advise,
            "largest_batch": largest_batch,
        }
        with tempfile.TemporaryFile("w+") as noise:
            if ending.is_set():
                raise UserError("another topology failed")
            process = _start(environment(topology, os.environ, thorough=thorough), noise)
            running.add(process)
            try:
                return _answer(process, question, lambda what: say(f"{topology}: {what}"), noise)
            finally:
                running.discard(process)
                _end(process)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            return list(pool.map(ask, *zip(*asked, strict=True)))
        finally:  # also of an interruption
            ending.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                _end(process)


def _start(environ: dict[str, str], noise: IO[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ddpm_jax.plan.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=noise,
        text=True,
        env=environ,
        start_new_session=True,  # ctrl-C is for this process, which ends that one
    )


def _answer(
    process: subprocess.Popen[str],
    question: dict[str, Any],
    say: Callable[[str], None],
    noise: IO[str],
) -> dict[str, Any]:
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("a process without pipes")
    with contextlib.suppress(BrokenPipeError):  # it ended at once, which is told below
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
    for line in process.stdout:
        answer = json.loads(line)
        if "plan" in answer:
            plan: dict[str, Any] = answer["plan"]
            return plan
        if "error" in answer:
            raise UserError(answer["error"])
        say(answer["say"])
    noise.seek(0)
    last = noise.read().strip().splitlines()[-12:]
    raise RuntimeError(
        f"planning {question['topology']} ended with exit code {process.wait()} and said:\n"
        + "\n".join(last)
    )


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
