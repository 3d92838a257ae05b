"""The config file of a user that defines classes, and how a run loads them again.

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
"""Name of the run's copy of the config file; a stored config calls its classes "config.py:Name"."""
PACKAGE = "ddpm_jax.config."
"""Prefix of the modules of this package."""
_SOURCE = "__ddpm_jax_source__"
"""Attribute of an executed module that holds its `Source`."""


class Source(NamedTuple):
    """A config file."""

    name: str
    """File name without the folder."""
    content: bytes
    """Content of the file; Python finds its encoding."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the content, in hex."""
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
    sys.modules[module.__name__] = module  # a dataclass of the file looks for its types there
    try:
        exec(compile(source.content, path, "exec"), module.__dict__)
    except BaseException:
        sys.modules.pop(module.__name__, None)  # the module is incomplete
        raise
    return module


def class_text(member: Member) -> str:
    """The name of a member's class in a stored config, "module:Name"."""
    kind = type(member)
    place = kind.__module__ if kind.__module__.startswith(PACKAGE) else OWN
    return f"{place}:{kind.__qualname__}"


def source_of(config: Config) -> Source | None:
    """The file that defines those members of a config that are not of this package.

    Args:
        config: a config.

    Returns:
        The file, or None if all members are of this package.

    Raises:
        ConfigError: a copy of one file is not enough to load a class again.
    """
    source: Source | None = None
    for name, member in members_of(config):
        kind = type(member)
        if kind.__module__.startswith(PACKAGE):
            continue
        if "." in kind.__qualname__:
            raise ConfigError(
                f"{name} is a {kind.__qualname__}; define its class at the top level of the file,"
                " so that the run can load it again"
            )
        own = _source_of_module(kind.__module__)
        if own is None or (source is not None and own.content != source.content):
            raise ConfigError(
                f"{name} is {kind.__module__}:{kind.__qualname__}; a run stores a copy of its"
                " config file only, so define the class there, as in"
                f" class {kind.__qualname__}({kind.__module__}.{kind.__qualname__}): ..."
            )
        source = own
    return source


def same_definitions(first: bytes, second: bytes) -> bool:
    """Whether two config files define the same classes.

    Args:
        first: content of a file.
        second: content of another file.

    Returns:
        True if the files differ only in `get_config`, comments and layout.
    """
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
