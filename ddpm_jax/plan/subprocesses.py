"""Requests to a subprocess, for work whose environment must be set before JAX starts.

The parent writes one line of JSON to the child's standard input. The child writes lines of JSON to
its standard output: `{"say": ...}` while it works, and at the end `{"answer": ...}`, or
`{"error": ...}` for a UserError. If the child dies, the parent shows what it printed. The child
exits when its parent does. It may be killed at any time: nothing else interrupts a compiler.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, TypeVar

from ddpm_jax.errors import UserError

__all__ = ["Child", "Say", "serve", "start"]

Say = Callable[[str], None]
_Stream = TypeVar("_Stream")


class Child:
    """A process that answers one question; made by `start`."""

    def __init__(self, module: str, process: subprocess.Popen[str], noise: IO[str]) -> None:
        self._module, self._process, self._noise = module, process, noise

    def answer(self, say: Say = lambda what: None) -> Any:
        """Waits for the answer; `say` gets the lines before it.

        Raises:
            UserError: the child raised one.
            RuntimeError: the child ended without an answer.
        """
        for line in _pipe(self._process.stdout):
            message = json.loads(line)
            if "answer" in message:
                return message["answer"]
            if "error" in message:
                raise UserError(message["error"])
            say(message["say"])
        self._noise.seek(0)
        last = self._noise.read().strip().splitlines()[-12:]
        raise RuntimeError(
            f"{self._module} ended with exit code {self._process.wait()}; its last output:\n"
            + "\n".join(last)
        )

    def end(self) -> None:
        """Kills the process; may be called from another thread, and more than once."""
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def start(module: str, question: Any, environ: Mapping[str, str]) -> Iterator[Child]:
    """Runs `python -m module`, which calls `serve`, and kills it when the context ends.

    Args:
        module: name of the module.
        question: anything that JSON can hold.
        environ: the whole environment of the process.
    """
    with tempfile.TemporaryFile("w+") as noise:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            text=True,
            env=dict(environ),
            start_new_session=True,  # Ctrl-C goes to this process, which ends the child
        )
        child = Child(module, process, noise)
        try:
            stdin = _pipe(process.stdin)
            with contextlib.suppress(BrokenPipeError):  # the child has ended: `answer` raises
                stdin.write(json.dumps(question) + "\n")
                stdin.flush()
            yield child
        finally:
            child.end()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    _pipe(stream).close()


def serve(answer: Callable[[Any, Say], Any]) -> None:
    """In the child: reads the question and sends the result of `answer(question, say)`.

    Standard output is only for messages: everything else that is printed goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    question = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_input, daemon=True).start()

    def send(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        send(answer=answer(question, lambda what: send(say=what)))
    except UserError as error:
        send(error=str(error))


def _die_with_input() -> None:
    """Exits when the parent closes stdin."""
    sys.stdin.read()
    os._exit(1)


def _pipe(stream: _Stream | None) -> _Stream:
    if stream is None:
        raise RuntimeError("the process has no pipes")
    return stream
