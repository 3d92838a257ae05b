r"""Linear-Gaussian chains with dense matrices, which need neither commute nor be invertible.

A step is x_t = A_t x_{t-1} + b_t + N(0, Q_t). Two of them in a row are one of the same form:

.. math::

    (A_2, b_2, Q_2) \circ (A_1, b_1, Q_1)
    = \big(A_2 A_1,\ A_2 b_1 + b_2,\ A_2 Q_1 A_2^T + Q_2\big) \tag{1}

which is associative, so all marginals q(x_t | x_0) = N(M_t x_0 + m_t, C_t) come from one parallel
scan, log T deep (Blelloch 1990; for Gaussians Sarkka & Garcia-Fernandez 2021). Then, for any s < t,
with (A, b, Q) the steps s + 1 to t in one and mu = M x_0 + m,

.. math::

    x_t = M_t x_0 + m_t + C_t^{1/2} \epsilon \tag{2}

.. math::

    q(x_t \mid x_s) = \mathcal{N}(A x_s + b,\ Q) \tag{3}

.. math::

    q(x_s \mid x_t, x_0) = \mathcal{N}\big(\mu_s + K (x_t - \mu_t),\
    (I - K A) C_s (I - K A)^T + K Q K^T\big), \qquad K = C_s A^T C_t^+ \tag{4}

.. math::

    \mathrm{KL}\big(q(x_s \mid x_t, x_0) \,\|\, q(x_s \mid x_t, \hat{x}_0)\big)
    = \tfrac12 d^T (S_s - S_t)\, d, \qquad S = M^T C^+ M, \qquad d = x_0 - \hat{x}_0 \tag{5}

Eq. (4) is Gaussian conditioning with the covariance in Joseph's form, a sum of squares that
rounding leaves positive semi-definite. S is the matrix of signal to noise, and eq. (5) half the
squared Mahalanobis length of the difference of the two means in the covariance that they share: the
chain rule of the KL, applied to (x_s, x_t), gives it as the information on x_0 that x_s has and x_t
has not; no posterior has to be inverted. With A = sqrt(1 - beta) I it is the shortcut of the
isotropic chain, (SNR_s - SNR_t) / 2 times the squared error.

Eq. (3) does not divide M_t by M_s, which may be singular. Steps are composed over windows, in a
disjoint sparse table: for each j, what leads from each time to the next border of blocks of 2^j
steps and from the last border to each time. Any (s, t] is two entries on the two sides of one
border, so a query is two look-ups and one composition (1), whatever T.

Where C_t is singular, ^+ is the pseudo-inverse: only directions that the chain can reach count.

References:
    - Blelloch 1990, Prefix sums and their applications, CMU-CS-90-190
    - Sarkka & Garcia-Fernandez 2021, https://arxiv.org/abs/1905.13002
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from numpy.typing import ArrayLike

from ddpm_jax.arrays import (
    Value,
    einsum,
    flat,
    is_traced,
    register_with_nnx,
    rows,
    split_as,
    widened,
)
from ddpm_jax.checks import (
    check_covariance,
    check_draw,
    check_float,
    check_float32_range,
    check_images,
    check_same_shape,
    check_times,
    check_vector,
)
from ddpm_jax.processes.affine_tables import ROUNDING, Affine, Tables, act, build
from ddpm_jax.processes.chain import NoClosedForm
from ddpm_jax.processes.roots import root_of_product

__all__ = ["AffineChain", "affine_chain"]


class AffineChain(NamedTuple):
    """The tables of one chain, a frozen pytree. Make one with `affine_chain`, which checks.

    It has no modes: its matrices need not commute, and its posteriors have full covariances.
    `q_posterior` and `posterior_kl` take the place of what needs modes.

    Times are int32 `[batch]`, -1 <= s < t < T; one outside of that gives NaN. Images are
    `[batch, ...]` with d values each, any float dtype, which the result keeps. An argument of the
    wrong dtype or shape is a TypeError or a ValueError that names it.
    """

    tables: Tables
    """Of q(x_t | x_0), of S and of the composed steps, by row.

    S is in two parts, `[2, T + 1, d, d]`: rounded, and what rounding left over.
    """

    __eq__, __ne__ = Value.__eq__, Value.__ne__  # type: ignore[misc]
    __hash__, __repr__ = Value.__hash__, Value.__repr__  # type: ignore[misc]

    @property
    def num_steps(self) -> int:
        """T, the number of steps."""
        return self.tables.marginals.shift.shape[-2] - 1

    @property
    def dimensions(self) -> int:
        """d, values per example."""
        return self.tables.marginals.shift.shape[-1]

    def q_sample(
        self,
        x0: Float[Array, "batch *data"],
        t: Int[Array, " batch"],
        eps: Float[Array, "batch *data"],
    ) -> Float[Array, "batch *data"]:
        """x_t given x_0 in one expression, eq. (2).

        Args:
            x0: data, `[batch, ...]`.
            t: times in [0, T).
            eps: standard normal noise, shaped as `x0`.

        Returns:
            x_t, shaped as `x0`.
        """
        self._check("x0", x0, t=t)
        check_same_shape("eps", eps, "x0", x0)
        return _apply(_look_up(self.tables.marginals, t + 1), x0, eps)

    def q_step(
        self,
        x_prev: Float[Array, "batch *data"],
        t: Int[Array, " batch"],
        eps: Float[Array, "batch *data"],
    ) -> Float[Array, "batch *data"]:
        """One step from x_{t-1}: A_t x_{t-1} + b_t + Q_t^{1/2} eps.

        Args:
            x_prev: x_{t-1}, `[batch, ...]`.
            t: times in [0, T).
            eps: standard normal noise, shaped as `x_prev`.

        Returns:
            x_t, shaped as `x_prev`.
        """
        self._check("x_prev", x_prev, t=t)
        check_same_shape("eps", eps, "x_prev", x_prev)
        beyond = self.tables.windows.shift.shape[-2]
        step = _look_up(self.tables.windows, jnp.where(t < self.num_steps, t, beyond))
        return _apply(step, x_prev, eps)

    def q_transition(
        self,
        x_s: Float[Array, "batch *data"],
        t: Int[Array, " batch"],
        s: Int[Array, " batch"],
        eps: Float[Array, "batch *data"],
    ) -> Float[Array, "batch *data"]:
        """x_t given x_s in one expression, eq. (3); from `s = -1` it is `q_sample`.

        One composition and one singular value decomposition, O(d^3), per example.

        Args:
            x_s: images at s, `[batch, ...]`.
            t: times in [0, T).
            s: earlier times, at least -1.
            eps: standard normal noise, shaped as `x_s`.

        Returns:
            x_t, shaped as `x_s`.

        Raises:
            NoClosedForm: the chain was made without its transitions.
        """
        self._check("x_s", x_s, t=t, s=s)
        check_same_shape("eps", eps, "x_s", x_s)
        between = self._between("q_transition", t, s)
        return _apply(between._replace(root=root_of_product(between.root)), x_s, eps)

    def q_posterior(
        self,
        x0: Float[Array, "batch *data"],
        x_t: Float[Array, "batch *data"],
        t: Int[Array, " batch"],
        s: Int[Array, " batch"],
    ) -> tuple[Float[Array, "batch *data"], Float[Array, "batch d d"]]:
        """Mean and covariance of q(x_s | x_t, x_0), eq. (4).

        Errors are those of float32 times the square root of C_t's condition.

        Args:
            x0: data, `[batch, ...]`.
            x_t: noised data, shaped as `x0`.
            t: times in [0, T).
            s: earlier times, at least -1; at -1, the data, the mean is `x0` and the covariance 0.

        Returns:
            The mean `[batch, ...]` and the covariance `[batch, d, d]`.

        Raises:
            NoClosedForm: the chain was made without its transitions.
        """
        self._check("x0", x0, t=t, s=s)
        check_same_shape("x_t", x_t, "x0", x0)
        between = self._between("q_posterior", t, s)
        at_s, at_t = _look_up(self.tables.marginals, s + 1), _look_up(self.tables.marginals, t + 1)
        whitening = rows(self.tables.whitening, t + 1)
        # Correlations first: they are at most 1, however small C_s or C_t is.
        correlation = einsum("bij,bkj,bkl->bil", at_s.root, between.matrix, whitening)
        gain = einsum("bij,bjk,bkl->bil", at_s.root, correlation, whitening)

        identity = jnp.eye(self.dimensions, dtype=gain.dtype)[None]
        keep = identity - einsum("bij,bjk->bik", gain, between.matrix)
        side = jnp.concatenate(
            [einsum("bij,bjk->bik", keep, at_s.root), einsum("bij,bjk->bik", gain, between.root)],
            axis=-1,
        )
        covariance = einsum("bik,bjk->bij", side, side)

        wide = flat(x0)
        surprise = split_as(flat(x_t), wide) - _mean(at_t, wide)
        mean = _mean(at_s, wide) + act(gain, surprise)
        return mean.reshape(x0.shape).astype(x0.dtype), 0.5 * (covariance + covariance.mT)

    def posterior_kl(
        self,
        x0: Float[Array, "batch *data"],
        x0_hat: Float[Array, "batch *data"],
        t: Int[Array, " batch"],
        s: Int[Array, " batch"],
    ) -> Float[Array, " batch"]:
        """KL(q(x_s | x_t, x_0) || q(x_s | x_t, x0_hat)), eq. (5): the shortcut.

        The same whatever x_t. Where C_s is singular and M_s moves the difference out of the
        directions that have noise, the two Gaussians lie on different planes, and the KL is inf; at
        `s = -1`, where nothing has noise, it is inf unless `x0_hat` is `x0`. Within the planes it
        is finite. What float32 rounding may leave of a difference counts as none.

        Args:
            x0: data, `[batch, ...]`.
            x0_hat: estimated data, shaped as `x0`.
            t: times in [0, T).
            s: earlier times, at least -1.

        Returns:
            Nats, `[batch]`.
        """
        self._check("x0", x0, t=t, s=s)
        check_same_shape("x0_hat", x0_hat, "x0", x0)
        wide = flat(x0)
        difference = wide - split_as(flat(x0_hat), wide)
        rounded = rows(self.tables.snr[0], s + 1) - rows(self.tables.snr[0], t + 1)
        left_over = rows(self.tables.snr[1], s + 1) - rows(self.tables.snr[1], t + 1)
        snr_difference = (rounded + left_over).astype(difference.dtype)
        kl = 0.5 * jnp.sum(difference * act(snr_difference, difference), axis=-1)

        noiseless = rows(self.tables.noiseless, s + 1)
        rounding = ROUNDING * self.dimensions
        largest = jnp.max(jnp.abs(noiseless), axis=(-2, -1)) * jnp.max(jnp.abs(difference), axis=-1)
        apart = jnp.max(jnp.abs(act(noiseless, difference)), axis=-1) > rounding * largest
        return jnp.where(s < t, jnp.where(apart, jnp.inf, kl), jnp.nan)

    def draw_noise(
        self, key: Key[Array, ""], shape: tuple[int, ...], t: Int[Array, " batch"]
    ) -> Float[Array, "batch *data"]:
        """White noise for `q_sample`; the same law at every `t`.

        Args:
            key: typed random key.
            shape: `[batch, ...]`.
            t: times, one for each example.

        Returns:
            Standard normal noise, float32 of `shape`.
        """
        check_draw(key, shape, t=t)
        self._check_shape("shape is", shape)
        return jax.random.normal(key, shape, jnp.float32)

    def draw_step_noise(
        self, key: Key[Array, ""], shape: tuple[int, ...], t: Int[Array, " batch"]
    ) -> Float[Array, "batch *data"]:
        """White noise for `q_step`, as `draw_noise`.

        Args:
            key: typed random key.
            shape: `[batch, ...]`.
            t: times, one for each example.

        Returns:
            Standard normal noise, float32 of `shape`.
        """
        return self.draw_noise(key, shape, t)

    def marginal(
        self, t: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch d d"], Float[Array, "batch d"], Float[Array, "batch d d"]]:
        """M, m and C of q(x_t | x_0) = N(M x_0 + m, C), of flattened data.

        Args:
            t: times in [-1, T).

        Returns:
            M `[batch, d, d]`, m `[batch, d]` and C `[batch, d, d]`.
        """
        check_vector("t", t)
        return _moments(_look_up(self.tables.marginals, t + 1))

    def transition(
        self, t: Int[Array, " batch"], s: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch d d"], Float[Array, "batch d"], Float[Array, "batch d d"]]:
        """A, b and Q of q(x_t | x_s) = N(A x_s + b, Q), eq. (3), of flattened data.

        Args:
            t: times in [0, T).
            s: earlier times, at least -1.

        Returns:
            A `[batch, d, d]`, b `[batch, d]` and Q `[batch, d, d]`.

        Raises:
            NoClosedForm: the chain was made without its transitions.
        """
        check_vector("t", t)
        check_times("s", s, t.shape[0])
        return _moments(self._between("transition", t, s))

    def _between(self, what: str, t: Array, s: Array) -> Affine:
        """The steps s + 1 to t in one, `root` [batch, d, 2 d]; NaN unless -1 <= s < t < T."""
        T, size = self.num_steps, self.tables.windows.shift.shape[-2]
        if T > 1 and size == T + 1:
            raise NoClosedForm(
                f"{what} needs the steps composed over any range of times, and this chain was made"
                " with transitions=False; q_chain walks them one by one"
            )
        t, s = t.astype(jnp.int32), s.astype(jnp.int32)
        inside = (s >= -1) & (s < t) & (t < T)
        first, last = s + 1, t
        # The highest bit in which two times differ gives the border that lies between them.
        level = 32 - jax.lax.clz(jnp.bitwise_xor(first, last))
        identity = jnp.where(level == 0, size - 1, level * T + first)
        before = _look_up(self.tables.windows, jnp.where(inside, identity, size))
        after = _look_up(self.tables.windows, jnp.where(inside, level * T + last, size))
        matrix, shift, moved = (
            einsum("bij,bjk->bik", after.matrix, before.matrix),
            act(after.matrix, before.shift) + after.shift,
            einsum("bij,bjk->bik", after.matrix, before.root),
        )
        return Affine(matrix, shift, jnp.concatenate([moved, after.root], axis=-1))

    def _check(self, name: str, x: Array, **times: Array) -> None:
        check_float(name, x)
        self._check_shape(f"{name} has shape", x.shape)
        check_images(name, x, **times)

    def _check_shape(self, what: str, shape: tuple[int, ...]) -> None:
        d = self.dimensions
        if not shape or math.prod(shape[1:]) != d:
            raise ValueError(
                f"{what} {shape}; the chain's matrices are {d} by {d}, so it has to be (batch, ...)"
                f" with {d} values per example"
            )


def affine_chain(
    A: ArrayLike | Array, b: ArrayLike | Array, Q: ArrayLike | Array, *, transitions: bool = True
) -> AffineChain:
    r"""A linear-Gaussian chain of any matrices, of flattened data.

    .. math::

        x_t = A_t x_{t-1} + b_t + \mathcal{N}(0, Q_t), \qquad t = 0 \ldots T - 1

    Numbers are read, checked and composed in float64 and stored in float32. Traced arguments, those
    of a chain that is learned, are composed in their own dtype, at least float32, and their values
    are not checked; then a variance below 4 d roundings of the largest counts as 0.

    Memory: 6 T d^2 numbers for the marginals and 2 T d^2 for each of the 1 + ceil(log2 T) levels of
    the table that transitions and posteriors read: 28 T d^2 at T = 1000, 460 MB for d = 64.
    `transitions=False` leaves 8 T d^2, and q_sample, q_step and posterior_kl. Time, once: about 3 T
    log2 T products of matrices, T log2 T Cholesky factors and 2 T eigendecompositions.

    Args:
        A: `[T, d, d]`, any matrices, singular ones too.
        b: `[T, d]`.
        Q: `[T, d, d]`, covariances: symmetric, positive semi-definite, zeros too.
        transitions: whether to make the table for q(x_t | x_s) and q(x_s | x_t, x_0).

    Returns:
        The chain.

    Raises:
        ValueError: shapes that do not fit, a value that is not finite or that float32 does not
            hold, or a Q_t that is not symmetric or has a negative eigenvalue, by more than 1e-6 of
            its largest entry, which is what rounding to float32 may leave.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from ddpm_jax.processes import affine_chain
        >>> turn = np.array([[0.6, -0.7], [0.7, 0.6]])  # keeps 0.85 of what it turns
        >>> chain = affine_chain([turn] * 50, np.zeros((50, 2)), [0.15 * np.eye(2)] * 50)
        >>> M, m, C = chain.marginal(jnp.array([49]))
        >>> C.round(3).tolist()
        [[[1.0, 0.0], [0.0, 1.0]]]
    """
    register_with_nnx(AffineChain)
    given = {"A": A, "b": b, "Q": Q}
    if is_traced(given):
        traced = {name: _widest(name, value) for name, value in given.items()}
        _check_shapes(traced)
        tables = build(*_same_dtype(traced), transitions=transitions)
        whole = jnp.stack([tables.snr, jnp.zeros_like(tables.snr)])
        return AffineChain(tables._replace(snr=whole))
    host = {name: np.asarray(value, dtype=np.float64) for name, value in given.items()}
    _check_shapes(host)
    for name, values in host.items():
        check_float32_range(name, values)
    for t, covariance in enumerate(host["Q"]):
        check_covariance(f"Q[{t}]", covariance)
    # Now, and not when a function that is being traced around this will run.
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        tables = _compiled_build(*host.values(), transitions=transitions)
        wide = jax.tree.map(np.asarray, tables)
    _check_float32(wide)
    rounded = wide.snr.astype(np.float32)
    wide = wide._replace(snr=np.stack([rounded, wide.snr - rounded]))
    return AffineChain(jax.tree.map(lambda table: jnp.asarray(table.astype(np.float32)), wide))


_compiled_build = jax.jit(build, static_argnames="transitions")


def _look_up(table: Affine, index: jax.Array) -> Affine:
    return Affine(*(rows(leaf, index) for leaf in table))


def _apply(step: Affine, x: jax.Array, eps: jax.Array) -> jax.Array:
    wide = flat(x)
    noise = split_as(flat(eps), wide).astype(wide.dtype)
    return (_mean(step, wide) + act(step.root, noise)).reshape(x.shape).astype(x.dtype)


def _mean(step: Affine, x: jax.Array) -> jax.Array:
    return act(step.matrix, x) + step.shift.astype(x.dtype)


def _moments(step: Affine) -> tuple[jax.Array, jax.Array, jax.Array]:
    return step.matrix, step.shift, einsum("bik,bjk->bij", step.root, step.root)


def _widest(name: str, value: ArrayLike | Array) -> jax.Array:
    array = jnp.asarray(value)
    check_float(name, array)
    return widened(array)


def _same_dtype(arrays: dict[str, jax.Array]) -> list[jax.Array]:
    widest = max((array.dtype for array in arrays.values()), key=lambda dtype: dtype.itemsize)
    return [array.astype(widest) for array in arrays.values()]


def _check_shapes(arrays: dict[str, jax.Array] | dict[str, np.ndarray]) -> None:
    shape = arrays["A"].shape
    if len(shape) != 3 or shape[1] != shape[2] or 0 in shape:
        raise ValueError(f"A has shape {shape}; it has to be (T, d, d), a square matrix per step")
    for name, expected in (("b", shape[:2]), ("Q", shape)):
        if arrays[name].shape != expected:
            raise ValueError(
                f"{name} has shape {arrays[name].shape}; with A of shape {shape} it has to be"
                f" {expected}"
            )


def _check_float32(tables: Tables) -> None:
    largest, marginals = float(np.finfo(np.float32).max), tables.marginals
    variances = np.square(marginals.root).sum(axis=-1)
    for name, table in (("M", marginals.matrix), ("m", marginals.shift), ("C", variances)):
        inside = (np.abs(table) <= largest).reshape(len(table), -1).all(axis=1)
        if not inside.all():
            t = int(np.argmin(inside)) - 1
            raise ValueError(f"{name} at t = {t} is beyond float32: the chain grows without bound")
    if not all((np.abs(table) <= largest).all() for table in jax.tree.leaves(tables)):
        raise ValueError("Q is so small that the inverse of a covariance is beyond float32")
