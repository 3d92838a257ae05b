"""Where the project is, and what the tests read."""

from pathlib import Path

SUPPORT = Path(__file__).parent
TESTS = SUPPORT.parent
ROOT = TESTS.parent
HLO = SUPPORT / "hlo"
"""Programs that compilers made, as text."""
TINY = str(SUPPORT / "tiny.py")
"""The config of most runs."""
MIXED = str(SUPPORT / "mixed.py")
"""tiny.py with a network of the tests' own, which compiles in a tenth of the time."""
SCALED = str(SUPPORT / "scaled.py")
"""tiny.py with one parameter."""
