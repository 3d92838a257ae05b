"""Programs that compute FID: torch-fidelity, clean-fid, pytorch-fid; and k-diffusion's samplers.

Tests skip without them.

They import torchvision, whose wheels are for CUDA and do not load beside a CPU's torch. What is
used here has no need of it, so an empty module stands in its place while they are imported.
"""

import functools
import importlib.util
import sys
import types
import warnings

import pytest


class Empty(types.ModuleType):
    """A module in which every name is there: a class if it has a capital, else such a module."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        capital = name[0].isupper() and not self.__name__.startswith("torchvision.models")
        value = type(name, (), {}) if capital else Empty(f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value

    def __mro_entries__(self, bases):
        return ()


MISSING = ("torchvision", *(f"torchvision.{n}" for n in ("datasets", "transforms", "models")))
MISSING = (*MISSING, "torchvision.transforms.functional")


@functools.cache
def import_peer(name, *, whole=True):
    """A module of a peer; `sys.modules` is left as it was.

    Unless `whole`, the package's own `__init__` is not run, which may import all of the package.
    """
    package = name.partition(".")[0]
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} comes with the extra 'peers'", allow_module_level=True)
    touched = [key for key in sys.modules if key.partition(".")[0] in ("torchvision", package)]
    before = {key: sys.modules.pop(key) for key in touched}
    for key in MISSING:
        sys.modules[key] = module = Empty(key)
        parent, _, last = key.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
    if not whole:
        sys.modules[package] = importlib.util.module_from_spec(spec)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    finally:
        for key in list(sys.modules):
            if key.partition(".")[0] in ("torchvision", package):
                del sys.modules[key]
        sys.modules |= before
