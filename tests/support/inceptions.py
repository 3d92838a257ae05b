"""Weights of Inception-v3 at random."""

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
