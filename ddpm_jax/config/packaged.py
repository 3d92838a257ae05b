"""The configs that come with the package, which go by their names: `digits`, `cifar10`."""

import ast
import shutil
from pathlib import Path

from ddpm_jax.config.base import ConfigError
from ddpm_jax.config.values import nearest

__all__ = ["copy_packaged", "packaged", "packaged_file"]


def packaged() -> dict[str, str]:
    """The configs of the package and what they say of themselves; executes none.

    Returns:
        The first line of each docstring, by the names of the configs.

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
    """The file of the config of this name.

    Args:
        name: without a folder and without .py.

    Returns:
        Its path.

    Raises:
        ConfigError: none has this name.
    """
    path = _folder() / f"{name}.py"
    if not path.is_file():
        near = nearest(name, packaged())
        raise ConfigError(
            f"the config is {name!r}; no config of the package has this name{near}: `ddpm-jax"
            " configs` lists them, and the path of a file ends in .py"
        )
    return path


def copy_packaged(name: str, target: Path) -> None:
    """Copies the file of a config.

    Args:
        name: of the config, see `packaged`.
        target: the file to write, NAME.py.

    Raises:
        ConfigError: no such config, or a target that exists, or is no Python file in a folder.
    """
    path = packaged_file(name)
    if target.suffix != ".py":
        raise ConfigError(f"the copy is {str(target)!r}; its name has to end in .py")
    if not target.parent.is_dir():
        raise ConfigError(f"the copy is {str(target)!r}; there is no folder {target.parent}")
    try:
        with path.open("rb") as source, target.open("xb") as copy:
            shutil.copyfileobj(source, copy)
    except FileExistsError:
        raise ConfigError(
            f"the copy is {str(target)!r}, which is there already, and is not overwritten"
        ) from None


def is_name(text: str) -> bool:
    """Whether it is the name of a config of the package, if there is one, and no path."""
    return bool(text) and "\0" not in text and Path(text).name == text and not Path(text).suffix


def _folder() -> Path:
    """In the package where it was installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.with_name("configs")
