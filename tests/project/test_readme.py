"""What the README says is run."""

import re

import pytest
from paths import ROOT

from ddpm_jax.cli.main import COMMANDS

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
def test_python_blocks_run(code):
    exec(compile(code, "README.md", "exec"), {})


def test_commands_and_files_exist():
    commands = re.findall(r"ddpm-jax (\w+)", README)
    assert commands
    assert set(commands) <= set(COMMANDS)
    for path in re.findall(r"(?:configs|docs)/\w+\.\w+", README):
        assert (ROOT / path).is_file(), path


def test_every_shipped_config_is_in_the_table():
    for path in (ROOT / "configs").glob("*.py"):
        assert f"| `configs/{path.name}` |" in README
