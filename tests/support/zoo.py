"""Chains told by their steps, and the truth about each: what the litmus test has to find out.

A linear chain comes with its A_t, b_t and Q_t in float64, written down from its definition.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr, ndtr

T = 16
rng = np.random.default_rng(0)


class Animal(NamedTuple):
    """One chain and what it is."""

    row: str
    shape: tuple[int, ...]
    step: Callable
    A: Any = None
    Q: Any = None
    b: Any = 0.0
    process: str = ""
    basis: str = ""
    law: str = ""

    def truth(self):
        """A, b, Q `[T, d, d]`, or None; scalars stand for multiples of the identity."""
        if self.A is None:
            return None
        d = int(np.prod(self.shape))

        def matrices(values):
            values = np.asarray(values, np.float64)
            if values.ndim == 3:
                return np.broadcast_to(values, (T, d, d))
            rows = values.reshape(-1, 1) if values.ndim < 2 else values
            return np.broadcast_to(rows, (T, d))[:, :, None] * np.eye(d)

        shift = np.broadcast_to(np.reshape(np.asarray(self.b, np.float64), (-1, 1)), (T, d))
        return matrices(self.A), shift, matrices(self.Q)


def table(values):
    return jnp.asarray(np.asarray(values, np.float32))


def scaled(keep, add):
    """x_t = keep_t x + add_t eps, tables [T, ...] that broadcast."""
    keep, add = table(keep), table(add)
    return lambda x, eps, t: keep[t] * x + add[t] * eps


def mixed(A, B, b=0.0):
    """x_t = A_t x + B_t eps + b_t with dense matrices, of whatever shape the sample has."""
    A, B = (table(np.broadcast_to(M, (T, *M.shape[-2:]))) for M in (A, B))
    b = table(np.broadcast_to(b, T))

    def step(x, eps, t):
        return (A[t] @ x.reshape(-1) + B[t] @ eps.reshape(-1) + b[t]).reshape(x.shape)

    return step


def at(time, odd, step):
    """`step`, but `odd` at one time."""
    return lambda x, eps, t: jnp.where(t == time, odd(x, eps, t), step(x, eps, t))


def noisy(noise):
    """sqrt(1 - beta) x + sqrt(beta) noise(eps)."""
    return lambda x, eps, t: KEEP[t] * x + ADD[t] * noise(eps)


def rotation(angle, d=8):
    """In the plane of the first two axes."""
    matrix = np.eye(d)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return matrix


def blur_matrix(n, kernel, mirrored):
    """Of convolution with an odd kernel on n points, mirrored (half-sample) or periodic."""
    matrix, half = np.zeros((n, n)), len(kernel) // 2
    for i in range(n):
        for offset, weight in enumerate(kernel, -half):
            j = i + offset
            if mirrored:
                j = -j - 1 if j < 0 else 2 * n - 1 - j if j >= n else j
            matrix[i, j % n] += weight
    return matrix


def convolved(kernel, mode):
    """Convolution of images [h, w] or [h, w, c], done by padding and adding up."""
    half = len(kernel) // 2

    def blur(x):
        for axis in (0, 1):
            widths = [(half, half) if i == axis else (0, 0) for i in range(x.ndim)]
            padded = jnp.pad(x, widths, mode=mode)
            n = x.shape[axis]
            x = sum(
                w * jax.lax.slice_in_dim(padded, i, i + n, axis=axis) for i, w in enumerate(kernel)
            )
        return x

    return blur


def kron(*matrices):
    product = np.eye(1)
    for matrix in matrices:
        product = np.kron(product, matrix)
    return product


betas = np.linspace(0.02, 0.3, T)
KEEP, ADD = table(np.sqrt(1.0 - betas)), table(np.sqrt(betas))
keep, add = np.sqrt(1.0 - betas), np.sqrt(betas)
vp = scaled(keep, add)

harmonic = 1.0 / (1.0 + 0.1 * np.arange(T + 1))  # alpha_bar: beta_t = 0.1 alpha_bar_t
harmonic_betas = 1.0 - harmonic[1:] / harmonic[:-1]
H_KEEP, H_ADD = table(np.sqrt(1.0 - harmonic_betas)), table(np.sqrt(harmonic_betas))

sub_alpha = np.cumprod(1.0 - betas)
sub_noise = (1.0 - sub_alpha) ** 2
sub_q = np.diff(sub_noise, prepend=0.0) + betas * np.append(0.0, sub_noise[:-1])

uneven = 1.0 + 1e-3 * np.linspace(-1.0, 1.0, 8)
channels = np.stack([betas, 1.001 * betas, 0.5 * betas], axis=-1)
pixels = betas[:, None, None] * rng.uniform(0.3, 1.0, (8, 8))
basis = np.linalg.qr(rng.normal(size=(8, 8)))[0]
spectrum = 0.1 / (1.0 + np.arange(8)) ** 2
near = basis @ np.diag(np.sqrt(spectrum)) @ basis.T
kernel = [0.2, 0.6, 0.2]
lopsided = [0.1, 0.6, 0.3]
mirrored, periodic = (
    kron(blur_matrix(8, kernel, mirror), blur_matrix(8, kernel, mirror)) for mirror in (True, False)
)
circulant = np.stack(
    [np.roll(np.exp(-np.minimum(np.arange(8), 8 - np.arange(8)) / 2.0), i) for i in range(8)]
)
fading = 1.0 - 0.3 * np.linspace(0.2, 1.0, T)[:, None] * np.arange(8) / 8.0
growing = 0.05 + 0.2 * np.linspace(0.1, 1.0, T)[:, None] * (np.arange(8)[::-1] + 1.0) / 8.0


def in_basis(diagonals, matrices):
    return np.swapaxes(matrices, -1, -2) @ (np.asarray(diagonals)[..., None] * matrices)


same = np.broadcast_to(basis, (T, 8, 8))
turned = np.stack([basis if t < T // 2 else rotation(1e-3) @ basis for t in range(T)])
turns = np.stack([np.linalg.qr(rng.normal(size=(8, 8)))[0] for _ in range(T)])
spin = np.sqrt(1.0 - betas)[:, None, None] * rotation(0.3)
shear = 0.9 * (np.eye(8) + 0.2 * np.eye(8, k=1))
shared = np.full((8, 8), 1.0 / 8.0)

remembered_a = np.block([[0.9 * np.eye(4), 0.3 * np.eye(4)], [np.zeros((4, 8))]])
remembered_b = np.block([[np.zeros((4, 4)), 0.4 * np.eye(4)], [np.zeros((4, 4)), np.eye(4)]])


def remembering(x, eps, t):
    """The noise of this step and of the last, which the sample carries along."""
    sample, last = x
    fresh = eps[1]
    return jnp.stack([0.9 * sample + 0.3 * last + 0.4 * fresh, fresh])


def laplace(eps):
    u = ndtr(eps) - 0.5
    return -jnp.sign(u) * jnp.log1p(-2.0 * jnp.abs(u)) * 2.0**-0.5


def straight_through(x):
    """Rounded, with the slope of what is not."""
    return x + jax.lax.stop_gradient(jnp.round(64.0 * x) / 64.0 - x)


def one_at(t, value, other):
    return np.where(np.arange(T) == t, value, other)


ZOO = {
    "DDPM": Animal("isotropic", (8,), vp, keep, betas, process="Schedule"),
    "DDPM, no signal left at T - 1": Animal(
        "isotropic",
        (8,),
        scaled(one_at(T - 1, 0.0, keep), one_at(T - 1, 1.0, add)),
        one_at(T - 1, 0.0, keep),
        one_at(T - 1, 1.0, betas),
        process="Schedule",
    ),
    "variance exploding": Animal(
        "isotropic",
        (8,),
        lambda x, eps, t: x + 1.3 ** t.astype(jnp.float32) * eps,
        1.0,
        1.69 ** np.arange(T),
        process="Spectral",
    ),
    "sub-VP": Animal(
        "isotropic", (8,), scaled(keep, np.sqrt(sub_q)), keep, sub_q, process="Spectral"
    ),
    "mean-reverting to 0, variance 4": Animal(
        "isotropic", (8,), scaled(keep, 2.0 * add), keep, 4.0 * betas, process="Spectral"
    ),
    "no noise at t = 9 only": Animal(
        "isotropic",
        (8,),
        scaled(keep, one_at(9, 0.0, add)),
        keep,
        one_at(9, 0.0, betas),
        process="Spectral",
    ),
    "noise turned by a matrix at each t": Animal(
        "isotropic",
        (8,),
        mixed(keep[:, None, None] * np.eye(8), add[:, None, None] * turns),
        keep,
        betas,
        process="Schedule",
    ),
    "noise turned by the sign of x": Animal(
        "isotropic",
        (8,),
        lambda x, eps, t: vp(x, jnp.where(x > 0.3, eps, -eps), t),
        keep,
        betas,
        process="Schedule",
    ),
    "noise folded onto another normal": Animal(
        "isotropic",
        (8,),
        noisy(lambda eps: jnp.where(jnp.abs(jnp.abs(eps) - 1.0) < 0.3, -eps, eps)),
        keep,
        betas,
        process="Schedule",
        law="normal",
    ),
    "anisotropy of 1e-3": Animal(
        "spectral",
        (8,),
        scaled(keep[:, None], add[:, None] * np.sqrt(uneven)),
        keep,
        betas[:, None] * uneven,
        basis="identity",
    ),
    "betas per channel": Animal(
        "spectral",
        (4, 4, 3),
        scaled(np.sqrt(1.0 - channels)[:, None, None], np.sqrt(channels)[:, None, None]),
        np.tile(np.sqrt(1.0 - channels), 16),
        np.tile(channels, 16),
        basis="identity",
    ),
    "betas per pixel": Animal(
        "spectral",
        (8, 8),
        scaled(np.sqrt(1.0 - pixels), np.sqrt(pixels)),
        np.sqrt(1.0 - pixels).reshape(T, 64),
        pixels.reshape(T, 64),
        basis="identity",
    ),
    "blurring, mirrored border": Animal(
        "spectral",
        (8, 8),
        lambda x, eps, t: convolved(kernel, "symmetric")(x) + 0.1 * eps,
        mirrored[None],
        0.01,
        basis="dct",
    ),
    "blurring, periodic border": Animal(
        "spectral",
        (8, 8),
        lambda x, eps, t: convolved(kernel, "wrap")(x) + 0.1 * eps,
        periodic[None],
        0.01,
        basis="fourier",
    ),
    "stationary correlated noise": Animal(
        "spectral",
        (8,),
        mixed(keep[:, None, None] * np.eye(8), add[:, None, None] * np.linalg.cholesky(circulant)),
        keep,
        betas[:, None, None] * circulant,
        basis="fourier",
    ),
    "principal axes of the data": Animal(
        "spectral",
        (8,),
        mixed(keep[:, None, None] * np.eye(8), near),
        keep,
        (near @ near.T)[None],
        basis="eigenbasis",
    ),
    "bases that commute": Animal(
        "spectral",
        (8,),
        mixed(in_basis(fading, same), in_basis(np.sqrt(growing), same)),
        in_basis(fading, same),
        in_basis(growing, same),
        basis="eigenbasis",
    ),
    "bases that almost commute, 1e-3": Animal(
        "affine",
        (8,),
        mixed(in_basis(fading, turned), in_basis(np.sqrt(growing), turned)),
        in_basis(fading, turned),
        in_basis(growing, turned),
    ),
    "noise's axes almost those of x, 1e-3": Animal(
        "affine",
        (8,),
        mixed(in_basis(fading, same), in_basis(np.sqrt(growing), rotation(1e-3) @ same)),
        in_basis(fading, same),
        in_basis(growing, rotation(1e-3) @ same),
    ),
    "mean-reverting to 0.5": Animal(
        "affine",
        (8,),
        lambda x, eps, t: 0.5 + KEEP[t] * (x - 0.5) + ADD[t] * eps,
        keep,
        betas,
        b=0.5 * (1.0 - keep),
    ),
    "rotation": Animal("affine", (8,), mixed(spin, add[:, None, None] * np.eye(8)), spin, betas),
    "shear": Animal("affine", (8,), mixed(shear, 0.3 * np.eye(8)), shear[None], 0.09),
    "lopsided kernel": Animal(
        "affine",
        (8,),
        lambda x, eps, t: 0.1 * jnp.roll(x, -1) + 0.6 * x + 0.3 * jnp.roll(x, 1) + 0.1 * eps,
        blur_matrix(8, lopsided[::-1], False)[None],
        0.01,
    ),
    "sign flips": Animal("affine", (8,), scaled(-keep, add), -keep, betas),
    "wiped at t = 7": Animal(
        "affine", (8,), scaled(one_at(7, 0.0, keep), add), one_at(7, 0.0, keep), betas
    ),
    "no noise at t = 0": Animal(
        "affine", (8,), scaled(keep, one_at(0, 0.0, add)), keep, one_at(0, 0.0, betas)
    ),
    "noise shared between pixels": Animal(
        "affine",
        (8,),
        lambda x, eps, t: KEEP[t] * x + ADD[t] * jnp.mean(eps),
        keep,
        betas[:, None, None] * shared @ shared,
    ),
    "noise shared between steps": Animal(
        "affine", (2, 4), remembering, remembered_a[None], (remembered_b @ remembered_b.T)[None]
    ),
    "gamma noise, eps^2 - 1": Animal(
        "closed, not Gaussian",
        (8,),
        lambda x, eps, t: H_KEEP[t] * x + H_ADD[t] * 0.5**0.5 * (jnp.square(eps) - 1.0),
        np.sqrt(1.0 - harmonic_betas),
        harmonic_betas,
        process="GammaChain",
        law="gamma",
    ),
    "exponential noise": Animal(
        "closed, not Gaussian",
        (8,),
        lambda x, eps, t: H_KEEP[t] * x + H_ADD[t] * (-log_ndtr(eps) - 1.0),
        np.sqrt(1.0 - harmonic_betas),
        harmonic_betas,
        process="GammaChain",
        law="gamma",
    ),
    "exponential noise, tail below": Animal(
        "closed, not Gaussian",
        (8,),
        lambda x, eps, t: H_KEEP[t] * x - H_ADD[t] * (-log_ndtr(eps) - 1.0),
        process="NoneType",
        law="gamma",
    ),
    "Cauchy noise": Animal(
        "closed, not Gaussian",
        (8,),
        noisy(lambda eps: jnp.tan(jnp.pi * (ndtr(eps) - 0.5))),
        process="NoneType",
        law="Cauchy",
    ),
    "gamma noise, no shared scale": Animal(
        "loop",
        (8,),
        noisy(lambda eps: 0.5**0.5 * (jnp.square(eps) - 1.0)),
        keep,
        betas,
        law="gamma",
    ),
    "Laplace noise": Animal("loop", (8,), noisy(laplace), keep, betas),
    "uniform noise": Animal(
        "loop", (8,), noisy(lambda eps: 12.0**0.5 * (ndtr(eps) - 0.5)), keep, betas
    ),
    "coin tosses": Animal("loop", (8,), noisy(jnp.sign), keep, betas),
    "noise with 1e-3 eps^3 in it": Animal(
        "loop",
        (8,),
        noisy(lambda eps: (eps + 1e-3 * (eps**3 - 3.0 * eps)) / (1.0 + 6e-6) ** 0.5),
        keep,
        betas,
    ),
    "products of two normals": Animal(
        "loop", (8,), lambda x, eps, t: H_KEEP[t] * x + H_ADD[t] * eps * jnp.roll(eps, 1)
    ),
    "exponential noise, but Laplace's at t = 5": Animal(
        "loop",
        (8,),
        at(
            5,
            lambda x, eps, t: H_KEEP[t] * x + H_ADD[t] * laplace(eps),
            lambda x, eps, t: H_KEEP[t] * x + H_ADD[t] * (-log_ndtr(eps) - 1.0),
        ),
        np.sqrt(1.0 - harmonic_betas),
        harmonic_betas,
    ),
    "drift with 1e-3 sin(x)": Animal(
        "loop", (8,), lambda x, eps, t: vp(x, eps, t) + 1e-3 * jnp.sin(x)
    ),
    "noise that grows with x, 1e-3": Animal(
        "loop", (8,), lambda x, eps, t: vp(x, eps * (1.0 + 1e-3 * jnp.tanh(x)), t)
    ),
    "multiplicative noise": Animal("loop", (8,), lambda x, eps, t: x + ADD[t] * x * eps),
    "tanh": Animal("loop", (8,), lambda x, eps, t: jnp.tanh(x) + ADD[t] * eps),
    "clipped at 3": Animal("loop", (8,), lambda x, eps, t: jnp.clip(vp(x, eps, t), -3.0, 3.0)),
    "noise clipped at 3": Animal("loop", (8,), noisy(lambda eps: jnp.clip(eps, -3.0, 3.0))),
    "positive part": Animal("loop", (8,), lambda x, eps, t: jax.nn.relu(vp(x, eps, t))),
    "256 grey levels": Animal(
        "loop", (8,), lambda x, eps, t: jnp.round(127.5 * vp(x, eps, t)) / 127.5
    ),
    "grey levels with a straight-through slope": Animal(
        "loop", (8,), lambda x, eps, t: vp(straight_through(x), eps, t)
    ),
    "noise in steps with a straight-through slope": Animal("loop", (8,), noisy(straight_through)),
    "nonlinear at t = 11 only": Animal(
        "loop", (8,), at(11, lambda x, eps, t: vp(x, eps, t) + 1e-3 * jnp.square(x), vp)
    ),
    "on the sphere": Animal(
        "loop", (8,), lambda x, eps, t: vp(x, eps, t) / (1e-3 + jnp.linalg.norm(vp(x, eps, t)))
    ),
}

colours = np.linalg.qr(rng.normal(size=(3, 3)))[0]
tints = np.array([0.05, 0.1, 0.2])
dct_frequencies = np.pi * np.arange(16) / 16
melting = np.exp(-0.05 * (dct_frequencies[:, None] ** 2 + dct_frequencies**2))[:, :, None]
MELTING = table(melting)


def melt(x, eps, t):
    modes = jax.scipy.fft.dctn(x, axes=(0, 1), norm="ortho")
    return jax.scipy.fft.idctn(MELTING * modes, axes=(0, 1), norm="ortho") + 0.1 * eps


IMAGES = {
    "DDPM, images": Animal("isotropic", (16, 16, 3), vp, process="Schedule"),
    "heat, images": Animal("spectral", (16, 16, 3), melt, process="Spectral", basis="dct"),
    "mixed colours, images": Animal(
        "spectral",
        (16, 16, 3),
        lambda x, eps, t: KEEP[t] * x + eps @ table(colours @ np.diag(tints) @ colours.T),
        process="NoneType",
    ),
    "lopsided kernel, images": Animal(
        "affine",
        (16, 16, 3),
        lambda x, eps, t: convolved(lopsided, "wrap")(x) + 0.1 * eps,
        process="NoneType",
    ),
    "one pixel bends, images": Animal(
        "loop",
        (16, 16, 3),
        lambda x, eps, t: vp(x, eps, t).at[3, 4, 0].add(1e-3 * jnp.sin(x[3, 4, 0])),
    ),
}
