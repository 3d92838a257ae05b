"""Which cases of a test `start.py test` runs, and which it leaves to `--all`."""

import pytest


def thorough_but(quick, cases):
    """`cases` for `parametrize`, each marked thorough unless it is one of the `quick`."""
    return [case if case in quick else _thorough(case) for case in cases]


def _thorough(case):
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.thorough)
