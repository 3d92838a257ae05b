"""Notebooks of some pages, to run on a machine such as those of Google Colab.

    python docs/make_notebooks.py

writes docs/notebooks/*.ipynb, without outputs. It needs Python alone. A test fails if a notebook is
not what its page makes.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parent
PAGES = ("shortcuts", "own_network", "own_images")
INSTALL = """\
# There is no release on PyPI yet: `python -m build` in a checkout makes a wheel. Upload it, and
# write its name in place of ddpm_jax.
%pip install --quiet 'ddpm_jax[train]'"""
LINK = re.compile(r"(?<=\]\()([^)#\s]+)")


class Block(NamedTuple):
    """A part of a page: text, or what stands in a fence of backquotes or colons."""

    info: str
    """What follows the opening fence, as `{code-cell} ipython3` or `sh`; empty for text."""
    tags: tuple[str, ...]
    """Of a cell."""
    body: str
    line: int
    """At which the body begins in the file, counted from 1."""


def parse_page(text: str) -> list[Block]:
    """The blocks of a page of MyST Markdown, in order, without its front matter."""
    lines = text.splitlines()
    start = lines.index("---", 1) + 1 if lines[:1] == ["---"] else 0
    blocks, body, first, fence = [], [], start, None
    for number, line in enumerate(lines[start:], start):
        opening = re.fullmatch(r"\s*(`{3,}|:{3,})\s*(.*)", line) if fence is None else None
        if opening or line.strip() == fence:
            blocks.append(_block(info if fence else "", body, first))
            fence, info = (opening[1], opening[2].strip()) if opening else (None, "")
            body, first = [], number + 1
        else:
            body.append(line)
    if fence is not None:
        raise ValueError(f"line {first}: a block that does not end: {fence}{info}")
    blocks.append(_block("", body, first))
    return [block for block in blocks if block.info or block.body.strip()]


def _block(info: str, body: list[str], first: int) -> Block:
    options = 0
    if info.startswith("{"):
        while options < len(body) and re.match(r":[\w-]+:", body[options]):
            options += 1
    tags = re.findall(r"[\w-]+", " ".join(line[6:] for line in body[:options] if ":tags:" in line))
    return Block(info, tuple(tags), "\n".join(body[options:]), first + options + 1)


def make_notebook(page: str) -> str:
    """The notebook of a page, as the text of a file."""
    blocks = parse_page((DOCS / f"{page}.md").read_text())
    cells = [_cell("code", INSTALL)]
    text: list[str] = []
    equations: dict[str, int] = {}
    for block in blocks:
        if block.info.startswith("{code-cell}"):
            cells += _text_cells(text)
            text = []
            hidden = {"jupyter": {"source_hidden": True}} if "hide-input" in block.tags else {}
            cells.append(_cell("code", block.body, tags=list(block.tags), **hidden))
        else:
            text.append(_plain(block, equations))
    cells += _text_cells(text)
    cells[:2] = [cells[1], cells[0]]  # the title first
    for number, cell in enumerate(cells):
        cell["id"] = f"{page.replace('_', '-')}-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _cell(kind, source, **metadata):
    cell = {"cell_type": kind, "metadata": {k: v for k, v in metadata.items() if v}}
    cell["source"] = source.strip("\n").splitlines(keepends=True)
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def _text_cells(text):
    """A cell for each section."""
    sections = re.split(r"\n(?=## )", "\n\n".join(part.strip("\n") for part in text))
    return [_cell("markdown", section) for section in sections if section.strip()]


def _plain(block, equations):
    """A block of MyST Markdown as Markdown that notebooks know."""
    if block.info and not block.info.startswith("{"):
        return f"```{block.info}\n{block.body}\n```"
    text = _plain_text(block.body, equations)
    if not block.info:
        return text
    name, _, title = block.info.partition("}")
    if name == "{math":
        return f"$$\n{block.body}\n$$"
    quoted = [f"**{title.strip() or name[1:].capitalize()}.**", *text.strip().splitlines()]
    return "\n".join(f"> {line}".rstrip() for line in quoted)


def _plain_text(text, equations):
    def tag(match):
        equations[match[2]] = len(equations) + 1
        return f"{match[1].rstrip()}\n\\tag{{{equations[match[2]]}}}\n$$"

    text = re.sub(r"(\$\$(?:(?!\$\$).)*)\$\$ \(([\w-]+)\)", tag, text, flags=re.DOTALL)
    text = re.sub(r"\{eq\}`([\w-]+)`", lambda match: f"({equations.get(match[1], match[1])})", text)
    text = re.sub(r"\{\w+\}`([^`<]*?) ?<[^`]*>`", r"\1", text)  # {doc}`text <page>`
    text = re.sub(r"\{\w+\}`~?([^`]*)`", r"`\1`", text)  # {func}`ddpm_jax.q_sample`
    text = re.sub(r"(\]\([^)\s]+\))\{[^}]*\}", r"\1", text)  # ![](picture.png){width=32%}
    return LINK.sub(lambda match: _from_notebook(match[1]), text)


def _from_notebook(target):
    return target if ":" in target else f"../{target}"


if __name__ == "__main__":
    (DOCS / "notebooks").mkdir(exist_ok=True)
    for name in PAGES:
        (DOCS / "notebooks" / f"{name}.ipynb").write_text(make_notebook(name))
