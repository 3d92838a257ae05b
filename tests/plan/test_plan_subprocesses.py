"""Questions to subprocesses."""

import os
import sys

import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.plan import subprocesses

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def answer(question, say):
    """What the child of these tests does."""
    print("libraries print", flush=True)
    if question == "leave":
        os._exit(7)
    if question == "object":
        raise UserError("not this")
    say("half of it")
    return {"question": question}


def request(question, say=lambda what: None):
    with subprocesses.start("test_plan_subprocesses", question, ENVIRONMENT) as child:
        return child.answer(say)


def test_lines_come_before_the_answer():
    lines = []
    assert request([1, "two"], lines.append) == {"question": [1, "two"]}
    assert lines == ["half of it"]


def test_a_user_error_of_the_child_is_raised_here():
    with pytest.raises(UserError, match="not this"):
        request("object")


def test_output_of_libraries_is_shown_if_the_child_dies():
    with pytest.raises(
        RuntimeError, match=r"ended with exit code 7; its last output:\nlibraries print"
    ):
        request("leave")
    with (
        subprocesses.start("absent_module", None, ENVIRONMENT) as child,
        pytest.raises(RuntimeError, match="No module named absent_module"),
    ):
        child.answer()


def test_the_child_ends_with_its_context_and_by_end():
    with subprocesses.start("test_plan_subprocesses", "", ENVIRONMENT) as child:
        child.end()
        with pytest.raises(RuntimeError, match="exit code -9"):
            child.answer()
    child.end()


if __name__ == "__main__":
    subprocesses.serve(answer)
