"""What a metric of images asks of a network: features of uint8 images, and a name to print.

FID, KID, precision and recall compare clouds of `pooled` features; the Inception score reads the
classes off `logits`. A number means little without the network it was measured with, and nothing
beside a number of another one: hence `name`, which is printed with every number, and `identity`,
which statistics of a reference set are stored with.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float, UInt8

__all__ = ["FeatureNetwork", "Features"]


class Features(NamedTuple):
    """What a network says of a batch of images, in float32."""

    pooled: Float[Array, "batch dim"]
    logits: Float[Array, "batch classes"]
    """Without the last layer's bias where the network is Inception: see `inception`."""


class FeatureNetwork(NamedTuple):
    """A network with its weights, behind one function of images."""

    name: str
    """As it is printed: "Inception-v3", "digits classifier"."""
    identity: str
    """SHA-256, in hex, of the weights and of how images are prepared for them."""
    dim: int
    classes: int
    apply: Callable[[UInt8[Array, "batch height width channel"]], Features]
    """Pure, and compiled already: a `jax.tree_util.Partial` of the weights, so that under another
    `jit` they are arguments, too. Images have 256 levels and 1 or 3 channels."""
