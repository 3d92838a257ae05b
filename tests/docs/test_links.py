"""Links of README and documentation lead somewhere; nothing is asked of a network."""

import importlib
import re
from urllib.parse import urlsplit

import pytest
from pages import DOCS, PAGES, anchors_of, links_of, name_of, roles_of

from ddpm_jax.config import packaged

EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=name_of)


@EVERY_PAGE
def test_links_between_files_lead_to_a_file_and_a_heading(page):
    broken = []
    for target in links_of(page):
        path, _, anchor = target.partition("#")
        if ":" in target:
            continue
        file = (page.parent / path).resolve() if path else page
        found = file.exists() and (not anchor or anchor in anchors_of(file))
        broken += [] if found else [target]
    assert broken == []


@EVERY_PAGE
def test_links_to_the_web_have_the_form(page):
    """`sphinx -b linkcheck` asks their servers: python3 start.py links."""
    for target in links_of(page):
        if ":" in target:
            parts = urlsplit(target)
            assert parts.scheme == "https", target
            assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), target
            assert not re.search(r"[\s<>`]|[.,;:]$", target), target
            if parts.netloc == "arxiv.org":
                assert re.fullmatch(r"/abs/\d{4}\.\d{5}(v\d+)?|/abs/[\w-]+/\d{7}", parts.path), (
                    target
                )


@EVERY_PAGE
def test_links_to_the_reference_name_what_there_is(page):
    for role, target in roles_of(page):
        if role == "mod":
            importlib.import_module(target)
        else:
            assert find(target) is not None, target


def find(path):
    """The object of a dotted name: of a module, or of a class in one."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        return getattr(find(module), name, None)


def test_every_page_is_in_the_table_of_contents():
    contents = (DOCS / "index.md").read_text()
    for page in PAGES:
        if page.parent == DOCS and page.stem != "index":
            assert f"\n{page.stem}\n" in contents, page


def test_start_names_every_packaged_config():
    table = (DOCS / "start.md").read_text().split("The configs of the package", 1)[1]
    assert [name for name in packaged() if f"`{name}`" not in table] == []
