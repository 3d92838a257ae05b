"""Bases against their matrices, written out in float64, and against scipy's transforms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import scipy.ndimage
from exact_modes import cosines, hartley

from ddpm_jax import bases

SHAPE = (4, 3, 2)
AXES = [(0, 1), (1, 0), (0,), (1,), (2,), (0, 1, 2)]
IMAGES = np.random.default_rng(0).normal(size=(5, *SHAPE))
ROTATION = np.linalg.qr(np.random.default_rng(1).normal(size=(24, 24)))[0]


def matrix_of(kind, axes, shape=SHAPE):
    """B for flattened data: the transform of `axes`, identity on the others."""
    size = int(np.prod(shape))
    rest = [axis for axis in range(len(shape)) if axis not in axes]
    sides = [shape[axis] for axis in sorted(axes)]
    if kind == "dct":
        small = cosines(sides[0])
        for side in sides[1:]:
            small = np.kron(small, cosines(side))
    else:
        small = hartley(*sides)
    # Axes in the order (transformed, rest), and back.
    order = [*sorted(axes), *rest]
    places = np.arange(size).reshape(shape).transpose(order).ravel()
    full = np.zeros((size, size))
    full[np.ix_(places, places)] = np.kron(small, np.eye(size // len(small)))
    return full


def made(kind, axes):
    return getattr(bases, kind)(axes)


TRANSFORMS = [*itertools.product(("dct", "fourier"), AXES)]
BASES = {
    **{f"{kind} {axes}": (made(kind, axes), matrix_of(kind, axes)) for kind, axes in TRANSFORMS},
    "identity": (bases.identity(), np.eye(24)),
    "orthonormal": (bases.orthonormal(ROTATION, SHAPE), ROTATION),
}
every_basis = pytest.mark.parametrize("name", BASES)


def flat(x):
    return np.asarray(x, np.float64).reshape(len(x), -1)


@every_basis
def test_a_basis_is_its_matrix_and_the_matrix_is_orthonormal(name):
    basis, matrix = BASES[name]
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(24), atol=1e-14)
    x = jnp.asarray(IMAGES, jnp.float32)
    np.testing.assert_allclose(flat(basis.to_modes(x)), flat(IMAGES) @ matrix.T, atol=2e-6)
    np.testing.assert_allclose(flat(basis.to_data(x)), flat(IMAGES) @ matrix, atol=2e-6)


@every_basis
def test_there_and_back_and_the_length_is_kept(name):
    basis, x = BASES[name][0], jnp.asarray(IMAGES, jnp.float32)
    for back, there in ((basis.to_data, basis.to_modes), (basis.to_modes, basis.to_data)):
        np.testing.assert_allclose(back(there(x)), x, atol=2e-6)
        np.testing.assert_allclose(
            np.square(flat(there(x))).sum(axis=1), np.square(flat(x)).sum(axis=1), rtol=1e-6
        )


@pytest.mark.parametrize("shape", [(1, 8, 1), (7, 5, 3), (16, 16, 1), (9,)])
def test_scipy_says_the_same(shape):
    axes = tuple(range(min(2, len(shape))))
    batched = tuple(axis + 1 for axis in axes)
    x = np.random.default_rng(2).normal(size=(3, *shape))
    ours = jnp.asarray(x, jnp.float32)
    by_cosines = scipy.fft.dctn(x, type=2, axes=batched, norm="ortho")
    np.testing.assert_allclose(bases.dct(axes).to_modes(ours), by_cosines, atol=1e-5)
    spectrum = scipy.fft.fftn(x, axes=batched, norm="ortho")
    by_hartley = spectrum.real - spectrum.imag
    np.testing.assert_allclose(bases.fourier(axes).to_modes(ours), by_hartley, atol=1e-5)


def test_sides_too_long_for_a_product_go_by_fft():
    x = np.random.default_rng(0).normal(size=(2, 600, 2)).astype(np.float32)
    modes = bases.dct((0,)).to_modes(jnp.asarray(x))
    np.testing.assert_allclose(modes, scipy.fft.dctn(x, axes=(1,), norm="ortho"), atol=2e-5)
    np.testing.assert_allclose(bases.dct((0,)).to_data(modes), x, atol=2e-5)


@pytest.mark.parametrize("kind", ["dct", "fourier"])
def test_what_is_blurred_or_stationary_is_diagonal(kind):
    # The matrix of a convolution with a symmetric kernel, one unit image at a time, by scipy: with
    # a mirrored border for cosines, a periodic one for Fourier.
    sides, kernel = (5, 6), np.outer([0.1, 0.2, 0.4, 0.2, 0.1], [0.05, 0.2, 0.5, 0.2, 0.05])
    units = np.eye(30).reshape(30, *sides)
    mode = {"dct": "reflect", "fourier": "wrap"}[kind]
    convolution = [scipy.ndimage.convolve(unit, kernel, mode=mode).ravel() for unit in units]
    to_modes = matrix_of(kind, (0, 1), sides)
    by_modes = to_modes @ np.array(convolution).T @ to_modes.T
    np.testing.assert_allclose(by_modes, np.diag(np.diag(by_modes)), atol=1e-14)
    basis = made(kind, (0, 1))
    x = np.random.default_rng(3).normal(size=sides)
    found = basis.to_data(
        jnp.asarray(np.diag(by_modes).reshape(1, *sides), jnp.float32)
        * basis.to_modes(jnp.asarray(x, jnp.float32)[None])
    )
    np.testing.assert_allclose(found[0], scipy.ndimage.convolve(x, kernel, mode=mode), atol=2e-6)


def test_cosines_diagonalise_heat_and_hartley_every_periodic_covariance():
    # Diffusion between neighbours, with no way out at the border; and stationary covariances.
    laplacian = -2.0 * np.eye(8) + np.eye(8, k=1) + np.eye(8, k=-1)
    laplacian[0, 0] = laplacian[-1, -1] = -1.0
    of_cosines = cosines(8) @ scipy.linalg.expm(0.7 * laplacian) @ cosines(8).T
    expected = np.exp(-0.7 * (2.0 - 2.0 * np.cos(np.pi * np.arange(8) / 8)))
    np.testing.assert_allclose(of_cosines, np.diag(expected), atol=1e-14)
    distance = np.minimum(np.arange(9), 9 - np.arange(9))
    covariance = scipy.linalg.circulant(np.exp(-0.5 * distance))
    of_hartley = hartley(9) @ covariance @ hartley(9).T
    spectrum = np.fft.fft(covariance[0]).real
    np.testing.assert_allclose(of_hartley, np.diag(spectrum), atol=1e-14)


def shapes_of_modes(name):
    """The data's own, and those that share some modes."""
    if name == "orthonormal":
        return [SHAPE, (1, 1, 1)]
    return [SHAPE, (4, 3, 1), (1, 3, 1), (4, 1, 2), (1, 1, 1), (1, 1, 2)]


@pytest.mark.thorough
@every_basis
def test_the_diagonal_is_that_of_the_matrix(name):
    basis, matrix = BASES[name]
    rng = np.random.default_rng(4)
    for modes in shapes_of_modes(name):
        variances = rng.uniform(0.1, 2.0, size=(3, *modes))
        if basis.kind == "fourier":  # those of something stationary are even
            axes = tuple(axis + 1 for axis in basis.axes)
            variances = 0.5 * (variances + np.roll(np.flip(variances, axes), 1, axes))
        basis.check_modes("variances", modes)
        full = np.broadcast_to(variances, (3, *SHAPE)).reshape(3, -1)
        expected = np.stack([np.diag(matrix.T @ np.diag(row) @ matrix) for row in full])
        found = basis.diagonal(jnp.asarray(variances, jnp.float32))
        assert found.ndim == variances.ndim
        filled = np.broadcast_to(found, (3, *SHAPE)).reshape(3, -1)
        np.testing.assert_allclose(filled, expected, rtol=2e-6)


def test_the_diagonal_of_one_number_for_each_example_is_that_number():
    values = jnp.array([0.5, 2.0])
    for basis, _ in BASES.values():
        np.testing.assert_array_equal(basis.diagonal(values), values)


@pytest.mark.thorough
@every_basis
def test_bfloat16_is_transformed_in_float32(name):
    basis, matrix = BASES[name]
    x = jnp.asarray(IMAGES, jnp.bfloat16)
    modes = basis.to_modes(x)
    if name == "identity":
        assert modes is x
        return
    assert modes.dtype == basis.to_data(x).dtype == jnp.float32
    np.testing.assert_allclose(flat(modes), flat(x) @ matrix.T, atol=2e-6)


def test_numpy_is_welcome(without_annotation_checks):
    for basis, matrix in BASES.values():
        modes = basis.to_modes(IMAGES.astype(np.float32))
        np.testing.assert_allclose(flat(modes), flat(IMAGES) @ matrix.T, atol=2e-6)


@pytest.mark.thorough
@every_basis
def test_a_basis_is_a_pytree_and_linear(name):
    basis, matrix = BASES[name]
    x = jnp.asarray(IMAGES, jnp.float32)
    compiled = jax.jit(lambda basis, x: basis.to_modes(x))
    np.testing.assert_allclose(flat(compiled(basis, x)), flat(IMAGES) @ matrix.T, atol=2e-6)
    pulled = jax.vjp(basis.to_modes, x)[1](x)[0]  # the transpose is the inverse
    np.testing.assert_allclose(pulled, basis.to_data(x), atol=2e-6)
    stacked = jax.vmap(basis.to_modes)(jnp.stack([x, -x]))
    np.testing.assert_allclose(stacked[1], -basis.to_modes(x), atol=1e-6)


@pytest.mark.parametrize("axes", [(), (-1,), (0, 0), (0, 1, 0)])
@pytest.mark.parametrize("kind", ["dct", "fourier"])
def test_axes_that_cannot_be(kind, axes):
    with pytest.raises(ValueError, match=r"axes is \(.*it has to name different axes of the data"):
        made(kind, axes)


@pytest.mark.parametrize(
    ("matrix", "shape", "message"),
    [
        (np.ones((2, 3)), None, r"matrix has shape \(2, 3\); it has to be \(d, d\)"),
        (np.ones(4), None, r"matrix has shape \(4,\); it has to be \(d, d\)"),
        (np.zeros((0, 0)), None, r"matrix has shape \(0, 0\)"),
        (np.full((2, 2), np.nan), None, "matrix is not finite"),
        (np.diag([1.0, 1.001]), None, "not orthonormal: row 1 times row 1 is 1.002"),
        ([[1.0, 0.0], [0.6, 0.8]], None, "row 0 times row 1 is 0.6, not 0"),
        (np.eye(6), (2, 2), r"shape is \(2, 2\); it has to hold the 6 modes"),
    ],
)
def test_matrices_that_cannot_be(matrix, shape, message):
    with pytest.raises(ValueError, match=message):
        bases.orthonormal(matrix, shape)


def test_rounding_to_float32_is_orthonormal_enough():
    bases.orthonormal(ROTATION.astype(np.float32))
    with pytest.raises(ValueError, match="not orthonormal"):
        bases.orthonormal(ROTATION * (1.0 + 1e-5))


def test_data_that_do_not_fit():
    with pytest.raises(ValueError, match=r"shape \(2, 4\); the dct basis is one over their axes"):
        bases.dct().to_modes(jnp.ones((2, 4)))
    with pytest.raises(ValueError, match=r"shape \(2, 4\); the fourier basis"):
        bases.fourier().to_data(jnp.ones((2, 4)))
    basis = BASES["orthonormal"][0]
    for wrong in ((2, 24), (2, 4, 3, 1), (4, 3, 2)):
        with pytest.raises(ValueError, match=r"the basis is one of data shaped \(batch, 4, 3, 2\)"):
            basis.to_modes(jnp.ones(wrong))


def test_tables_that_do_not_fit():
    for name, modes in (("dct (0, 1)", (3,)), ("orthonormal", (4, 3, 1)), ("orthonormal", (24,))):
        with pytest.raises(ValueError, match=r"tables has the modes .* basis needs"):
            BASES[name][0].check_modes("tables", modes)
