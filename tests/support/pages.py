"""The pages of the documentation: what stands in them, and how their code is run."""

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import matplotlib
import pytest
from paths import ROOT

from ddpm_jax.cli.main import main

DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))

_spec = importlib.util.spec_from_file_location("make_notebooks", DOCS / "make_notebooks.py")
make_notebooks = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = make_notebooks
_spec.loader.exec_module(make_notebooks)


TEXTS = ("", "{note}", "{tip}", "{important}", "{warning}")
"""What blocks of text begin with."""


def name_of(path):
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def blocks_of(path):
    return make_notebooks.parse_page(path.read_text())


def is_cell(block):
    return block.info.startswith("{code-cell}")


def code_of(path):
    """Cells and blocks of Python, in order."""
    return [block for block in blocks_of(path) if is_cell(block) or block.info == "python"]


def write_files(path):
    """The files that a page has its reader write: cells of `%%writefile`, `# name.py` on top."""
    for block in code_of(path):
        if magic := re.match(r"%%writefile (-a )?(\S+)\n", block.body):
            with open(magic[2], "a" if magic[1] else "w") as file:
                file.write(block.body[magic.end() :] + "\n")
        elif title := re.match(r"# (\w+\.py)\b.*\n", block.body):
            Path(title[1]).write_text(block.body + "\n")


def run_page(path):
    """Runs a page's code in the current folder, in one namespace; an error names page and line."""
    write_files(path)
    module = types.ModuleType("page")  # where the classes of the page are looked for
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "page", module)
        patch.syspath_prepend(".")
        for block in code_of(path):
            try:
                run_block(block, path, vars(module))
            except Exception as error:
                error.add_note(f"in {name_of(path)}, the block at line {block.line}")
                raise


def run_block(block, path, namespace):
    """Runs Python, with the little of IPython that pages use: a shell's commands after `!`."""
    if block.body.startswith("%%writefile"):
        return
    source = block.body
    if re.search(r"^!", source, flags=re.MULTILINE):
        source = "\n".join(map(as_python, join_continued(source)))
    namespace["_shell"] = shell
    try:
        exec(compile("\n" * (block.line - 1) + source, str(path), "exec"), namespace)
    except Exception:
        if "raises-exception" not in block.tags:
            raise


def as_python(line):
    return f"_shell({line[1:]!r})" if line.startswith("!") else line


def shell(command):
    """Runs a line of a shell; our own command in this process, which has imported everything."""
    arguments = re.split(r" (?:2>&1|[|>]) ?", command)[0]
    if arguments.startswith("ddpm-jax "):
        code = main(shlex.split(arguments)[1:])
    else:
        code = subprocess.run(command, shell=True, stdout=subprocess.DEVNULL).returncode
    if code:
        raise RuntimeError(f"exit code {code} of {command}")


def join_continued(text):
    return text.replace("\\\n", " ").splitlines()


def commands_of(path):
    """`(line, command)` of what a reader types: in blocks of `sh`, and after `!` in cells."""
    for block in blocks_of(path):
        if block.info == "sh":
            lines = join_continued(block.body)
        elif is_cell(block):
            lines = [line[1:] for line in join_continued(block.body) if line.startswith("!")]
        elif not block.info:  # four spaces make a block of code, too
            text = "\n".join(join_continued(block.body))
            lines = re.findall(r"^    (?:\S+/)?((?:ddpm-jax|python3?|pip) .*)", text, re.MULTILINE)
        else:
            lines = []
        for line in lines:
            command = re.sub(r"(^|\s)#.*", "", line).strip()
            if command:
                yield block.line, command


def commands_of_docstring(path):
    """What the docstring of a Python file has its reader type; 8 spaces continue a line."""
    text = re.sub(r"\n {8,}", " ", ast.get_docstring(ast.parse(path.read_text())))
    for command in re.findall(r"^    (ddpm-jax .*)", text, re.MULTILINE):
        yield re.sub(r"\s#.*", "", command).strip()


def anchors_of(path):
    """Of the headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links_of(path):
    """Targets of links and pictures, without those in blocks of code."""
    text = "\n".join(block.body for block in blocks_of(path) if block.info in TEXTS)
    text = re.sub(r"`[^`\n]*`", "``", text)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    return targets + re.findall(r"(?<!\()https?://[^\s)>\"]*[^\s)>\".,;:]", text)


def roles_of(path):
    """`(role, name)` of links to the reference, as {func}`ddpm_jax.q_sample`."""
    links = re.findall(r"\{(func|class|meth|mod|data|attr|exc)\}`~?([^`]+)`", path.read_text())
    return [(role, re.sub(r".*<~?(.*)>", r"\1", name)) for role, name in links]


if __name__ == "__main__":
    matplotlib.use("agg")
    run_page(Path(sys.argv[1]))
