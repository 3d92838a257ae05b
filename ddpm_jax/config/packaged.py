"""The configs of the package, which have names: `digits`, `cifar10`."""

import ast
import os
from pathlib import Path

from ddpm_jax.config.base import ConfigError
from ddpm_jax.config.values import nearest
from ddpm_jax.files import whole_file

__all__ = ["copy_packaged", "packaged", "packaged_file"]


def packaged() -> dict[str, str]:
    """The configs of the package; none of them is executed.

    Returns:
        The first line of each config's docstring, by its name.

    Example:
        >>> from ddpm_jax import config
        >>> config.packaged()["digits_correlated"]
        "Scikit-learn's digits under noise that is correlated between neighbouring pixels."
    """
    return {
        path.stem: (ast.get_docstring(ast.parse(path.read_bytes())) or "").partition("\n")[0]
        for path in sorted(_folder().glob("[!_]*.py"))
    }


def packaged_file(name: str) -> Path:
    """The file of a config of the package.

    Args:
        name: of the config, such as "digits".

    Returns:
        The path of the file.

    Raises:
        ConfigError: no config has this name.
    """
    path = _folder() / f"{name}.py"
    if not path.is_file():
        near = nearest(name, packaged())
        raise ConfigError(
            f"the config is {name!r}; no config of the package has this name{near}: `ddpm-jax"
            " configs` lists them, and the path of a file has to end in .py"
        )
    return path


def copy_packaged(name: str, target: Path) -> None:
    """Copies the file of a config of the package.

    Args:
        name: of the config.
        target: path of the copy; its name ends in .py.

    Raises:
        ConfigError: no config has this name; or the target exists, its folder does not, or its name
            has another ending.
    """
    path = packaged_file(name)
    if target.suffix != ".py":
        raise ConfigError(f"the copy is {str(target)!r}; its name has to end in .py")
    if not target.parent.is_dir():
        raise ConfigError(f"the copy is {str(target)!r}; there is no folder {target.parent}")
    if os.path.lexists(target):
        raise ConfigError(
            f"the copy is {str(target)!r}, which exists already, and is not overwritten"
        )
    with whole_file(target) as file:
        file.write(path.read_bytes())


def is_name(text: str) -> bool:
    """Whether a text can be the name of a config of the package: it is not a path."""
    return bool(text) and "\0" not in text and Path(text).name == text and not Path(text).suffix


def _folder() -> Path:
    """The folder of the configs: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.with_name("configs")
