"""What the suites' command lines have in common."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddpm_jax.config import Config, UNet
from ddpm_jax.errors import UserError

__all__ = ["Common", "Say", "as_json", "check_values", "parse_sizes", "unet_of"]

Say = Callable[[str], None]
"""Tells what is being measured, while it is."""


@dataclasses.dataclass(frozen=True)
class Common:
    """Options of every suite."""

    repeats: int = 50
    """Runs of each row that count, at most."""
    seconds: float = 1.0
    """Time for the runs of each row; there are at least three."""
    seed: int = 0
    """Of data, noise and parameters."""
    out: Path = Path("runs/benchmarks")
    """Folder for the JSON file and the picture, which replace those of an earlier run."""


def as_json(settings: Common) -> dict[str, Any]:
    """The settings as JSON has them; paths are strings."""
    return json.loads(json.dumps(dataclasses.asdict(settings), default=str))


def check_values(settings: Common, *, distinct: tuple[str, ...] = ()) -> None:
    """Raises UserError for a number that is not above 0, an empty list, or one with repetitions.

    Only the lists that `distinct` names may not have the same value twice.
    """
    for name, value in dataclasses.asdict(settings).items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, tuple) and not value:
            raise UserError(f"{option} is empty; give at least one value")
        if name in distinct and isinstance(value, tuple) and len(set(value)) < len(value):
            raise UserError(f"{option} is {' '.join(map(str, value))}; give each value once")
        for number in value if isinstance(value, tuple) else (value,):
            is_number = isinstance(number, int | float) and not isinstance(number, bool)
            if name == "seed":
                if not 0 <= number < 2**32:
                    raise UserError(f"--seed is {number}; it has to be in [0, 2^32)")
            elif is_number and not 0 < number < float("inf"):
                raise UserError(f"{option} is {number}; it has to be above 0")


def parse_sizes(sizes: tuple[str, ...]) -> dict[str, tuple[int, int, int]]:
    """Height, width and channels by their names.

    Raises:
        UserError: a size that is not like 32x32x3.
    """
    parsed = {}
    for size in sizes:
        parts = size.split("x")
        if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise UserError(f"--sizes has {size!r}; a size is height x width x channels: 32x32x3")
        height, width, channels = map(int, parts)
        parsed[size] = (height, width, channels)
    return parsed


def unet_of(config: Config) -> UNet:
    """The network of a config, whose size a suite is to change.

    Raises:
        UserError: it is of another class.
    """
    if not isinstance(config.network, UNet):
        raise UserError(
            f"network is {type(config.network).__name__}; this suite has to have a UNet, whose"
            " fields it sets"
        )
    return config.network
