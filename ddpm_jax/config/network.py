"""The network that predicts, and what its output stands for."""

import abc
import dataclasses
import functools
import typing
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax import models
from ddpm_jax.config.base import (
    COUNT,
    FRACTION,
    NOT_NEGATIVE,
    Affects,
    Bound,
    ConfigError,
    Member,
)
from ddpm_jax.data import ImageSpec
from ddpm_jax.forward import Predicts
from ddpm_jax.models import AttentionKernel, Remat
from ddpm_jax.reverse import Variance

__all__ = ["Network", "UNet"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network(Member):
    """A network `model.apply(params, x_t, t) -> prediction`, shaped as `x_t`.

    What it takes beside `x_t` and `t` it is given, if its `__call__` has a parameter of the name:
    `train` (bool), `keys` (one for each example, in training), `labels` (int32 `[batch]`, where
    `classes` is not 0).
    """

    affects: ClassVar[Affects] = Affects.MODEL
    predicts: Predicts = "eps"
    """What the network's output stands for."""
    variance: Variance = "small"
    """Of p(x_{t-1} | x_t): fixed, or a second output of the network, "learned_range"."""
    classes: Annotated[int, NOT_NEGATIVE] = 0
    """Classes that the network takes as input, as many as the data set has; 0 for none."""

    @abc.abstractmethod
    def make(self, images: ImageSpec) -> nn.Module:
        """The network for these images: anything with the `init` and `apply` of a Flax module.

        With variance "learned_range" it returns a pair, (prediction, interpolation), see
        `ddpm_jax.reverse.learned_log_variance`.

        Args:
            images: shape (height, width, channel), grey levels and classes of the data set.

        Raises:
            ConfigError: it cannot have images of this shape.
        """

    @property
    def compute_dtype(self) -> Literal["float32", "bfloat16"]:
        """Of the computation inside; it decides how gradients are averaged over devices."""
        return "float32"

    def smaller(self) -> Sequence[tuple[str, Any]]:
        """Fields and values with which training takes less memory, the least change first."""
        return ()


@dataclasses.dataclass(frozen=True)
class UNet(Network):
    """The U-Net of DDPM; see `ddpm_jax.models.UNet`."""

    channels: Annotated[
        int, Bound(lambda value: value >= 4 and value % 2 == 0, "an even number, 4 or more")
    ] = 128
    """Width of the first level."""
    multipliers: Annotated[
        tuple[int, ...],
        Bound(
            lambda values: len(values) > 0 and min(values) > 0, "a positive number for each level"
        ),
    ] = (1, 2, 2, 2)
    """Width of each level in units of `channels`."""
    num_blocks: Annotated[int, COUNT] = 2
    """Residual blocks in each level."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Heights at which every block is followed by self-attention."""
    heads: Annotated[int, COUNT] = 1
    """Of each self-attention."""
    attention_kernel: Annotated[AttentionKernel, Affects.ROUNDING] = "xla"
    """What computes attention on a GPU: "cudnn" is one fused kernel, for bfloat16 and heads of at
    most 128 channels (256 from an H100 on). Elsewhere it is always "xla"."""
    dropout: Annotated[float, FRACTION, Affects.TRAINING] = 0.1
    """Rate inside residual blocks."""
    norm_groups: Annotated[int, COUNT] = 32
    """Groups of each group norm."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation inside the network; parameters are float32 either way."""
    remat: Annotated[Remat, Affects.ROUNDING] = "none"
    """What the backward pass computes again to save memory: nothing; attention; all but
    convolutions; whole blocks."""

    def check(self, config: Any) -> None:
        """Widths have to be multiples of groups and heads."""
        for field in ("norm_groups", "heads"):
            value = getattr(self, field)
            if self.channels % value:
                raise ConfigError(
                    f"network.{field} is {value}; it has to be a divisor of network.channels,"
                    f" {self.channels}"
                )
        if self.attention_kernel != "xla" and self.dtype != "bfloat16":
            raise ConfigError(
                f"network.attention_kernel is {self.attention_kernel}; it has to be 'xla' where"
                " network.dtype is 'float32'"
            )

    def make(self, images: ImageSpec) -> nn.Module:
        """`models.UNet`, if the levels divide the images and have the heights for attention."""
        self._check_images(images)
        return models.UNet(
            channels=self.channels,
            multipliers=self.multipliers,
            num_blocks=self.num_blocks,
            attention_resolutions=self.attention_resolutions,
            heads=self.heads,
            attention_kernel=self._kernel(images.shape[0]),
            dropout=self.dropout,
            norm_groups=self.norm_groups,
            dtype=jnp.dtype(self.dtype),
            learned_variance=self.variance == "learned_range",
            num_classes=self.classes,
            remat=self.remat,
        )

    @property
    def compute_dtype(self) -> Literal["float32", "bfloat16"]:
        """`dtype`."""
        return self.dtype

    def smaller(self) -> Sequence[tuple[str, Any]]:
        """The values of `remat` after its own."""
        policies = typing.get_args(Remat)  # in the order of what they save
        return [("remat", policy) for policy in policies[policies.index(self.remat) + 1 :]]

    def _check_images(self, images: ImageSpec) -> None:
        height, width, _ = images.shape
        levels, heights = len(self.multipliers), self._heights(height)
        factor = 2 ** (levels - 1)
        if height % factor or width % factor:
            raise ConfigError(
                f"network.multipliers is {self.multipliers}, {levels} levels that halve the image"
                f" {levels - 1} times; the images of {images.name!r} are"
                f" {height}x{width}, which {factor} does not divide, so take fewer levels"
            )
        for resolution in self.attention_resolutions:
            if resolution not in heights:
                raise ConfigError(
                    f"network.attention_resolutions holds {resolution}; the levels have the"
                    f" heights {heights}"
                )

    def _heights(self, height: int) -> list[int]:
        """Of the images on each level."""
        return [height // 2**level for level in range(len(self.multipliers))]

    def _kernel(self, height: int) -> AttentionKernel:
        """What computes attention here: "cudnn" only on a GPU that can.

        Raises:
            ConfigError: JAX has no such kernel for the heads of this network.
        """
        if self.attention_kernel == "xla" or jax.default_backend() != "gpu":
            return "xla"
        heights = self._heights(height)
        for side, multiplier in zip(heights, self.multipliers, strict=True):
            if side in (*self.attention_resolutions, heights[-1]):
                shape = (1, side**2, self.heads, self.channels * multiplier // self.heads)
                array = jax.ShapeDtypeStruct(shape, self.dtype)
                attention = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
                try:
                    jax.eval_shape(attention, array, array, array)
                except RuntimeError as error:  # of which NotImplementedError is one
                    raise ConfigError(
                        f"network.attention_kernel is 'cudnn', which JAX cannot use for heads of"
                        f" {shape[-1]} channels here ({error}); take 'xla'"
                    ) from error
        return self.attention_kernel
