"""Weights of somebody else, made up: a tiny U-Net with random numbers, for what is done with it."""

import zlib

import numpy as np

from ddpm_jax import models
from ddpm_jax.cli import main
from ddpm_jax.weights import LazyArray, Recipe, Weights
from ddpm_jax.weights.weights import expected_shapes

SHAPE = (8, 8, 1)


def foreign(*, names=("ema",), classes=None, seed=0, **changes):
    """A `Weights`; its arrays differ by name and are small, so that images stay in range."""
    options = {
        "channels": 8,
        "multipliers": (1, 2),
        "num_blocks": 1,
        "attention_resolutions": (),
        "norm_groups": 4,
        "num_classes": len(classes or ()),
        "learned_variance": changes.get("variance") == "learned_range",
    }
    network = models.UNet(**options | changes.pop("network", {}))
    shapes = expected_shapes(network, SHAPE)
    arrays = {
        kind: {path: _array(f"{seed}{kind}{path}", shape) for path, shape in shapes.items()}
        for kind in names
    }
    given = {
        "network": network,
        "image_shape": SHAPE,
        "chain": Recipe("linear", {"num_steps": 20, "beta_min": 1e-4, "beta_max": 0.2}),
        "predicts": "eps",
        "variance": "small",
        "sampler": Recipe("ddim", {"steps": 4, "eta": 0.5, "threshold": None}),
        "classes": classes,
        "arrays": arrays,
        "source": {"kind": "made up", "name": "somebody/digits-8"},
    }
    return Weights(**given | changes)


def export(run, out, *more):
    """The command's exit code."""
    how = ["--format", "safetensors", "--out", str(out)]
    return main(["weights", "export", str(run), *how, *more])


def imported(source, workdir, *more):
    """The command's exit code."""
    return main(["weights", "import", str(source), "--workdir", str(workdir), *more])


def _array(text, shape):
    def read():
        rng = np.random.default_rng(zlib.crc32(text.encode()))
        return 0.1 * rng.standard_normal(shape, np.float32)

    return LazyArray(shape, read)
