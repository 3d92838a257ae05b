"""Argument parsing that the subcommands share."""

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from ddpm_jax import config as configs
from ddpm_jax.cli.help import ALL, SHORT, config_help
from ddpm_jax.config import Config, Member
from ddpm_jax.errors import UserError
from ddpm_jax.experiment import RunDirectory
from ddpm_jax.terminal import complain, escape

__all__ = [
    "DEFAULTS",
    "EXECUTED",
    "ParamsName",
    "check_at_least",
    "check_seed",
    "own_modules",
    "parse_config",
    "parse_for_run",
    "parse_options",
    "replace_members",
]

ParamsName = Literal["ema", "raw"]
DEFAULTS = Config()
"""The config whose members the help of a command shows if no run is given."""
EXECUTED = (
    "A config file is a Python program that is executed with your rights: read a file from somebody"
    " else before you run it."
)
"""A warning in the help of each command that takes a config file."""


def parse_options(options: Any, prog: str, arguments: Sequence[str], **how: Any) -> Any:
    """`tyro.cli`; its messages show control characters in arguments as `repr` does."""
    arguments = ["--help" if argument == ALL else argument for argument in arguments]
    prog, harmless = escape(prog), [escape(argument) for argument in arguments]
    if harmless != arguments:
        unseen = io.StringIO()
        with (
            contextlib.suppress(SystemExit),
            contextlib.redirect_stdout(unseen),
            contextlib.redirect_stderr(unseen),
        ):
            return tyro.cli(options, prog=prog, args=arguments, **how)
    return tyro.cli(options, prog=prog, args=harmless, **how)


def parse_config(command: str, arguments: Sequence[str]) -> Config:
    """The config named first, whose file is executed, with the overrides that follow it.

    A wrong name or type ends the process with exit code 2 and a message that names the field and
    the nearest right one.

    Raises:
        UserError: no config is named, it cannot be loaded, or a value is not of its field's
            type.
    """
    if arguments and arguments[0] in (*SHORT, ALL):
        default, path, overrides = Config(), "CONFIG", [arguments[0]]
    elif not arguments or arguments[0].startswith("-"):
        raise configs.ConfigError(
            f"ddpm-jax {command} wants a config first, a name or a file: ddpm-jax {command} digits"
        )
    else:
        path, overrides = arguments[0], list(arguments[1:])
        default = configs.load(path)
    default, overrides = replace_members(default, overrides, *own_modules(default))
    if set(SHORT) & set(overrides):
        print(config_help(command, path, default, EXECUTED, *own_modules(default)))
        raise SystemExit(0)
    config = parse_options(
        Config,
        f"ddpm-jax {command} {path}",
        overrides,
        description=escape(f"Fields of the config {path}, and their values in it. {EXECUTED}"),
        default=default,
    )
    return configs.checked(config, Config)


def check_at_least(options: Any, least: int, *names: str) -> None:
    """Raises UserError if one of these options was given and is below `least`."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}; it has to be {least} or more")


def check_seed(seed: int) -> None:
    """Raises UserError unless the seed is in the range of JAX's keys."""
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed is {seed}; it has to be in [0, 2^32)")


def replace_members(config: Any, arguments: Sequence[str], *modules: str) -> tuple[Any, list[str]]:
    """Removes options like `--sampler ddim` from the arguments, and changes the config's members.

    The fields of the family keep their values; other fields take their defaults. Options of fields,
    such as `--sampler.eta 0.2`, are left to `parse_options`.

    Args:
        config: a dataclass with members, or a member.
        arguments: of the command line.
        modules: that may define members, beside this package.

    Raises:
        ConfigError: no member of this name, or none is named.
    """
    families = configs.families(config)
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, equals, value = argument.partition("=")
        dotted = name.removeprefix("--").replace("-", "_")
        if not name.startswith("--") or dotted not in families:
            rest.append(argument)
            continue
        family = families[dotted]
        if not equals:
            if not waiting or waiting[0].startswith("-"):
                names = ", ".join(map(configs.member_name, configs.members(family, *modules)))
                raise configs.ConfigError(f"{name} needs one of {names}")
            value = waiting.pop(0)
        kind = configs.find_member(family, value, name, *modules)
        config = _with_member(config, dotted.split("."), kind, family)
        families = configs.families(config)
    return config, rest


def _with_member(config: Any, path: Sequence[str], kind: type[Member], family: type[Member]) -> Any:
    """`config` with a member of another class; fields without a default are `tyro.MISSING`."""
    name, *inner = path
    old = getattr(config, name)
    if inner:
        new = _with_member(old, inner, kind, family)
    elif type(old) is kind:
        return config
    else:
        common = {field.name: getattr(old, field.name) for field in dataclasses.fields(family)}
        defaults = {field.name: configs.default_of(field) for field in dataclasses.fields(kind)}
        new = _assembled(kind, defaults | common)
    return _assembled(type(config), vars(config) | {name: new})


def _assembled(kind: type, values: dict[str, Any]) -> Any:
    """A dataclass that may be incomplete: `tyro.MISSING` stands for each required option."""
    made: Any = object.__new__(kind)  # __init__ may check types
    for name, value in values.items():
        empty = value is dataclasses.MISSING
        object.__setattr__(made, name, tyro.MISSING if empty else value)
    return made


def parse_for_run(
    options: type, prog: str, arguments: Sequence[str], *, for_training: bool = False
) -> tuple[Any, Config]:
    """The options of a command that reads a run, and the run's config with these options.

    An option that a config also has, such as `sampler`, has the run's own member as its default:
    `--sampler.steps 50` changes a field of it, `--sampler ddim` takes another member. Only `hosts`
    has the default of a new config: the processes of the command are not those of the training.

    Args:
        options: a dataclass with a positional `run`.
        prog: for messages.
        arguments: of the command line.
        for_training: see `RunDirectory.read_config`.

    Raises:
        UserError: there is no run, or an option is wrong.
    """
    run = _run_in(arguments)
    if run is None or {"-h", "--help"} & set(arguments):
        return parse_options(options, prog, arguments), DEFAULTS  # exits with a message
    config = RunDirectory(run).read_config(for_training=for_training, report=complain)
    names = {field.name for field in dataclasses.fields(options)}
    shared = [field.name for field in dataclasses.fields(Config) if field.name in names - {"hosts"}]
    default = _assembled(
        options,
        {field.name: field.default for field in dataclasses.fields(options)}
        | {name: getattr(config, name) for name in shared}
        | {"run": run},
    )
    try:
        default, rest = replace_members(default, arguments, *own_modules(config))
    except configs.ConfigError as error:
        raise configs.ConfigError(
            f"{error} (classes of your own are known only from the run's own copy, config.py)"
        ) from error
    parsed = parse_options(options, prog, rest, default=default)
    changed = {name: getattr(parsed, name) for name in shared}
    return parsed, dataclasses.replace(config, **changed)


def _run_in(arguments: Sequence[str]) -> Path | None:
    """The run directory among the arguments: the first that is one, else the first name."""
    names = [Path(argument) for argument in arguments if not argument.startswith("-")]
    return next(
        (name for name in names if (name / "config.json").exists()), next(iter(names), None)
    )


def own_modules(config: Config) -> list[str]:
    """Modules that define members of a config, beside this package."""
    names = {type(member).__module__ for _, member in configs.members_of(config)}
    return sorted(name for name in names if not name.startswith("ddpm_jax."))
