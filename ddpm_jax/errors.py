"""What a person can mend: the command line prints it as one line and leaves with exit code 2."""

__all__ = ["UserError"]


class UserError(ValueError):
    """One sentence that names the argument, its value, and what would do."""
