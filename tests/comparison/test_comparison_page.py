"""The page of a comparison: whole, self-contained, and safe with whatever runs are called."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from compared import make_run, metric
from PIL import Image

from ddpm_jax import config as configs
from ddpm_jax.comparison.comparison import SampleRow, compare
from ddpm_jax.comparison.page import make_page, write_page

HOSTILE = "<script>alert('x')</script>&amp;\x1b[31m\u202e\"'$x^"
_EMPTY = {"meta", "img", "source", "line", "circle", "br"}


class Page(HTMLParser):
    """Elements, attributes and text; raises AssertionError if elements are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.names, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs
        if tag not in _EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    metrics = [metric(HOSTILE, 2.0, low=1.5, high=2.5, note=HOSTILE)]
    first = make_run(folder / "a", bits=[2.0, 3.0, 2.5], metrics=metrics)
    second = make_run(folder / HOSTILE.replace("/", "|"), bits=[1.0, 2.5, 2.25], seed=1)
    third = make_run(folder / "c", bits=[2.0, 3.0, 2.0], sampler=configs.DDIM(), seed=2)
    compared = compare([first, second, third], num=0)
    images = np.random.default_rng(0).integers(256, size=(10, 8, 8, 3), dtype=np.uint8)
    rows = [SampleRow("A", images, "step 24"), SampleRow("B", None, HOSTILE)]
    compared.samples.extend(rows)
    compared.runs[2].lines[0][HOSTILE] = 1.0
    return compared


@pytest.fixture(scope="module")
def page(comparison):
    return make_page(comparison)


def test_the_page_loads_nothing_and_runs_nothing(page):
    parsed = Page(page)
    assert not {"script", "link", "iframe", "object", "base"} & set(parsed.names)
    addresses = [value for name, value in parsed.attributes if name in ("src", "srcset", "href")]
    assert addresses
    assert all(value.startswith("data:image/png;base64,") for value in addresses)
    assert not any(name.startswith("on") for name, _ in parsed.attributes)
    assert "default-src 'none'" in page
    assert "url(" not in page


def test_text_of_runs_is_shown_as_it_is(page):
    parsed = Page(page)
    for text in (parsed.text, *(value or "" for _, value in parsed.attributes)):
        assert "\x1b" not in text
        assert "\u202e" not in text
    shown = HOSTILE.replace("\x1b", r"\x1b").replace("\u202e", r"\u202e")
    assert parsed.text.count(shown) >= 3
    assert "<b>" not in parsed.text


def test_every_section_has_its_numbers(page):
    text = Page(page).text.replace("\xa0", " ")
    for part in (
        "Comparison of 3 runs",
        "2.5000 ± 0.29",
        "-0.5833 [",
        "100% of 3",
        "All pairs",
        "2 [1.5, 2.5]",
        "40 samples by Ancestral in all steps, seed 3",
        "Samples from the same noise",
        "DDIM",
    ):
        assert part in text


def test_samples_stand_below_each_other_in_rows_of_eight(page):
    strips = re.findall(r'class="strip">.*?base64,([^"]*)"', page)
    sizes = [Image.open(io.BytesIO(base64.b64decode(strip))).size for strip in strips]
    assert sizes == [(8 * 66 + 2, 68), (8 * 66 + 2, 68)]


def test_the_same_comparison_gives_the_same_bytes(comparison, page, tmp_path):
    write_page(tmp_path / "page.html", comparison)
    assert (tmp_path / "page.html").read_bytes() == page.encode()
