"""`ddpm-jax configs`: lists the configs of the package, and copies one to edit."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ddpm_jax.config import copy_packaged, packaged
from ddpm_jax.errors import UserError
from ddpm_jax.terminal import say

__all__ = ["run"]

_USAGE = """usage: ddpm-jax configs
       ddpm-jax configs copy NAME FILE.py

Lists the configs of the package. Each command that takes a CONFIG takes one of these names, or the
path of your own file. `copy` writes a copy that you can edit; it does not overwrite a file.
(`ddpm-jax list` shows what a config can choose from.)"""


def run(arguments: Sequence[str], console: Console) -> None:
    """Prints the names, or copies the file of one."""
    match list(arguments):
        case ["-h" | "--help"] | ["copy", "-h" | "--help"]:
            print(_USAGE)
        case []:
            sentences = packaged()
            width = max(map(len, sentences))
            for name, sentence in sentences.items():
                say(console, f"{name:<{width}}  {sentence}")
        case ["copy", name, target]:
            copy_packaged(name, Path(target))
            say(console, f"{target} is a copy of the config {name}: ddpm-jax train {target}")
        case _:
            given = " ".join(map(repr, arguments))
            raise UserError(
                f"ddpm-jax configs takes no arguments, or copy NAME FILE.py, not {given}"
            )
