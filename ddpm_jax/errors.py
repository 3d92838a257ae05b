"""What a person can mend: the command line prints it as one line and leaves with exit code 2."""

import importlib.util

__all__ = ["MissingExtra", "UserError", "first_line", "is_installed", "require"]


class UserError(ValueError):
    """One sentence that names the argument, its value, and what would do."""


class MissingExtra(UserError, ImportError):  # noqa: N818 - it names what is missing
    """A package that an extra of this one brings is not installed."""

    def __init__(self, name: str, package: str, extra: str) -> None:
        """Makes the sentence: `name` needs `package`, and how to install `extra`.

        Args:
            name: what needs it: a module, a command, a data set.
            package: as pip calls it.
            extra: of this package, which brings it.
        """
        super().__init__(
            f"{name} needs {package}, which is not installed: pip install 'ddpm_jax[{extra}]'"
        )


def require(name: str, extra: str, *modules: str) -> None:
    """Checks that modules of other packages can be imported; imports none of them.

    Args:
        name: of the module that needs them.
        extra: of this package, which brings them.
        *modules: by the names that are imported.

    Raises:
        MissingExtra: one is not installed.
    """
    for module in modules:
        if not is_installed(module):
            raise MissingExtra(name, _PACKAGES.get(module, module), extra)


_PACKAGES = {"PIL": "pillow", "orbax.checkpoint": "orbax-checkpoint", "sklearn": "scikit-learn"}
"""What pip calls a module, where that is another name."""


def is_installed(module: str) -> bool:
    """Whether a module can be imported; imports none but the packages that it is in.

    Args:
        module: a name such as `orbax.checkpoint`.

    Returns:
        Whether Python finds it.
    """
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def first_line(error: Exception) -> str:
    """What an exception says in its first line that is not empty, without a stop."""
    lines = (line.strip().rstrip(".: ") for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
