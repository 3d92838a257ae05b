"""benchmarks.machinery, with a Mixer in place of the network that it is asked to time."""

import pytest
from networks import make_mixers

from benchmarks import machinery

if __name__ == "__main__":
    make_mixers(pytest.MonkeyPatch())
    machinery.main()
