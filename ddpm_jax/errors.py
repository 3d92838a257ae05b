"""Errors that the user can fix: the command line prints one line and exits with code 2."""

import importlib.util

__all__ = ["MissingExtra", "UserError", "first_line", "is_installed", "require"]


class UserError(ValueError):
    """One sentence that names the argument, its value, and what would do."""


class MissingExtra(UserError, ImportError):  # noqa: N818 - it names what is missing
    """A package is not installed that comes with an extra of this package.

    Args:
        name: of the module that needs the package.
        package: the missing package.
        extra: the extra to install.
    """

    def __init__(self, name: str, package: str, extra: str) -> None:
        super().__init__(
            f"{name} needs {package}, which is not installed: pip install 'ddpm_jax[{extra}]'"
        )


def require(name: str, extra: str, *modules: str) -> None:
    """Checks that modules of other packages are installed, without importing them.

    Args:
        name: of the module that needs them.
        extra: the extra of this package that installs them.
        *modules: names of the modules, as they are imported.

    Raises:
        MissingExtra: a module is not installed.
    """
    for module in modules:
        if not is_installed(module):
            raise MissingExtra(name, _PACKAGES.get(module, module), extra)


_PACKAGES = {"PIL": "pillow", "orbax.checkpoint": "orbax-checkpoint", "sklearn": "scikit-learn"}
"""Names of packages for pip, if they differ from the name of the module."""


def is_installed(module: str) -> bool:
    """Whether a module is installed; only the packages that contain it are imported.

    Args:
        module: its name, such as "orbax.checkpoint".

    Returns:
        True if it can be imported.
    """
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that contains it
        return False


def first_line(error: Exception) -> str:
    """The first line of an exception's text that is not empty, without the final stop.

    Args:
        error: any exception.

    Returns:
        The line, or the name of the exception's class if there is no text.
    """
    lines = (line.strip().rstrip(".: ") for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
