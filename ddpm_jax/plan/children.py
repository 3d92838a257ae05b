"""A question for a process of its own, for what has to be known before JAX starts.

One line of JSON goes to the child's standard input, and lines of JSON come back: `{"say": ...}`
while it works, and at the end `{"answer": ...}`, or `{"error": ...}` for what a person can mend.
What libraries print there is shown if it dies. The child dies with whoever asked, and may be
killed at any time: a compiler cannot be interrupted otherwise.
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

__all__ = ["Child", "Say", "answer_question", "start"]

Say = Callable[[str], None]
_Stream = TypeVar("_Stream")


class Child:
    """A process that was asked; made by `start`."""

    def __init__(self, module: str, process: subprocess.Popen[str], noise: IO[str]) -> None:
        self._module, self._process, self._noise = module, process, noise

    def answer(self, say: Say = lambda what: None) -> Any:
        """Waits for the answer, and hands on what is said before it.

        Raises:
            UserError: what the child says against the question.
            RuntimeError: it ended without an answer.
        """
        for line in _pipe(self._process.stdout):
            told = json.loads(line)
            if "answer" in told:
                return told["answer"]
            if "error" in told:
                raise UserError(told["error"])
            say(told["say"])
        self._noise.seek(0)
        last = self._noise.read().strip().splitlines()[-12:]
        raise RuntimeError(
            f"{self._module} ended with exit code {self._process.wait()} and said:\n"
            + "\n".join(last)
        )

    def end(self) -> None:
        """Kills it, if it still lives; may be called from another thread, and twice."""
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def start(module: str, question: Any, environ: Mapping[str, str]) -> Iterator[Child]:
    """Runs `python -m module`, which calls `answer_question`; it is killed on the way out.

    Args:
        module: its name, to be found by a Python of this environment.
        question: anything that JSON can hold.
        environ: its whole environment.
    """
    with tempfile.TemporaryFile("w+") as noise:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            text=True,
            env=dict(environ),
            start_new_session=True,  # ctrl-C is for this process, which ends that one
        )
        child = Child(module, process, noise)
        try:
            asking = _pipe(process.stdin)
            with contextlib.suppress(BrokenPipeError):  # it ended at once, as `answer` will tell
                asking.write(json.dumps(question) + "\n")
                asking.flush()
            yield child
        finally:
            child.end()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    _pipe(pipe).close()


def answer_question(answer: Callable[[Any, Say], Any]) -> None:
    """In the child: reads the question, gives it to `answer` with what to say, and sends the rest.

    A UserError becomes the answer's error. Standard output is for answers alone: what else is
    printed goes where errors go.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    question = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_input, daemon=True).start()

    def tell(**told: Any) -> None:
        answers.write(json.dumps(told) + "\n")
        answers.flush()

    try:
        tell(answer=answer(question, lambda what: tell(say=what)))
    except UserError as error:
        tell(error=str(error))


def _die_with_input() -> None:
    """Whoever asked holds the other end for as long as he wants an answer."""
    sys.stdin.read()
    os._exit(1)


def _pipe(stream: _Stream | None) -> _Stream:
    if stream is None:
        raise RuntimeError("a process without pipes")
    return stream
