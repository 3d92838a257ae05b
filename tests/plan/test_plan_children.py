"""Processes that are asked a question."""

import os
import sys

import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.plan import children

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def answer(question, say):
    """What the child of these tests does."""
    print("libraries print", flush=True)
    if question == "leave":
        os._exit(7)
    if question == "object":
        raise UserError("not this")
    say("half of it")
    return {"asked": question}


def ask(question, say=lambda what: None):
    with children.start("test_plan_children", question, ENVIRONMENT) as child:
        return child.answer(say)


def test_it_says_and_answers():
    said = []
    assert ask([1, "two"], said.append) == {"asked": [1, "two"]}
    assert said == ["half of it"]


def test_what_it_has_against_the_question_is_heard():
    with pytest.raises(UserError, match="not this"):
        ask("object")


def test_what_was_printed_is_shown_when_it_dies():
    with pytest.raises(RuntimeError, match=r"ended with exit code 7 and said:\nlibraries print"):
        ask("leave")
    with (
        children.start("absent_module", None, ENVIRONMENT) as child,
        pytest.raises(RuntimeError, match="No module named absent_module"),
    ):
        child.answer()


def test_it_is_ended_on_the_way_out_and_from_elsewhere():
    with children.start("test_plan_children", "", ENVIRONMENT) as child:
        child.end()
        with pytest.raises(RuntimeError, match="exit code -9"):
            child.answer()
    child.end()


if __name__ == "__main__":
    children.answer_question(answer)
