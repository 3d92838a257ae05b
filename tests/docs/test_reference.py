"""The API reference has what is public and nothing else: docs/api, one page for each room."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
from paths import ROOT
from rooms import ROOMS

HELPERS = {"arrays", "checks", "compiled", "files", "npz", "terminal", "comparison", "cli"}
"""Rooms that users do not import."""
PUBLIC = [f"ddpm_jax.{room}" for room in (*ROOMS, "samplers.guidance", "cli.main")]
PUBLIC = ["ddpm_jax", *(name for name in PUBLIC if name.removeprefix("ddpm_jax.") not in HELPERS)]


def read_page(path):
    """`(modules, names)` that a page documents, in full."""
    modules, names, module = [], [], ""
    pattern = r"^\.\. (current|auto)(\w+):: (\S+)$"
    for kind, what, name in re.findall(pattern, path.read_text(), flags=re.MULTILINE):
        if what == "module":
            module = name
            modules += [name] if kind == "auto" else []
        else:
            names.append(name if "." in name else f"{module}.{name}")
    return modules, names


PAGES = {path.stem: read_page(path) for path in (ROOT / "docs" / "api").glob("*.md")}
MODULES = {name for modules, _ in PAGES.values() for name in modules}
NAMES = [name for _, names in PAGES.values() for name in names]


def find(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def public_names(module):
    """What a module lists in `__all__`, or imports under the same name, as in `import a as a`."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    source = Path(module.__file__).read_text()
    names = re.findall(r"^ *from \S+ import (\w+) as \1$", source, flags=re.MULTILINE)
    stars = re.findall(r"^from (\S+) import \*$", source, flags=re.MULTILINE)
    return names + [n for star in stars for n in public_names(importlib.import_module(star))]


def test_each_listed_name_exists_and_is_listed_once():
    assert len(NAMES) > 300
    entries = [(name.rpartition(".")[2], id(find(name))) for name in NAMES]
    twice = [entry for entry in entries if entries.count(entry) > 1]
    assert twice == []


@pytest.mark.parametrize("room", PUBLIC)
def test_each_public_name_of_a_room_is_listed(room):
    """Under some path: `ddpm_jax.losses.simple_loss` is listed as `ddpm_jax.simple_loss`."""
    module = importlib.import_module(room)
    names = public_names(module)
    assert names
    missing = []
    for name in names:
        value = getattr(module, name)
        paths = [path for path in NAMES if path.endswith(f".{name}")]
        if inspect.ismodule(value):
            listed = value.__name__ in MODULES
        else:
            listed = any(find(path) is value for path in paths)
        missing += [] if listed else [name]
    assert missing == []


def test_each_page_is_in_the_table_of_contents():
    index = (ROOT / "docs" / "api" / "index.md").read_text()
    contents = index.partition("```{toctree}")[2].split()
    assert set(PAGES) - set(contents) == {"index"}
