"""Commands in README and documentation: options, values and names are those of the programs."""

import configparser
import importlib
import re
import runpy
import shlex
from pathlib import Path

import pytest
import tyro
from pages import CONFIGS, PAGES, commands_of, commands_of_docstring, name_of, write_files
from paths import ROOT

from benchmarks.__main__ import SUITES
from ddpm_jax.cli import evaluate_samples
from ddpm_jax.config import Config
from ddpm_jax.experiment import RunDirectory
from ddpm_jax.terminal import make_console

PARSERS = ("parse_options", "parse_config", "parse_for_run")
STARTS = set(runpy.run_path(str(ROOT / "start.py"))["COMMANDS"])
SOMEBODYS = "from ddpm_jax.config import Config\n\ndef get_config():\n    return Config()\n"
"""A config file of a reader's own, which the page does not show."""
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=name_of)


class Parsed(BaseException):
    """Ends a command in place of what it would do with its arguments."""


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """Parses a line of a shell that has `ddpm-jax` in it, in a folder with the project's files.

    A run that the page has trained has that config; any other run has the default.
    """
    for name in ("configs", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    runs = {}
    monkeypatch.setattr(
        RunDirectory, "read_config", lambda self, **_: runs.get(str(self.path), Config())
    )

    def ends(function):
        def parse(*arguments, return_unknown_args=False, **options):
            if return_unknown_args:
                return function(*arguments, return_unknown_args=True, **options)
            parsed = function(*arguments, **options)
            if isinstance(parsed, Config):
                runs[parsed.workdir] = parsed
            raise Parsed

        return parse

    def parse_line(line):
        line = re.split(
            r"\s(?:2>&1|[|>&])", re.split(r"(?:^|[\s/])ddpm-jax\s", line, maxsplit=1)[1]
        )[0]
        command, *arguments = shlex.split(line)
        for name in arguments if command != "configs" else []:
            if re.fullmatch(r"(mine|my|my_\w+)\.py", name) and not Path(name).exists():
                Path(name).write_text(SOMEBODYS)
        module = importlib.import_module(f"ddpm_jax.cli.{command}")
        if command == "inspect" and arguments[0].startswith("runs/"):
            return
        with pytest.MonkeyPatch.context() as patch:
            for parses in (module, evaluate_samples):  # a form of evaluate, in a module of its own
                for name in set(PARSERS) & set(vars(parses)):
                    patch.setattr(parses, name, ends(getattr(parses, name)))
            try:
                module.run(arguments, make_console())
            except Parsed:
                return
            except SystemExit as end:
                if end.code:
                    raise
        shown = command in ("list", "configs") or "--help" in arguments
        assert shown, f"{command} did not parse its arguments"

    return parse_line


@EVERY_PAGE
def test_commands_of_a_page_parse(page, parse):
    write_files(page)
    for line, command in commands_of(page):
        if re.search(r"(^|[\s/])ddpm-jax\s", command):
            try:
                parse(command)
            except (Exception, SystemExit) as error:
                raise AssertionError(f"line {line}: {command}: {error}") from error


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_commands_of_a_config_file_parse(path, parse):
    commands = list(commands_of_docstring(path))
    assert commands
    for command in commands:
        parse(command)


@EVERY_PAGE
def test_other_commands_of_a_page_name_what_exists(page):
    for line, command in commands_of(page):
        words, where = shlex.split(command), f"line {line}: {command}"
        if "start.py" in words:
            assert words[words.index("start.py") + 1] in STARTS, where
        if "benchmarks" in words:
            suite, *options = words[words.index("benchmarks") + 1 :] or ["compare"]
            assert suite in {*SUITES, "compare"}, where
            if suite != "compare":
                settings = importlib.import_module(f"benchmarks.{suite}").Settings
                tyro.cli(settings, args=options, prog=where)
        for word in words:
            if re.fullmatch(r"(docs|configs|benchmarks|tests)/[\w/]+\.py", word):
                assert (ROOT / word).is_file(), where


@EVERY_PAGE
def test_extras_of_a_page_exist(page):
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    extras = set(metadata["options.extras_require"])
    named = re.findall(r"(?:ddpm_jax|\.)\[([\w,-]+)\]", page.read_text())
    assert {extra for names in named for extra in names.split(",")} <= extras
