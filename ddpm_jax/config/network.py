"""The network that predicts, and what its output stands for."""

import abc
import contextlib
import dataclasses
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp

from ddpm_jax import models
from ddpm_jax.config import unet_levels
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
from ddpm_jax.models import AttentionKernel, InterpolationRange, Remat, Resampling, TokenRemat
from ddpm_jax.predictions import PredictionName
from ddpm_jax.processes import Modal
from ddpm_jax.reverse import Variance
from ddpm_jax.schedules import Schedule

__all__ = ["EDM", "DiT", "Network", "UNet"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network(Member):
    """A network `model.apply(params, x_t, t) -> prediction`; the prediction has the shape of `x_t`.

    If its `__call__` has a parameter of one of these names, the network also gets `train` (bool),
    `keys` (one key for each example, in training only) and `labels` (int32 `[batch]`, if `classes`
    is not 0). A label is from 0 to `classes` - 1, or -1 for no class, in guidance and by
    `train.label_dropout`.
    """

    affects: ClassVar[Affects] = Affects.MODEL
    takes_any_time: ClassVar[bool] = True
    """Whether the network takes times between whole numbers, as a learned schedule has them."""
    predicts: PredictionName = "eps"
    """What the network predicts: the noise "eps", the image "x0", the velocity "v" of Salimans &
    Ho, the "score", the velocity "flow" of flow matching, or the F of "edm" with a `sigma_data` of
    0.5; see `ddpm_jax.predictions`."""
    variance: Variance = "small"
    """Variance of p(x_{t-1} | x_t): fixed to the posterior's, "small", or to beta, "large"; or
    "learned_range", between the two by a second output of the network."""
    classes: Annotated[int, NOT_NEGATIVE] = 0
    """Number of classes that the network takes as input. It has to be the number of classes of the
    data set, or 0 for a network without classes."""

    @abc.abstractmethod
    def make(self, images: ImageSpec) -> nn.Module:
        """The network for these images.

        Args:
            images: shape (height, width, channel), grey levels and classes of the data set.

        Returns:
            Anything with the `init` and `apply` of a Flax module. With variance "learned_range" the
            network returns a pair, (prediction, interpolation), see
            `ddpm_jax.reverse.learned_log_variance`.

        Raises:
            ConfigError: the network does not work on images of this shape.
        """

    def make_for(self, images: ImageSpec, process: Modal) -> nn.Module:
        """The network for these images and this forward process.

        Override it for a network that depends on the process; by default it calls `make`.

        Args:
            images: shape (height, width, channel), grey levels and classes of the data set.
            process: the forward process.

        Returns:
            The network, as `make` returns it.
        """
        return self.make(images)

    @property
    def compute_dtype(self) -> Literal["float32", "bfloat16"]:
        """Dtype of the computation inside. `mesh.reduction` may not be lower."""
        return "float32"

    def smaller(self) -> Sequence[tuple[str, Any]]:
        """Changes of fields with which training takes less memory.

        Returns:
            Pairs (field, value), the smallest saving first.
        """
        return ()

    def portable(self) -> "Network":
        """The same network without kernels that only one kind of device has.

        `ddpm-jax export` uses it.

        Returns:
            A member of the same class.
        """
        fields = [field.name for field in dataclasses.fields(self)]
        inner = {
            name: value for name in fields if isinstance(value := getattr(self, name), Network)
        }
        changed: dict[str, Any] = {name: value.portable() for name, value in inner.items()}
        return dataclasses.replace(self, **changed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ImageNetwork(Network):
    """Fields that all networks of `ddpm_jax.models` have."""

    time_scale: Annotated[float, POSITIVE] = 1.0
    """Factor of t in the time embedding. With 1000 / T the embedded time runs to 1000 for any T."""
    fourier_features: Annotated[
        tuple[int, ...],
        Bound(
            lambda values: len({*values}) == len(values) and all(0 <= n <= 16 for n in values),
            "different whole numbers from 0 to 16",
        ),
    ] = ()
    """Exponents n of the sines and cosines of 2^n pi x_t that the network gets beside x_t (Kingma
    et al. 2021, appendix C.3). They show details as small as a grey level, on which bits/dim
    depend. Take n and n + 1 with the n nearest to log2((levels - 1) / 2), whose angle grows by pi
    from one level to the next: 7 8 for 256 levels, 3 4 for 17. Inside an EDM they are of x_t / s,
    which is x_t / sigma_data where there is little noise: add log2(sigma_data), so 6 7 for 0.5."""
    null_class: bool = True
    """Add an embedding for "no class". Label dropout and guidance need it."""
    interpolation_range: InterpolationRange = "unit"
    """Range of the output for the learned variance: "unit" is u in [0, 1], "symmetric" is v in
    [-1, 1] with u = (v + 1) / 2."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation inside the network. Parameters are always float32."""

    def check(self, config: Any) -> None:
        """Checks that label dropout and guidance are off if there is no vector for "no class"."""
        if self.null_class or not self.classes:
            return
        for name, value, wanted in (
            ("train.label_dropout", config.train.label_dropout, 0.0),
            ("sampler.guidance", config.sampler.guidance, 1.0),
        ):
            if value != wanted:
                raise ConfigError(
                    f"{name} is {value}; it has to be {wanted} if network.null_class is False"
                )

    @property
    def compute_dtype(self) -> Literal["float32", "bfloat16"]:
        """The field `dtype`."""
        return self.dtype


@dataclasses.dataclass(frozen=True)
class UNet(_ImageNetwork):
    """The U-Net of DDPM; see `ddpm_jax.models.UNet`."""

    channels: Annotated[
        int, Bound(lambda value: value >= 4 and value % 2 == 0, "an even number, 4 or more")
    ] = 128
    """Channels of the first level."""
    multipliers: Annotated[
        tuple[int | float, ...],
        Bound(
            lambda values: len(values) > 0 and min(values) > 0, "a positive number for each level"
        ),
    ] = (1, 2, 2, 2)
    """Channels of each level, as multiples of `channels`. Each further level halves the image."""
    num_blocks: Annotated[int, COUNT] = 2
    """Residual blocks in each level."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Heights of the levels with self-attention after each block, in pixels."""
    attention_levels: tuple[int, ...] = ()
    """More levels with self-attention, by their number from 0."""
    up_attention_levels: tuple[int, ...] | None = None
    """Levels with self-attention on the way up. None: the same as on the way down."""
    middle_attention: bool = True
    """Use self-attention between the two blocks in the middle."""
    heads: Annotated[int, COUNT] = 1
    """Heads of each self-attention."""
    head_channels: Annotated[int | None, COUNT] = None
    """Channels of each head. If it is given, it replaces `heads`."""
    up_heads: Annotated[int | None, COUNT] = None
    """Heads on the way up. None: the same as on the way down."""
    attention_kernel: Annotated[AttentionKernel, Affects.ROUNDING] = "xla"
    """Implementation of attention on a GPU. "cudnn" is one fused kernel: it needs bfloat16, and
    heads of at most 128 channels (256 on an H100 or newer). Other devices always use "xla"."""
    resampling: Resampling | tuple[Resampling, ...] = "convolution"
    """Operation that halves and doubles the resolution: a convolution, a residual block, or an
    average without parameters. One for all levels, or one for each."""
    up_resampling: Resampling | tuple[Resampling, ...] | None = None
    """Operation that doubles the resolution. None: the same as `resampling`."""
    symmetric_padding: bool = False
    """Pad the convolution that halves the resolution on all sides, not only right and below."""
    scale_shift: bool = False
    """Let the time embedding scale and shift the second norm of each block (Nichol & Dhariwal
    2021), in place of adding it."""
    dropout: Annotated[float, FRACTION, Affects.TRAINING] = 0.1
    """Dropout rate inside residual blocks, in [0, 1)."""
    dropout_resolutions: Annotated[tuple[int, ...] | None, Affects.TRAINING] = None
    """Heights of the levels with dropout, in pixels. None: all levels."""
    norm_groups: Annotated[int, COUNT] = 32
    """Groups of each group norm. It has to divide the channels of each level."""
    middle_norm_groups: Annotated[
        int | None, Bound(lambda value: value is None or value >= 0, "0 or more")
    ] = None
    """Groups of the norm before the middle attention. None: `norm_groups`; 0: no norm."""
    norm_epsilon: Annotated[float, POSITIVE] = 1e-6
    """Number added to the variance of each group."""
    cosine_first: bool = False
    """Put the cosines of the time embedding before its sines."""
    frequency_shift: Annotated[float, NOT_NEGATIVE] = 1.0
    """Spacing of the frequencies of the time embedding: with 1 the lowest is 1 / max_period, with 0
    it is one step higher."""
    max_period: Annotated[float, Bound(lambda value: value > 1.0, "above 1")] = 10_000.0
    """Period of the slowest sinusoid of the time embedding, in units of 2 pi."""
    remat: Annotated[Remat, Affects.ROUNDING] = "none"
    """What the backward pass recomputes to save memory: nothing; attention; all but convolutions;
    whole blocks. Take a later one if memory runs out."""

    def check(self, config: Any) -> None:
        """Checks that groups and heads divide the channels, and that the named levels exist."""
        widths, levels = unet_levels.widths(self), len(self.multipliers)
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
        unet_levels.head_shapes(self, 0)  # those that do not depend on the height
        if self.channels // 2 <= self.frequency_shift:
            raise ConfigError(
                f"network.frequency_shift is {self.frequency_shift}; it has to be below"
                f" network.channels / 2, {self.channels // 2}"
            )
        if self.attention_kernel != "xla" and self.dtype != "bfloat16":
            raise ConfigError(
                f"network.attention_kernel is {self.attention_kernel}; it has to be 'xla' if"
                " network.dtype is 'float32'"
            )
        super().check(config)

    def make(self, images: ImageSpec) -> nn.Module:
        """Returns `models.UNet`; the images have to be divisible by 2^(levels - 1)."""
        unet_levels.check_images(self, images)
        own = {field.name for field in dataclasses.fields(models.UNet)}
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name in own
        }
        return models.UNet(
            **values
            | {
                "attention_kernel": unet_levels.attention_kernel(self, images.shape[0]),
                "dtype": jnp.dtype(self.dtype),
                "learned_variance": self.variance == "learned_range",
                "num_classes": self.classes,
            }
        )

    def smaller(self) -> Sequence[tuple[str, Any]]:
        """The values of `remat` that save more memory."""
        policies = typing.get_args(Remat)  # in the order of what they save
        return [("remat", policy) for policy in policies[policies.index(self.remat) + 1 :]]

    def portable(self) -> "UNet":
        """The same network with `attention_kernel` "xla"."""
        return dataclasses.replace(self, attention_kernel="xla")


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
    """Width, depth and heads as in the paper: S is 384, 12, 6; B is 768, 12, 12; L is 1024, 24, 16;
    XL is 1152, 28, 16."""
    width: Annotated[int | None, COUNT] = None
    """Channels of each patch. None: as `size` says."""
    depth: Annotated[int | None, COUNT] = None
    """Number of blocks. None: as `size` says."""
    heads: Annotated[int | None, COUNT] = None
    """Heads of each self-attention. None: as `size` says."""
    patch: Annotated[int, COUNT] = 2
    """Side of the square patches that the image is cut into, in pixels. It has to divide height and
    width. Doubling it makes the sequence four times shorter."""
    mlp_ratio: Annotated[float, POSITIVE] = 4.0
    """Width of the hidden layer in each block, as a multiple of `width`."""
    dropout: Annotated[float, FRACTION, Affects.TRAINING] = 0.0
    """Dropout rate after self-attention and inside the hidden layers, in [0, 1)."""
    remat: Annotated[TokenRemat, Affects.ROUNDING] = "none"
    """What the backward pass recomputes to save memory: nothing; the weights of attention; whole
    blocks. Take a later one if memory runs out."""

    def check(self, config: Any) -> None:
        """Checks that the width is a multiple of the heads, and of 4."""
        width, _, heads = self._shape()
        if width % heads:
            raise ConfigError(
                f"network.heads is {heads}; it has to be a divisor of network.width, {width}"
            )
        if width % 4:
            raise ConfigError(
                f"network.width is {width}; it has to be a multiple of 4, for the sines and cosines"
                " of rows and columns"
            )
        if int(width * self.mlp_ratio) < 1:
            raise ConfigError(
                f"network.mlp_ratio is {self.mlp_ratio}; it has to be {1 / width:.3g} or more"
            )
        super().check(config)

    def make(self, images: ImageSpec) -> nn.Module:
        """Returns `models.DiT`; patches have to divide the images."""
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
            fourier_features=self.fourier_features,
            num_classes=self.classes,
            null_class=self.null_class,
            learned_variance=self.variance == "learned_range",
            interpolation_range=self.interpolation_range,
            dtype=jnp.dtype(self.dtype),
            remat=self.remat,
        )

    def smaller(self) -> Sequence[tuple[str, Any]]:
        """The values of `remat` that save more memory."""
        policies = typing.get_args(TokenRemat)
        return [("remat", policy) for policy in policies[policies.index(self.remat) + 1 :]]

    def _shape(self) -> tuple[int, int, int]:
        """Width, depth and heads."""
        width, depth, heads = _TRANSFORMERS[self.size]
        return self.width or width, self.depth or depth, self.heads or heads


@dataclasses.dataclass(frozen=True)
class EDM(Network):
    """Another network with the preconditioning of Karras et al. 2022.

    See `ddpm_jax.models.Preconditioned`. The fields `predicts`, `variance` and `classes` of this
    member count; leave those of the network inside alone.
    """

    takes_any_time: ClassVar[bool] = False
    predicts: PredictionName = dataclasses.field(default="x0", kw_only=True)
    """What the output is converted to, such as "x0", "eps" or "v". The parameters have the same
    meaning for all of them. It is the error of this prediction that `simple` trains with."""
    network: Network = UNet()
    """The network inside. It gets the time c_noise = ln(sigma) / 4, or that of `noise_input`."""
    sigma_data: Annotated[float, POSITIVE] = 0.5
    """Standard deviation of the images in [-1, 1]."""
    noise_input: models.NoiseInput = "log_snr"
    """What tells the network inside the level of noise: "log_snr" is c_noise, "time" the time t of
    the chain, which a chain without signal at T - 1 needs."""

    def check(self, config: Any) -> None:
        """Checks that c_noise is finite, and that the inner network agrees."""
        if isinstance(self.network, EDM):
            raise ConfigError("network.network is an EDM; it has to be another network")
        defaults = {field.name: default_of(field) for field in dataclasses.fields(self.network)}
        for name in ("predicts", "variance", "classes"):
            own, inner = getattr(self, name), getattr(self.network, name)
            if inner not in (own, defaults[name]):
                raise ConfigError(
                    f"network.network.{name} is {inner} and network.{name} is {own}; only the"
                    " second counts, so leave the first at its default"
                )
        if self.noise_input == "log_snr" and make_schedule(config.schedule).zero_terminal_snr:
            raise ConfigError(
                "network is an EDM and the schedule leaves no signal at T - 1, where c_noise is"
                " infinite; take another schedule, or network.noise_input 'time'"
            )
        with _inner_names():
            self._inner().check(config)

    def make(self, images: ImageSpec) -> nn.Module:
        """Raises ConfigError: this network depends on the process, so use `make_for`."""
        raise ConfigError("network is an EDM, which depends on the forward process: call make_for")

    def make_for(self, images: ImageSpec, process: Modal) -> nn.Module:
        """Returns `models.Preconditioned`; the process has to be isotropic."""
        if not isinstance(process, Schedule):
            raise ConfigError(
                "network is an EDM, which needs the same noise level in all pixels; the process is"
                f" a {type(process).__name__}, so take isotropic"
            )
        with _inner_names():
            inner: Any = self._inner().make_for(images, process)
        if not isinstance(inner, nn.Module):
            raise ConfigError(
                f"network.network: {type(self.network).__name__}.make returned a"
                f" {type(inner).__name__}; in an EDM it has to return a Flax module"
            )
        return models.Preconditioned(
            inner,
            process,
            predicts=self.predicts,
            sigma_data=self.sigma_data,
            noise_input=self.noise_input,
        )

    @property
    def compute_dtype(self) -> Literal["float32", "bfloat16"]:
        """The dtype of the network inside."""
        return self.network.compute_dtype

    def smaller(self) -> Sequence[tuple[str, Any]]:
        """The changes of the network inside."""
        return [(f"network.{field}", value) for field, value in self.network.smaller()]

    def _inner(self) -> Network:
        return dataclasses.replace(self.network, variance=self.variance, classes=self.classes)


@contextlib.contextmanager
def _inner_names() -> Iterator[None]:
    """Puts "network.network" for "network" in the errors of a network inside another one."""
    try:
        yield
    except ConfigError as error:
        text = re.sub(r"\bnetwork(?=[.:])", "network.network", str(error))
        raise ConfigError(text) from error
