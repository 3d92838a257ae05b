"""A process that compiles for one topology: a question on standard input, answers on output.

    python -m ddpm_jax.plan.worker < question.json

It is started with `topologies.environment` and not by hand. The question is one line of JSON, and
each answer another: `{"say": ...}` while it works, and at the end `{"plan": ...}`, or
`{"error": ...}` for what a person can mend. When its input ends, so does the process.
"""

import json
import os
import sys
import threading
from typing import Any, TextIO

from ddpm_jax.errors import UserError

__all__ = ["main"]


def main() -> None:
    """Answers one question."""
    answers = _own_output()
    question = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_input, daemon=True).start()

    def answer(**said: Any) -> None:
        answers.write(json.dumps(said) + "\n")
        answers.flush()

    from ddpm_jax.config import from_json
    from ddpm_jax.plan import topologies
    from ddpm_jax.plan.plan import make_plan

    try:
        topology = topologies.parse(question["topology"])
        plan = make_plan(
            from_json(question["config"]),
            topology,
            topologies.devices(topology),
            advise=question["advise"],
            largest_batch=question["largest_batch"],
            say=lambda what: answer(say=what),
        )
        answer(plan=plan)
    except UserError as error:
        answer(error=str(error))


def _own_output() -> TextIO:
    """Standard output for the answers; what libraries print goes where errors go."""
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return own


def _leave_with_input() -> None:
    """A compiler cannot be interrupted, and whoever asked may be gone."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
