"""The network that predicts, and what its output stands for."""

import abc
import contextlib
import dataclasses
import functools
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax import models
from ddpm_jax.config.base import (
    COUNT,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    Affects,
    Bound,
    ConfigError,
    Member,
    default_of,
)
from ddpm_jax.config.schedule import make_schedule
from ddpm_jax.data import ImageSpec
from ddpm_jax.forward import Predicts
from ddpm_jax.models import AttentionKernel, InterpolationRange, Remat, Resampling, TokenRemat
from ddpm_jax.processes import Modal
from ddpm_jax.reverse import Variance
from ddpm_jax.schedules import Schedule

__all__ = ["EDM", "DiT", "Network", "UNet"]


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

    def make_for(self, images: ImageSpec, process: Modal) -> nn.Module:
        """The network for these images and this forward process, which few networks depend on."""
        return self.make(images)

    @property
    def compute_dtype(self) -> Literal["float32", "bfloat16"]:
        """Of the computation inside; it decides how gradients are averaged over devices."""
        return "float32"

    def smaller(self) -> Sequence[tuple[str, Any]]:
        """Fields and values with which training takes less memory, the least change first."""
        return ()

    def portable(self) -> "Network":
        """The same network without what only one kind of device has, for `ddpm-jax export`."""
        fields = [field.name for field in dataclasses.fields(self)]
        inner = {
            name: value for name in fields if isinstance(value := getattr(self, name), Network)
        }
        changed: dict[str, Any] = {name: value.portable() for name, value in inner.items()}
        return dataclasses.replace(self, **changed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ImageNetwork(Network):
    """What the networks of `ddpm_jax.models` have in common."""

    time_scale: Annotated[float, POSITIVE] = 1.0
    """Factor of t before its sinusoids; 1000 / T lets it go to 1000 on any chain."""
    null_class: bool = True
    """One more vector, for no class: without it all examples need labels."""
    interpolation_range: InterpolationRange = "unit"
    """Of the learned variance: the output is u in [0, 1], or v in [-1, 1] with u = (v + 1) / 2."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation inside the network; parameters are float32 either way."""

    def check(self, config: Any) -> None:
        """Without a vector for no class, none may be hidden in training, or needed by guidance."""
        if self.null_class or not self.classes:
            return
        for name, value, wanted in (
            ("train.label_dropout", config.train.label_dropout, 0.0),
            ("sampler.guidance", config.sampler.guidance, 1.0),
        ):
            if value != wanted:
                raise ConfigError(
                    f"{name} is {value}; it has to be {wanted} where network.null_class is False"
                )

    @property
    def compute_dtype(self) -> Literal["float32", "bfloat16"]:
        """`dtype`."""
        return self.dtype


@dataclasses.dataclass(frozen=True)
class UNet(_ImageNetwork):
    """The U-Net of DDPM; see `ddpm_jax.models.UNet`."""

    channels: Annotated[
        int, Bound(lambda value: value >= 4 and value % 2 == 0, "an even number, 4 or more")
    ] = 128
    """Width of the first level."""
    multipliers: Annotated[
        tuple[int | float, ...],
        Bound(
            lambda values: len(values) > 0 and min(values) > 0, "a positive number for each level"
        ),
    ] = (1, 2, 2, 2)
    """Width of each level in units of `channels`."""
    num_blocks: Annotated[int, COUNT] = 2
    """Residual blocks in each level."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Heights at which every block is followed by self-attention."""
    attention_levels: tuple[int, ...] = ()
    """Levels, from 0, on which it is, too."""
    up_attention_levels: tuple[int, ...] | None = None
    """Levels on which it is on the way up, where they are others than on the way down."""
    middle_attention: bool = True
    """Self-attention between the two blocks in the middle."""
    heads: Annotated[int, COUNT] = 1
    """Of each self-attention."""
    head_channels: Annotated[int | None, COUNT] = None
    """Width of each head, in place of their number."""
    up_heads: Annotated[int | None, COUNT] = None
    """Heads on the way up, if it is another number."""
    attention_kernel: Annotated[AttentionKernel, Affects.ROUNDING] = "xla"
    """What computes attention on a GPU: "cudnn" is one fused kernel, for bfloat16 and heads of at
    most 128 channels (256 from an H100 on). Elsewhere it is always "xla"."""
    resampling: Resampling | tuple[Resampling, ...] = "convolution"
    """What halves and doubles the resolution, on all levels or on each: a convolution, a residual
    block, or an average alone."""
    up_resampling: Resampling | tuple[Resampling, ...] | None = None
    """What doubles it, if it is something else."""
    symmetric_padding: bool = False
    """Zeros on all sides for the convolution that halves, not to the right and below alone."""
    scale_shift: bool = False
    """The time scales and shifts the second norm of each block (Nichol & Dhariwal 2021)."""
    dropout: Annotated[float, FRACTION, Affects.TRAINING] = 0.1
    """Rate inside residual blocks."""
    dropout_resolutions: Annotated[tuple[int, ...] | None, Affects.TRAINING] = None
    """Heights at which it is; by default all."""
    norm_groups: Annotated[int, COUNT] = 32
    """Groups of each group norm."""
    middle_norm_groups: Annotated[
        int | None, Bound(lambda value: value is None or value >= 0, "0 or more")
    ] = None
    """Groups of the norm of the middle attention, if it is another number; 0 for no norm."""
    norm_epsilon: Annotated[float, POSITIVE] = 1e-6
    """Added to the variance of each group."""
    cosine_first: bool = False
    """The order of the sinusoids of t: cosines before sines."""
    frequency_shift: Annotated[float, NOT_NEGATIVE] = 1.0
    """With 1 their frequencies end at 1 / max_period, with 0 one step above."""
    max_period: Annotated[float, Bound(lambda value: value > 1.0, "above 1")] = 10_000.0
    """Of the slowest sinusoid, in units of 2 pi."""
    remat: Annotated[Remat, Affects.ROUNDING] = "none"
    """What the backward pass computes again to save memory: nothing; attention; all but
    convolutions; whole blocks."""

    def check(self, config: Any) -> None:
        """Widths have to be multiples of groups and heads; levels have to be there."""
        widths, levels = self._widths(), len(self.multipliers)
        for width in widths:
            if width % self.norm_groups:
                raise ConfigError(
                    f"network.norm_groups is {self.norm_groups}; it has to be a divisor of the"
                    f" widths of all levels, {widths}"
                )
        if self.middle_norm_groups and widths[-1] % self.middle_norm_groups:
            raise ConfigError(
                f"network.middle_norm_groups is {self.middle_norm_groups}; it has to be a divisor"
                f" of the width of the last level, {widths[-1]}"
            )
        for name in ("attention_levels", "up_attention_levels"):
            for level in getattr(self, name) or ():
                if not 0 <= level < levels:
                    raise ConfigError(
                        f"network.{name} holds {level}; the levels are 0 to {levels - 1}"
                    )
        for name in ("resampling", "up_resampling"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != levels:
                raise ConfigError(
                    f"network.{name} has {len(value)} entries; it has to have one for each of"
                    f" {levels} levels, or be one for all"
                )
        self._head_shapes(0)  # of those that do not depend on the height
        if self.channels // 2 <= self.frequency_shift:
            raise ConfigError(
                f"network.frequency_shift is {self.frequency_shift}; it has to be below"
                f" network.channels / 2, {self.channels // 2}"
            )
        if self.attention_kernel != "xla" and self.dtype != "bfloat16":
            raise ConfigError(
                f"network.attention_kernel is {self.attention_kernel}; it has to be 'xla' where"
                " network.dtype is 'float32'"
            )
        super().check(config)

    def make(self, images: ImageSpec) -> nn.Module:
        """`models.UNet`, if the levels divide the images and have the heights for attention."""
        self._check_images(images)
        own = {field.name for field in dataclasses.fields(models.UNet)}
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name in own
        }
        return models.UNet(
            **values
            | {
                "attention_kernel": self._kernel(images.shape[0]),
                "dtype": jnp.dtype(self.dtype),
                "learned_variance": self.variance == "learned_range",
                "num_classes": self.classes,
            }
        )

    def smaller(self) -> Sequence[tuple[str, Any]]:
        """The values of `remat` after its own."""
        policies = typing.get_args(Remat)  # in the order of what they save
        return [("remat", policy) for policy in policies[policies.index(self.remat) + 1 :]]

    def portable(self) -> "UNet":
        """With attention by "xla"."""
        return dataclasses.replace(self, attention_kernel="xla")

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
        for name in ("attention_resolutions", "dropout_resolutions"):
            for resolution in getattr(self, name) or ():
                if resolution not in heights:
                    raise ConfigError(
                        f"network.{name} holds {resolution}; the levels have the heights {heights}"
                    )
        self._head_shapes(height)

    def _widths(self) -> list[int]:
        """Channels of each level."""
        return [int(self.channels * multiplier) for multiplier in self.multipliers]

    def _heights(self, height: int) -> list[int]:
        """Of the images on each level."""
        return [height // 2**level for level in range(len(self.multipliers))]

    def _head_shapes(self, height: int) -> list[tuple[int, int, int]]:
        """(positions, heads, channels of a head) of each kind of self-attention.

        Raises:
            ConfigError: the heads do not divide the channels.
        """
        kinds: list[tuple[int, int, str]] = []
        own, up_own = ("heads", "up_heads" if self.up_heads else "heads")
        levels = list(zip(self._heights(height), self._widths(), strict=True))
        for level, (side, width) in enumerate(levels):
            down = level in self.attention_levels or side in self.attention_resolutions
            up = down if self.up_attention_levels is None else level in self.up_attention_levels
            middle = self.middle_attention and level == len(levels) - 1
            kinds += [(side, width, own)] * (down or middle) + [(side, width, up_own)] * up
        shapes = []
        for side, width, field in kinds:
            field = field if self.head_channels is None else "head_channels"
            value = getattr(self, field)
            if width % value:
                raise ConfigError(
                    f"network.{field} is {value}; it has to be a divisor of the width of each level"
                    f" with self-attention, and one is {width} wide"
                )
            heads = value if self.head_channels is None else width // value
            shapes.append((side**2, heads, width // heads))
        return shapes

    def _kernel(self, height: int) -> AttentionKernel:
        """What computes attention here: "cudnn" only on a GPU that can.

        Raises:
            ConfigError: JAX has no such kernel for the heads of this network.
        """
        if self.attention_kernel == "xla" or jax.default_backend() != "gpu":
            return "xla"
        attention = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
        for shape in self._head_shapes(height):
            array = jax.ShapeDtypeStruct((1, *shape), self.dtype)
            try:
                jax.eval_shape(attention, array, array, array)
            except RuntimeError as error:  # of which NotImplementedError is one
                raise ConfigError(
                    f"network.attention_kernel is 'cudnn', which JAX cannot use for heads of"
                    f" {shape[-1]} channels here ({error}); take 'xla'"
                ) from error
        return self.attention_kernel


_TRANSFORMERS = {
    # (width, depth, heads)
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}


@dataclasses.dataclass(frozen=True)
class DiT(_ImageNetwork):
    """The diffusion transformer of Peebles & Xie 2023; see `ddpm_jax.models.DiT`."""

    size: Literal["S", "B", "L", "XL"] = "S"
    """Width, depth and heads of the paper: 384, 12, 6; 768, 12, 12; 1024, 24, 16; 1152, 28, 16."""
    width: Annotated[int | None, COUNT] = None
    """Of the vector of each patch, in place of that of `size`."""
    depth: Annotated[int | None, COUNT] = None
    """Blocks, in place of those of `size`."""
    heads: Annotated[int | None, COUNT] = None
    """Of each self-attention, in place of those of `size`."""
    patch: Annotated[int, COUNT] = 2
    """Side of the squares that the image is cut into, in pixels."""
    mlp_ratio: Annotated[float, POSITIVE] = 4.0
    """Width of the layer inside a block's network, in units of `width`."""
    dropout: Annotated[float, FRACTION, Affects.TRAINING] = 0.0
    """Rate behind self-attention and inside each block's network."""
    remat: Annotated[TokenRemat, Affects.ROUNDING] = "none"
    """What the backward pass computes again to save memory: nothing; the weights of attention;
    whole blocks."""

    def check(self, config: Any) -> None:
        """The width has to be a multiple of the heads, and of the parts of a position."""
        width, _, heads = self._shape()
        if width % heads:
            raise ConfigError(
                f"network.heads is {heads}; it has to be a divisor of network.width, {width}"
            )
        if width % 4:
            raise ConfigError(
                f"network.width is {width}; it has to be a multiple of 4: sines and cosines of rows"
                " and columns"
            )
        if int(width * self.mlp_ratio) < 1:
            raise ConfigError(
                f"network.mlp_ratio is {self.mlp_ratio}; it has to be {1 / width:.3g} or more"
            )
        super().check(config)

    def make(self, images: ImageSpec) -> nn.Module:
        """`models.DiT`, if patches divide the images."""
        height, width, _ = images.shape
        if height % self.patch or width % self.patch:
            raise ConfigError(
                f"network.patch is {self.patch}; it has to divide the images of {images.name!r},"
                f" which are {height}x{width}"
            )
        features, depth, heads = self._shape()
        return models.DiT(
            patch=self.patch,
            width=features,
            depth=depth,
            heads=heads,
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
            time_scale=self.time_scale,
            num_classes=self.classes,
            null_class=self.null_class,
            learned_variance=self.variance == "learned_range",
            interpolation_range=self.interpolation_range,
            dtype=jnp.dtype(self.dtype),
            remat=self.remat,
        )

    def smaller(self) -> Sequence[tuple[str, Any]]:
        """The values of `remat` after its own."""
        policies = typing.get_args(TokenRemat)
        return [("remat", policy) for policy in policies[policies.index(self.remat) + 1 :]]

    def _shape(self) -> tuple[int, int, int]:
        """Width, depth and heads."""
        width, depth, heads = _TRANSFORMERS[self.size]
        return self.width or width, self.depth or depth, self.heads or heads


@dataclasses.dataclass(frozen=True)
class EDM(Network):
    """Another network with the preconditioning of Karras et al. 2022.

    See `ddpm_jax.models.Preconditioned`. Its `predicts`, `variance` and `classes` count; those of
    the other network are left alone.
    """

    predicts: Predicts = dataclasses.field(default="x0", kw_only=True)
    """What the output stands for; the network is the same function of the data for all."""
    network: Network = UNet()
    """The network inside; its times are c_noise = ln(sigma) / 4."""
    sigma_data: Annotated[float, POSITIVE] = 0.5
    """Standard deviation of the images in [-1, 1]."""

    def check(self, config: Any) -> None:
        """Signal has to be left at T - 1, and the network inside may not contradict this one."""
        if isinstance(self.network, EDM):
            raise ConfigError("network.network is an EDM; it has to be another network")
        defaults = {field.name: default_of(field) for field in dataclasses.fields(self.network)}
        for name in ("predicts", "variance", "classes"):
            own, inner = getattr(self, name), getattr(self.network, name)
            if inner not in (own, defaults[name]):
                raise ConfigError(
                    f"network.network.{name} is {inner} and network.{name} is {own}; leave the"
                    " first alone, since the second counts"
                )
        if make_schedule(config.schedule).zero_terminal_snr:
            raise ConfigError(
                "network is an EDM and the schedule leaves no signal at T - 1, where c_noise is"
                " infinite; take another schedule"
            )
        with _inner_names():
            self._inner().check(config)

    def make(self, images: ImageSpec) -> nn.Module:
        """Raises ConfigError: it has to be made by `make_for`."""
        raise ConfigError("network is an EDM, which is made for a forward process: call make_for")

    def make_for(self, images: ImageSpec, process: Modal) -> nn.Module:
        """`models.Preconditioned`, if the process is a schedule."""
        if not isinstance(process, Schedule):
            raise ConfigError(
                "network is an EDM, which has one level of noise for all of an image; the process"
                f" is a {type(process).__name__}, so take isotropic"
            )
        with _inner_names():
            inner: Any = self._inner().make_for(images, process)
        if not isinstance(inner, nn.Module):
            raise ConfigError(
                f"network.network: {type(self.network).__name__}.make returned a"
                f" {type(inner).__name__}; in an EDM it has to return a Flax module"
            )
        return models.Preconditioned(
            inner, process, predicts=self.predicts, sigma_data=self.sigma_data
        )

    @property
    def compute_dtype(self) -> Literal["float32", "bfloat16"]:
        """That of the network inside."""
        return self.network.compute_dtype

    def smaller(self) -> Sequence[tuple[str, Any]]:
        """Those of the network inside."""
        return [(f"network.{field}", value) for field, value in self.network.smaller()]

    def _inner(self) -> Network:
        return dataclasses.replace(self.network, variance=self.variance, classes=self.classes)


@contextlib.contextmanager
def _inner_names() -> Iterator[None]:
    """Errors of a network inside another one have the names of its fields there."""
    try:
        yield
    except ConfigError as error:
        text = re.sub(r"\bnetwork(?=[.:])", "network.network", str(error))
        raise ConfigError(text) from error
