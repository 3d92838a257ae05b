"""Which cases of a test `start.py test` runs, and which it leaves to `--all`."""

import pytest


def thorough_but(quick, cases, marks=()):
    """`cases` for `parametrize`: the `quick` ones with `marks`, each other one marked thorough."""
    return [_marked(case, marks if case in quick else pytest.mark.thorough) for case in cases]


def _marked(case, marks):
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=marks)
