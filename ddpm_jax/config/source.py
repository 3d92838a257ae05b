"""Classes that a user's config file defines: their file, and how to bring them back.

A run stores a copy of the file. Only this file is copied: what it imports has to be installed.
"""

import ast
import hashlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ddpm_jax.config.base import ConfigError, Member
from ddpm_jax.config.config import Config, members_of

__all__ = ["OWN", "Source", "class_text", "execute", "same_definitions", "source_of"]

OWN = "config.py"
"""The run's copy of the file; a stored config calls its classes "config.py:Name"."""
PACKAGE = "ddpm_jax.config."
"""How the modules of this package begin."""
_SOURCE = "__ddpm_jax_source__"
"""The attribute of an executed module with what was executed."""


class Source(NamedTuple):
    """A config file."""

    name: str
    """Without its folder."""
    content: bytes
    """As on the disk: Python reads the encoding from it."""

    @property
    def sha256(self) -> str:
        """Of the content, in hex."""
        return hashlib.sha256(self.content).hexdigest()


def execute(source: Source, path: str) -> ModuleType:
    """Executes a config file as a module of its own, with the rights of this process.

    Args:
        source: the file.
        path: its name in tracebacks and `__file__`.
    """
    module = ModuleType(f"ddpm_jax_config_{source.sha256[:12]}")
    module.__file__ = path
    setattr(module, _SOURCE, source)
    sys.modules[module.__name__] = module  # where a dataclass of the file looks for its types
    try:
        exec(compile(source.content, path, "exec"), module.__dict__)
    except BaseException:
        sys.modules.pop(module.__name__, None)  # half a module is none
        raise
    return module


def class_text(member: Member) -> str:
    """How a stored config names the class of a member, "module:Name"."""
    kind = type(member)
    place = kind.__module__ if kind.__module__.startswith(PACKAGE) else OWN
    return f"{place}:{kind.__qualname__}"


def source_of(config: Config) -> Source | None:
    """The file that defines those members that are not of this package; None if there are none.

    Raises:
        ConfigError: a class that a copy of one file does not bring back.
    """
    source: Source | None = None
    for name, member in members_of(config):
        kind = type(member)
        if kind.__module__.startswith(PACKAGE):
            continue
        if "." in kind.__qualname__:
            raise ConfigError(
                f"{name} is a {kind.__qualname__}; define its class at the top level of the file,"
                " so that the run can find it again"
            )
        own = _source_of_module(kind.__module__)
        if own is None or (source is not None and own.content != source.content):
            raise ConfigError(
                f"{name} is {kind.__module__}:{kind.__qualname__}; a run stores a copy of its"
                " config file alone, so define the class there, as in"
                f" class {kind.__qualname__}({kind.__module__}.{kind.__qualname__}): ..."
            )
        source = own
    return source


def same_definitions(first: bytes, second: bytes) -> bool:
    """Whether two files differ in `get_config`, comments and layout alone."""
    try:
        one, other = (ast.dump(_without_get_config(content)) for content in (first, second))
    except (SyntaxError, ValueError):
        return False
    return one == other


def _without_get_config(content: bytes) -> ast.Module:
    tree = ast.parse(content)
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.FunctionDef) and node.name == "get_config")
    ]
    return tree


def _source_of_module(name: str) -> Source | None:
    """The file that was executed as this module: a config file, or the script that runs."""
    module: Any = sys.modules.get(name)
    known: Source | None = getattr(module, _SOURCE, None)
    if known is None and name == "__main__" and getattr(module, "__file__", None):
        path = Path(module.__file__)
        known = Source(path.name, path.read_bytes())
    return known
