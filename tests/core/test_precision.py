"""The errors in docs/speed.md are those that its command prints, up to the last digits."""

import re

import pytest
from exact import build, chain
from marks import thorough_but
from paths import ROOT
from precision import SCHEDULES, Error, error, exact_quantities, our_quantities

PAGE = (ROOT / "docs" / "speed.md").read_text()
ROW = re.compile(r"^\| (.+?) \| ([\d.]+) \| ([\d.e-]+) \| ([\d,]*) ", flags=re.MULTILINE)
PUBLISHED = {
    name: Error(float(ulp), float(relative)) for name, ulp, relative, _ in ROW.findall(PAGE)
}


@pytest.mark.parametrize("name", thorough_but(["linear", "cosine"], SCHEDULES))
def test_errors_are_within_those_of_the_page(name):
    exact = exact_quantities(chain(name, 1000))
    found = our_quantities(build(name, 1000))
    assert set(PUBLISHED) == set(exact)
    for quantity, values in found.items():
        ulp, relative = error(values, exact[quantity])
        # Another platform's exponential may differ in its last place or two.
        assert ulp <= PUBLISHED[quantity].ulp * 1.5 + 0.01, quantity
        assert relative <= PUBLISHED[quantity].relative * 1.5, quantity


def test_an_error_is_seen():
    tables = chain("linear", 10)
    off_by_ten = build("linear", 10).betas.at[3].multiply(1 + 10 * 2.0**-24)
    found = error(off_by_ten, tables.betas)
    assert 4 < found.ulp < 21
    assert 5e-7 < found.relative < 7e-7
