"""What a person can mend: the command line prints it as one line and leaves with exit code 2."""

__all__ = ["UserError", "first_line"]


class UserError(ValueError):
    """One sentence that names the argument, its value, and what would do."""


def first_line(error: Exception) -> str:
    """What an exception says in its first line that is not empty, without a stop."""
    lines = (line.strip().rstrip(".: ") for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
