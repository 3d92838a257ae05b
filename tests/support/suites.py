"""What the tests of the benchmarks share."""

from pathlib import Path

from paths import MIXED

from benchmarks import scaling
from benchmarks.__main__ import main


def run(capsys, *arguments):
    """Exit code, output and errors of a command."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as left:  # by tyro
        code = left.code
    said = capsys.readouterr()
    return code, said.out, said.err


def timed_config(path=MIXED):
    return scaling.timed_config(scaling.Settings(timed_config=Path(path), timed_batch=8), 4)
