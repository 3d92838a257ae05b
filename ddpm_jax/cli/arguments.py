"""What the subcommands' argument parsing has in common."""

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any

import tyro

from ddpm_jax import config as configs
from ddpm_jax.config import Config
from ddpm_jax.data import ImageSpec
from ddpm_jax.errors import UserError
from ddpm_jax.experiment import Experiment, Sampling, sampling_of
from ddpm_jax.terminal import escape

__all__ = [
    "EXECUTED",
    "check_at_least",
    "check_seed",
    "parse_config",
    "parse_options",
    "sampling_from",
]

_MOST_NAMES = 12
"""A sentence names at most so many classes."""
EXECUTED = (
    "A config file is a Python program: it is executed with your rights, as a script would be, so"
    " read one from somebody else before you run it."
)
"""What the help of each command that takes a config file says."""


def parse_options(options: Any, prog: str, arguments: Sequence[str], **how: Any) -> Any:
    """`tyro.cli`; its messages show what a terminal would obey in arguments as `repr` does."""
    prog, harmless = escape(prog), [escape(argument) for argument in arguments]
    if harmless != list(arguments):
        unseen = io.StringIO()
        with (
            contextlib.suppress(SystemExit),
            contextlib.redirect_stdout(unseen),
            contextlib.redirect_stderr(unseen),
        ):
            return tyro.cli(options, prog=prog, args=arguments, **how)
    return tyro.cli(options, prog=prog, args=harmless, **how)


def parse_config(command: str, arguments: Sequence[str]) -> Config:
    """The config file named first, which is executed, with the overrides that follow it.

    A wrong name or type ends the process with exit code 2 and a message that names the field and
    the nearest right one.

    Raises:
        UserError: no config file is named, it cannot be loaded, or a value is not of its field's
            type.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        default, path, overrides = Config(), "CONFIG", ["--help"]
    elif not arguments or arguments[0].startswith("-"):
        raise configs.ConfigError(
            f"ddpm-jax {command} wants a config file first: ddpm-jax {command} configs/digits.py"
        )
    else:
        path, overrides = arguments[0], list(arguments[1:])
        default = configs.load(path)
    config = parse_options(
        Config,
        f"ddpm-jax {command} {path}",
        overrides,
        description=escape(f"Fields of the config {path}, and their values in it. {EXECUTED}"),
        default=default,
    )
    return configs.checked(config, Config)


def check_at_least(asked: Any, least: int, *names: str) -> None:
    """Raises UserError if an option of one of these names was given and is less."""
    for name in names:
        value = getattr(asked, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}; it has to be {least} or more")


def check_seed(seed: int) -> None:
    """Raises UserError unless JAX's keys can be made of it."""
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed is {seed}; it has to be in [0, 2^32)")


def sampling_from(options: Any, experiment: Experiment) -> Sampling:
    """How the run samples by itself, with what was given on the command line in its place.

    Args:
        options: with some attributes of the names of `Sampling`; None says nothing. `label` is
            text, the name of a class or its number.
        experiment: the run's.

    Raises:
        UserError: no images can be drawn so.
    """
    how = sampling_of(experiment.config.evaluation)
    given = {name: getattr(options, name, None) for name in how._fields}
    label, num_steps = given.pop("label"), experiment.process.num_steps
    how = how._replace(**{name: value for name, value in given.items() if value is not None})
    if how.steps is not None and not 1 <= how.steps <= num_steps:
        raise UserError(f"--steps is {how.steps}; the chain has 1 to T = {num_steps}")
    if not math.isfinite(how.guidance):
        raise UserError(f"--guidance is {how.guidance}; it has to be finite")
    has_classes = experiment.config.model.classes > 0
    for name, used in (("label", label is not None), ("guidance", how.guidance != 1.0)):
        if used and not has_classes:
            raise UserError(f"--{name} is for runs with classes; this one has none")
    return how if label is None else how._replace(label=_label(label, experiment.spec))


def _label(text: str, spec: ImageSpec) -> int:
    """The class of this name, or else of this number, if it was trained."""
    names = spec.classes or ()
    if text in names:
        label = names.index(text)
    elif text.isdecimal() and int(text) < len(names):
        label = int(text)
    else:
        raise UserError(f"--label is {text!r}; the run has the classes {_named(names)}")
    if label not in spec.trained_classes:
        trained = tuple(names[label] for label in spec.trained_classes)
        raise UserError(
            f"--label is {text!r}, a class without training images, which the network never saw;"
            f" it was trained on {_named(trained)}"
        )
    return label


def _named(names: Sequence[str]) -> str:
    """All of a few; of many the first and the last."""
    if len(names) > _MOST_NAMES:
        names = [*names[: _MOST_NAMES - 1], "...", names[-1]]
    return ", ".join(names)
