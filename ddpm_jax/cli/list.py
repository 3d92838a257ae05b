"""`ddpm-jax list [FAMILY]`."""

import dataclasses
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ddpm_jax.config import Member, default_of, families, member_name, members, nearest, shown
from ddpm_jax.errors import UserError
from ddpm_jax.terminal import cell, say

__all__ = ["run"]

_USAGE = """usage: ddpm-jax list [FAMILY]

Lists the members of each family that a config can choose from, or of one, with their fields.
(`ddpm-jax configs` lists the configs of the package.)"""


def run(arguments: Sequence[str], console: Console) -> None:
    """Prints a table for each family, read from the declarations."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return
    known = families()
    if len(arguments) > 1:
        raise UserError(f"list takes at most one family; {len(arguments)} were given")
    for name in arguments:
        if name not in known:
            raise UserError(
                f"the family is {shown(name)}; it has to be one of {', '.join(known)}"
                f"{nearest(name, known)}"
            )
    for name in arguments or known:
        console.print(_table(name, known[name]))
    say(console, "--FAMILY MEMBER chooses a member, --FAMILY.FIELD VALUE changes a field")


def _table(name: str, family: type[Member]) -> Table:
    shared = {field.name for field in dataclasses.fields(family)}
    title = f"{name}: {_first_line(family)}"
    if fields := _fields(family, set()):
        title += f" All have {fields}."
    table = Table(title=cell(title), title_justify="left", expand=False)
    for heading in ("member", "what it is", "its own fields"):
        table.add_column(heading)
    for kind in members(family):
        table.add_row(cell(member_name(kind)), cell(_first_line(kind)), cell(_fields(kind, shared)))
    return table


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def _fields(kind: type[Member], without: set[str]) -> str:
    return ", ".join(
        f"{field.name}={_default(field)}"
        for field in dataclasses.fields(kind)
        if field.name not in without
    )


def _default(field: dataclasses.Field[object]) -> str:
    default = default_of(field)
    if default is dataclasses.MISSING:
        return "..."
    return member_name(type(default)) if isinstance(default, Member) else shown(default)
