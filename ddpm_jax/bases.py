r"""Orthonormal bases of the data: the coordinates in which the modes of a process do not mix.

A basis is an orthonormal matrix B, which is not formed where a fast transform exists:

.. math::

    \mathrm{to\_modes}(x) = B x, \qquad \mathrm{to\_data}(z) = B^T z, \qquad B B^T = I

It keeps lengths, so white noise is white in both coordinates, squared errors may be summed in
either, and densities need no determinant.

- `identity`: pixels; costs nothing.
- `dct`: cosines, for data that are mirrored at the border; d * side multiply-adds, or d log d.
- `fourier`: cosines and sines, for periodic data; d log d.
- `orthonormal`: any matrix, such as the principal axes of the data; d^2.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from ddpm_jax.arrays import Value, einsum, widened

__all__ = ["Basis", "dct", "fourier", "identity", "orthonormal"]

_LONGEST_PRODUCT = 512
"""The longest side whose cosines are a product with their matrix; JAX's goes by FFT.

On CPU cores the product is 3 times as fast at 64 pixels and twice as fast at 256.
"""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Basis(Value):
    """One orthonormal basis: a frozen pytree, safe to pass to jit.

    Make one with a function of `ddpm_jax.bases`, which checks its arguments; the class itself does
    not.
    """

    matrix: Float[Array, "d d"] | None
    """Of an `orthonormal` basis: float32 `[d, d]`, a mode in each row. None for the others."""
    kind: Literal["identity", "dct", "fourier", "orthonormal"] = dataclasses.field(
        metadata={"static": True}
    )
    """Which transform it is."""
    axes: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})
    """The axes of the data that `dct` and `fourier` transform, the batch not counted."""
    shape: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})
    """The shape of one example of an `orthonormal` basis; empty for the others."""

    def to_modes(self, x: Float[Array, "batch *data"]) -> Float[Array, "batch *data"]:
        """B x: as many modes as there are data.

        Args:
            x: data, `[batch, ...]`, floating point.

        Returns:
            The modes, shaped as `x`, float32 at least; the identity returns `x` itself.

        Raises:
            ValueError: data that the basis does not fit.
        """
        if self.kind == "identity":
            return x
        x = self._fitting(x)
        match self.kind:
            case "dct":
                return _cosine_transform(x, self.axes, inverse=False)
            case "fourier":
                return _each_image(_hartley, x, self.axes)
            case _:
                return einsum("bd,md->bm", x.reshape(len(x), -1), self.matrix).reshape(x.shape)

    def to_data(self, modes: Float[Array, "batch *data"]) -> Float[Array, "batch *data"]:
        """B^T modes, the inverse of `to_modes`.

        Args:
            modes: `[batch, ...]`, floating point.

        Returns:
            The data, shaped as `modes`, float32 at least; the identity returns `modes` itself.

        Raises:
            ValueError: modes that the basis does not fit.
        """
        if self.kind == "identity":
            return modes
        modes = self._fitting(modes)
        match self.kind:
            case "dct":
                return _cosine_transform(modes, self.axes, inverse=True)
            case "fourier":
                return _each_image(_hartley, modes, self.axes)  # its own inverse
            case _:
                flat = modes.reshape(len(modes), -1)
                return einsum("bm,md->bd", flat, self.matrix).reshape(modes.shape)

    def diagonal(self, variances: Float[Array, "batch *modes"]) -> Float[Array, "batch *pixels"]:
        r"""The variance of each element of the data, if the modes are independent.

        .. math::

            \mathrm{diag}\big(B^T \mathrm{diag}(\lambda)\, B\big)

        Args:
            variances: lambda, of the modes, `[batch, *modes]`. For `fourier` they have to be even
                in each frequency, as those of everything stationary are: then all elements along
                its axes have one variance.

        Returns:
            The variances of the elements, `[batch, *pixels]`; an axis has length 1 where all
            elements along it have the same.
        """
        match self.kind:
            case "dct":
                for axis in self._batched_axes:
                    if axis < variances.ndim and variances.shape[axis] > 1:
                        squares = np.square(_cosines(variances.shape[axis])).astype(variances.dtype)
                        moved = jnp.moveaxis(variances, axis, -1)
                        moved = einsum("...k,kn->...n", moved, jnp.asarray(squares))
                        variances = jnp.moveaxis(moved, -1, axis)
                return variances
            case "fourier" if variances.ndim > 1:
                return jnp.mean(variances, axis=self._batched_axes, keepdims=True)
            case "orthonormal" if self.matrix is not None and math.prod(variances.shape[1:]) > 1:
                flat = variances.reshape(len(variances), -1)
                return einsum("bm,md->bd", flat, jnp.square(self.matrix)).reshape(variances.shape)
            case _:
                return variances

    def check_modes(self, name: str, modes: tuple[int, ...]) -> None:
        """Raises ValueError unless tables of this shape can be those of the modes.

        Args:
            name: of the tables, for the error's text.
            modes: the shape of one time's table.

        Raises:
            ValueError: too few axes, or a shape that is not the basis's.
        """
        fits = (len(modes) > max(self.axes)) if self.axes else True
        if self.kind == "orthonormal":
            fits = modes == self.shape or (len(modes) == len(self.shape) and math.prod(modes) == 1)
        if not fits:
            needs = self.shape or f"as many axes as the data, of which it takes {self.axes}"
            raise ValueError(f"{name} has the modes {modes}; the {self.kind} basis needs {needs}")

    @property
    def _batched_axes(self) -> tuple[int, ...]:
        return tuple(axis + 1 for axis in self.axes)

    def _fitting(self, x: jax.Array) -> jax.Array:
        if self.axes and x.ndim <= max(self._batched_axes):
            raise ValueError(
                f"the data have shape {x.shape}; the {self.kind} basis is one over their axes"
                f" {self.axes}, after the batch"
            )
        if self.kind == "orthonormal" and x.shape[1:] != self.shape:
            raise ValueError(
                f"the data have shape {x.shape}; the basis is one of data shaped"
                f" (batch, {', '.join(map(str, self.shape))})"
            )
        return widened(x)


def identity() -> Basis:
    """The data's own coordinates: each pixel is a mode.

    Returns:
        The basis B = I, for data of any shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import bases
        >>> bases.identity().to_modes(jnp.ones((1, 2))).tolist()
        [[1.0, 1.0]]
    """
    return Basis(None, "identity")


def dct(axes: tuple[int, ...] = (0, 1)) -> Basis:
    r"""The orthonormal cosine transform (type II) over `axes` of the data.

    Along an axis of length n, with c_0 = sqrt(1 / n) and c_k = sqrt(2 / n) for the others,

    .. math::

        B_{k j} = c_k \cos\frac{\pi k (2 j + 1)}{2 n}

    (Ahmed et al. 1974). Convolutions with a symmetric kernel and a mirrored border, blurring among
    them, are diagonal in it.

    Args:
        axes: of the data, the batch not counted; by default height and width.

    Returns:
        The basis, for data that have these axes.

    Raises:
        ValueError: no axes, an axis below 0, or one twice.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import bases
        >>> modes = bases.dct().to_modes(jnp.ones((1, 2, 2, 1)))  # all of it in the mean
        >>> round(float(modes[0, 0, 0, 0]), 3)
        2.0

    References:
        Ahmed et al. 1974, https://doi.org/10.1109/T-C.1974.223784
    """
    return Basis(None, "dct", _checked(axes))


def fourier(axes: tuple[int, ...] = (0, 1)) -> Basis:
    r"""The real Fourier basis over `axes` of the data, in Hartley's form.

    Along an axis of length n,

    .. math::

        B_{k j} = \frac{1}{\sqrt{n}} \Big(\cos\frac{2 \pi k j}{n} + \sin\frac{2 \pi k j}{n}\Big)

    which is the real part minus the imaginary part of the orthonormal FFT (Bracewell 1983); over
    several axes k j / n is a sum over them. Real data have as many real modes, and the transform is
    its own inverse. Covariances that are stationary and periodic are diagonal in it; their spectra
    are even, lambda(k) = lambda(-k).

    Args:
        axes: of the data, the batch not counted; by default height and width.

    Returns:
        The basis, for data that have these axes.

    Raises:
        ValueError: no axes, an axis below 0, or one twice.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import bases
        >>> modes = bases.fourier().to_modes(jnp.ones((1, 2, 2, 1)))  # all of it in the mean
        >>> round(float(modes[0, 0, 0, 0]), 3)
        2.0

    References:
        Bracewell 1983, https://doi.org/10.1364/JOSA.73.001832
    """
    return Basis(None, "fourier", _checked(axes))


def orthonormal(matrix: ArrayLike, shape: tuple[int, ...] | None = None) -> Basis:
    """Any basis, by its matrix, read in float64.

    Args:
        matrix: B, `[d, d]`, a mode in each row; orthonormal to 1e-5, an error that rounding to
            float32 may cause.
        shape: of one example, with d elements; by default `(d,)`. Modes have this shape, too.

    Returns:
        The basis, its matrix in float32.

    Raises:
        ValueError: a matrix that is not square or not orthonormal, or a shape that does not hold d.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax import bases
        >>> images = np.random.default_rng(0).normal(size=(100, 2, 3))
        >>> _, axes = np.linalg.eigh(np.cov(images.reshape(100, 6), rowvar=False))
        >>> principal = bases.orthonormal(axes.T, shape=(2, 3))
    """
    host = np.asarray(matrix, np.float64)
    if host.ndim != 2 or host.shape[0] != host.shape[1] or host.size == 0:
        raise ValueError(f"matrix has shape {host.shape}; it has to be (d, d), a mode in each row")
    if not np.isfinite(host).all():
        raise ValueError("matrix is not finite; a basis is")
    error = np.abs(host @ host.T - np.eye(len(host)))
    if error.max() > 1e-5:
        i, j = np.unravel_index(np.argmax(error), error.shape)
        raise ValueError(
            f"matrix is not orthonormal: row {i} times row {j} is {(host @ host.T)[i, j]:.6g},"
            f" not {float(i == j):g}"
        )
    shape = (len(host),) if shape is None else tuple(shape)
    if math.prod(shape) != len(host):
        raise ValueError(f"shape is {shape}; it has to hold the {len(host)} modes of matrix")
    return Basis(jnp.asarray(host.astype(np.float32)), "orthonormal", shape=shape)


def _cosine_transform(x: Array, axes: tuple[int, ...], *, inverse: bool) -> Array:
    for axis in axes:
        n = x.shape[axis + 1]
        if n <= _LONGEST_PRODUCT:
            matrix = jnp.asarray(_cosines(n), x.dtype)
            last = jnp.moveaxis(x, axis + 1, -1)
            turned = einsum("...n,nk->...k", last, matrix if inverse else matrix.T)
            x = jnp.moveaxis(turned, -1, axis + 1)
        else:
            transform = jax.scipy.fft.idctn if inverse else jax.scipy.fft.dctn
            x = _each_image(transform, x, (axis,))
    return x


def _each_image(transform: Callable[..., Array], x: Array, axes: tuple[int, ...]) -> Array:
    """An orthonormal `transform` of each example; JAX's cannot split a batch over a mesh."""
    return jax.vmap(lambda image: transform(image, axes=axes, norm="ortho"))(x)


def _hartley(x: Array, *, axes: tuple[int, ...], norm: str) -> Array:
    spectrum = jnp.fft.fftn(x, axes=axes, norm=norm)
    return spectrum.real - spectrum.imag


def _cosines(n: int) -> np.ndarray:
    """The matrix of the orthonormal DCT of length n, a mode in each row."""
    k, x = np.arange(n)[:, None], np.arange(n)[None, :]
    matrix = np.sqrt(2.0 / n) * np.cos(np.pi * k * (2 * x + 1) / (2 * n))
    matrix[0] /= math.sqrt(2.0)
    return matrix


def _checked(axes: tuple[int, ...]) -> tuple[int, ...]:
    axes = tuple(axes)
    if not axes or min(axes) < 0 or len(set(axes)) < len(axes):
        raise ValueError(
            f"axes is {axes}; it has to name different axes of the data, from 0, without the batch"
        )
    return axes
