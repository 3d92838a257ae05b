"""Help of at most two screens: the options that most people change, and where the others stand.

`--help-all` is tyro's help, with every field.
"""

import ast
import dataclasses
import inspect
import itertools
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ddpm_jax.config import (
    Config,
    Member,
    default_of,
    families,
    member_name,
    members,
    members_of,
)
from ddpm_jax.terminal import escape

__all__ = ["ALL", "COMMON", "SHORT", "config_help", "options_help"]

SHORT = ("-h", "--help")
ALL = "--help-all"
COMMON = (
    *("workdir", "seed"),
    *("train.steps", "train.batch_size", "train.log_every", "train.save_every", "train.draw_every"),
    *("data.name", "data.path", "preparation.size", "preparation.flip"),
    *("network.channels", "network.dropout", "network.dtype", "schedule.num_steps"),
    *("optimizer.learning_rate", "optimizer.warmup_steps", "sampler.steps"),
    *("mesh.data", "mesh.fsdp"),
)
"""Fields of a config in its short help, of those that its members have. The fields of members that
are not of this package are there, too."""
_WIDTH = 80
_COLUMN = 36


def config_help(command: str, path: str, config: Config, executed: str, *modules: str) -> str:
    """Of a command that takes a config.

    Args:
        command: as `train`.
        path: the name of the config, as it was given.
        config: whose values are shown.
        executed: what to know before a config file is executed.
        modules: that may define members, beside this package.
    """
    own = [
        f"{name}.{field.name}"
        for name, member in members_of(config)
        if not type(member).__module__.startswith("ddpm_jax.")
        for field in dataclasses.fields(member)
        if field.name in inspect.get_annotations(type(member))
    ]
    lines = [
        *(f"usage: ddpm-jax {command} {path} [--FIELD VALUE ...]", ""),
        *_wrapped(
            "CONFIG is the name of one (`ddpm-jax configs` lists them) or the path of a file."
            f" {executed}"
        ),
        *("", "Common fields, and their values in it:" if path != "CONFIG" else "Common fields:"),
        *_rows(config, (*COMMON, *own)),
        *("", "Members, which `ddpm-jax list` explains; each has fields of its own:"),
    ]
    for name, family in families().items():
        if "." not in name:
            current = member_name(type(getattr(config, name)))
            others = [member_name(kind) for kind in members(family, *modules)]
            others = [other for other in others if other != current]
            if others:
                lines += _row(f"--{_dashed(name)} {current}", f"or {', '.join(others)}")
    return "\n".join([*lines, "", *_wrapped(f"All fields: ddpm-jax {command} {path} {ALL}")])


def options_help(command: str, options: type) -> str:
    """Of a command with options of its own: all of them, but of members only that they have fields.

    Args:
        command: with its positional arguments, as `evaluate RUN`.
        options: the dataclass of its options; one without a default is a positional argument.
    """
    lines = [f"usage: ddpm-jax {command} [--OPTION VALUE ...]", ""]
    lines += [*_wrapped(options.__doc__ or ""), "", "Options, and their defaults:"]
    texts = _documentation(options)
    for field in dataclasses.fields(options):
        default = default_of(field)
        option = f"--{_dashed(field.name)}"
        if isinstance(default, Member):
            lines += _row(f"{option}.FIELD", texts.get(field.name, ""))
        elif default is not dataclasses.MISSING:
            lines += _row(*_with_value(option, default, texts.get(field.name, "")))
    command = command.split()[0]
    return "\n".join([*lines, "", *_wrapped(f"All fields: ddpm-jax {command} {ALL}")])


def _rows(values: Any, names: Iterable[str]) -> Iterator[str]:
    for dotted in names:
        *path, name = dotted.split(".")
        owner = values
        for part in path:
            owner = getattr(owner, part)
        if hasattr(owner, name):
            text = _documentation(type(owner)).get(name, "")
            yield from _row(*_with_value(f"--{_dashed(dotted)}", getattr(owner, name), text))


def _row(option: str, text: str) -> list[str]:
    """An option, and what it is beside it; below it if it is long."""
    lines = textwrap.wrap(text, _WIDTH - _COLUMN, break_on_hyphens=False) or [""]
    option = f"  {escape(option)}"
    if len(option) < _COLUMN:
        option = f"{option:<{_COLUMN}}{lines.pop(0)}".rstrip()
    return [option, *(" " * _COLUMN + line for line in lines)]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(escape(" ".join(text.split())), _WIDTH)


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _with_value(option: str, value: Any, text: str) -> tuple[str, str]:
    """The option with a value as the command line takes it, which a switch does not."""
    if isinstance(value, bool):
        return option, f"{text} ({'on' if value else 'off'})".strip()
    if isinstance(value, tuple):
        return f"{option} {' '.join(map(str, value))}", text
    return f"{option} {value}", text


def _documentation(kind: type) -> Mapping[str, str]:
    """The docstrings below the fields of a class, by names."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError, SyntaxError):  # built in, or its file is not there any more
            continue
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for field, text in itertools.pairwise(body):
            match field, text:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(words))),
                ):
                    texts[name] = " ".join(words.split())
    return texts
