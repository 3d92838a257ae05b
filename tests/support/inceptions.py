"""Weights of Inception-v3 at random, and its resize by hand."""

import math

import numpy as np

from ddpm_jax.evaluation.inception_weights import expected_shapes

COUNTER = "num_batches_tracked"


def random_state(seed=0):
    """Tensors that leave activations of every layer near 1, by PyTorch's names."""
    rng, state = np.random.default_rng(seed), {}
    for name, shape in expected_shapes().items():
        leaf = name.split(".", 1)[1]
        if len(shape) > 1:
            tensor = rng.normal(size=shape) * math.sqrt(2 / math.prod(shape[1:]))
        elif leaf.endswith(("bn.weight", "running_var")):
            tensor = rng.uniform(0.5, 1.5, shape)
        else:
            tensor = rng.normal(size=shape) * 0.1
        state[name] = tensor.astype(np.float32)
        if name.endswith("running_var"):
            state[name.replace("running_var", COUNTER)] = np.array(0, np.int64)
    return state


def bilinear_by_hand(image, side):
    """TensorFlow 1's resize of `[height, width, channel]`: positions follow from whole numbers."""

    def between(n):
        below, share = np.divmod(np.arange(side) * n, side)
        return below, np.minimum(below + 1, n - 1), share / side

    top, bottom, y = between(image.shape[0])
    left, right, x = between(image.shape[1])
    y, x = y[:, None, None], x[None, :, None]
    above = (1 - x) * image[np.ix_(top, left)] + x * image[np.ix_(top, right)]
    below = (1 - x) * image[np.ix_(bottom, left)] + x * image[np.ix_(bottom, right)]
    return (1 - y) * above + y * below
