r"""A step linearized in x and eps, and how far it is from its linearization.

.. math::

    f(x, \epsilon) = A x + b + g(x, \epsilon), \qquad g(x, 0) = 0 \tag{1}

At each t the step is linearized at the origin and at base points of several scales. With few
dimensions it is pushed forward along all directions, which gives the Jacobians; with many, along a
few random ones. Four numbers measure how far the step is from affine, relative, the worst of all
points. Slopes alone would not do: those of `round`, and of a `custom_jvp`, are not how the function
changes. So each number is taken of the slopes and of the values. The slope of a cast rounds what it
is given as the cast rounds x, so that along x itself it is the value: J x is a product with the
complete J in float32, or the sum of the slopes along two parts that add up to x.

- in_x: f(x, 0) against A x + b.
- in_eps: g(x, eps) against J(x) eps, J the Jacobian in eps at (x, 0).
- in_state: J(x) J(x)^T, the covariance of the noise, against that at the origin.
- in_sum: g(x, eps) against g(0, eps): noise of any law, but added.

With the first three at 0 the chain is x_t = A x + b + noise, Gaussian of one covariance. J itself
may turn with x: to multiply eps by the sign of x changes nothing.
"""

import functools
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.processes.custom import Step

__all__ = ["SCALES", "Linearized", "commutator", "flat", "linearize"]

SCALES = (0.1, 1.0, 8.0, 60.0, 1000.0)
"""How large the elements of x are where the step is probed, up to a factor of 4 either way."""

_EPS_SCALES = (0.3, 1.0, 2.0, 3.3, 3.6)  # times at most 1.5: float32 normals end at 5.42
_RARE = 0.03  # elements smaller than this share of the largest are measured against that share
_ULPS = 0.1  # of the size of f, times the tolerance, is left to float32's rounding of values


class Linearized(NamedTuple):
    """One step at every t, on the host."""

    offset: np.ndarray
    """b = f(0, 0), `[T, d]`."""
    of_x: np.ndarray
    """A v for each direction v, `[T, k, d]`."""
    of_eps: np.ndarray
    """`[T, k, d]`: B v for each direction v if they are all, else the covariance's, B B^T v."""
    departures: dict[str, np.ndarray]
    """`in_x`, `in_eps`, `in_state` and `in_sum`, each `[T]`; inf where something is not finite."""
    finite: dict[str, np.ndarray]
    """f at the `origin`, the `values` f(x, 0), the slopes there in `x` and in `eps`: `[T]` each."""
    num_points: int
    """Base points at each t."""


def linearize(
    step: Step,
    shape: tuple[int, ...],
    num_steps: int,
    rng: np.random.Generator,
    directions: np.ndarray | None,
) -> Linearized:
    """`step` at all T times, along `directions` `[k, d]`; None is along each axis, exactly."""
    f, d, exact = flat(step, shape), math.prod(shape), directions is None
    along = (
        jnp.eye(d, dtype=jnp.float32)
        if directions is None
        else jnp.asarray(directions, jnp.float32)
    )
    few = along if exact else along[:1]
    x, eps, factors = _points(rng, d, num_steps)
    part = jnp.asarray(rng.uniform(0.2, 0.8, d), jnp.float32)
    points, nowhere = len(x), jnp.zeros((1, d), jnp.float32)

    def slopes(t: jax.Array, along: jax.Array, x: jax.Array, eps: jax.Array) -> _Slopes:
        # One after the other: what is not finite in eps would make 0 times itself of x, too.
        value, push_x = jax.linearize(lambda x: f(x, eps, t), x)
        _, push_eps = jax.linearize(lambda eps: f(x, eps, t), eps)
        of_x, of_eps = jax.vmap(push_x)(along), jax.vmap(push_eps)(along)
        if exact:
            covariance = jnp.matmul(of_eps.T, of_eps, precision="highest")
            through_x, through_eps = (
                jnp.matmul(vector, slope, precision="highest")
                for vector, slope in ((x, of_x), (eps, of_eps))
            )
        else:
            pull = jax.linear_transpose(push_eps, eps)
            covariance = jax.vmap(lambda v: push_eps(*pull(v)))(along)
            through_x, through_eps = (
                push(part * vector) + push(vector - part * vector)
                for vector, push in ((x, push_x), (eps, push_eps))
            )
        return _Slopes(value, of_x, of_eps, covariance, through_x, through_eps)

    def at(here: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        t, factor = here
        at_x, at_eps = factor[0, :, None] * x, factor[1, :, None] * eps
        none = jnp.zeros_like(x)
        bases = (
            jnp.concatenate([nowhere, at_x, none, at_x]),
            jnp.concatenate([nowhere, none, at_eps, at_eps]),
        )
        probed = jax.vmap(functools.partial(slopes, t, few))(*bases)
        origin = jax.tree.map(lambda leaf: leaf[:1], probed)
        still, moved, both = (
            jax.tree.map(operator.itemgetter(slice(first, first + points)), probed)
            for first in range(1, 1 + 3 * points, points)
        )
        rare = _RARE if exact else 1.0
        departures = _departures(at_x, at_eps, origin, still, moved, both, rare=rare)
        finite = jnp.stack(
            [
                jnp.all(jnp.isfinite(origin.value)),
                jnp.all(jnp.isfinite(still.value)),
                jnp.all(jnp.isfinite(probed.of_x[: 1 + points])),
                jnp.all(jnp.isfinite(probed.of_eps[: 1 + points])),
            ]
        )
        if exact:
            return origin.value[0], origin.of_x[0], origin.of_eps[0], departures, finite
        along_all = slopes(t, along, nowhere[0], nowhere[0])
        return along_all.value, along_all.of_x, along_all.covariance, departures, finite

    times = jnp.arange(num_steps, dtype=jnp.int32)
    with jax.default_matmul_precision("highest"):
        try:
            if not exact:  # for `commutator`; here and now, where what is missing can be named
                jax.eval_shape(lambda v: jax.vjp(lambda x: f(x, v, jnp.int32(0)), v)[1](v), x[0])
            compiled = jax.jit(functools.partial(jax.lax.map, at)).lower((times, factors)).compile()
        except (TypeError, ValueError, NotImplementedError) as error:
            raise TypeError(
                f"step cannot be linearized, which takes its {'jvp' if exact else 'jvp and vjp'}:"
                f" {error}"
            ) from error
        offset, of_x, of_eps, departures, finite = compiled((times, factors))
    worst = np.nan_to_num(np.asarray(departures, np.float64), nan=np.inf, posinf=np.inf)
    return Linearized(
        offset=np.asarray(offset, np.float64),
        of_x=np.asarray(of_x, np.float64 if exact else np.float32),  # of images they are large
        of_eps=np.asarray(of_eps, np.float64 if exact else np.float32),
        departures=dict(zip(("in_x", "in_eps", "in_state", "in_sum"), worst.T, strict=True)),
        finite=dict(zip(("origin", "values", "x", "eps"), np.asarray(finite).T, strict=True)),
        num_points=points,
    )


def flat(step: Step, shape: tuple[int, ...]) -> Step:
    """`step` of vectors."""

    def f(x: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
        return step(x.reshape(shape), eps.reshape(shape), t).reshape(-1)

    return f


class _Slopes(NamedTuple):
    """f and its slopes, at one base point or many."""

    value: Any  # f
    of_x: Any  # [k, d], the Jacobian in x along k directions
    of_eps: Any  # [k, d], that in eps
    covariance: Any  # [k, d], of the noise along them
    through_x: Any  # [d], J x, J the Jacobian in x
    through_eps: Any  # [d], J eps, that in eps


def _points(
    rng: np.random.Generator, d: int, num_steps: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Base points x and eps `[points, d]`, and by what they are stretched, `[T, 2, points]`.

    They come in pairs of opposite signs: what bends on one side only bends at one of the two. The
    sizes of all t together leave no gaps.
    """
    shape = (2, len(SCALES), d)
    scales = np.asarray([SCALES, _EPS_SCALES])[:, :, None]
    sizes = scales * rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape)
    x, eps = (jnp.asarray(np.concatenate([half, -half]), jnp.float32) for half in sizes)
    of_x = np.exp(rng.uniform(-math.log(3.0), math.log(3.0), (num_steps, len(SCALES))))
    of_eps = rng.uniform(0.3, 1.0, (num_steps, len(SCALES)))
    factors = np.tile(np.stack([of_x, of_eps], axis=1), (1, 1, 2))
    return x, eps, jnp.asarray(factors, jnp.float32)


def _departures(
    x: jax.Array,
    eps: jax.Array,
    origin: _Slopes,
    still: _Slopes,
    moved: _Slopes,
    both: _Slopes,
    *,
    rare: float,
) -> jax.Array:
    """The four numbers: what is known of f at (0, 0), (x, 0), (0, eps) and (x, eps), compared.

    Each element is measured against its own size, but none against less than the share `rare` of
    the largest.
    """

    def length(*slopes: jax.Array) -> jax.Array:
        """Of each element's row, `[points, 1, d]`: the longer of those that are compared."""
        finite = [jnp.where(jnp.isfinite(slope), slope, 0.0) for slope in slopes]
        rows = [jnp.sqrt(jnp.sum(jnp.square(slope), axis=-2, keepdims=True)) for slope in finite]
        longest = jnp.max(jnp.stack(jnp.broadcast_arrays(*rows)), axis=0)
        return jnp.maximum(longest, rare * jnp.max(longest, axis=-1, keepdims=True))

    def worst(a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
        a, b, scale = jnp.broadcast_arrays(a, b, scale)
        return jnp.max(jnp.where(a == b, 0.0, jnp.abs(a - b) / scale))  # 0 / 0 is no departure

    def largest(values: jax.Array) -> jax.Array:
        return jnp.max(jnp.abs(values), axis=-1, keepdims=True)

    keep, noise = length(origin.of_x, still.of_x), length(origin.of_eps, still.of_eps)
    bent, shared = length(still.of_eps, both.of_eps), length(moved.of_eps, both.of_eps)
    size = keep[:, 0] * largest(x) + largest(origin.value)
    rounding = _ULPS * size
    of_both, of_eps = both.value - still.value, moved.value - origin.value
    known = jnp.isfinite(both.of_eps) & jnp.isfinite(moved.of_eps)  # else the values decide
    undefined = jnp.isnan(of_both) & jnp.isnan(of_eps)
    if rare < 1.0:
        scale = noise * jnp.swapaxes(noise, -1, -2)
    else:
        scale = jnp.maximum(largest(still.covariance), largest(origin.covariance))
    pairs = (
        (still.of_x, origin.of_x, keep),
        (still.value, origin.value + still.through_x, size),
        (both.of_eps, still.of_eps, bent),
        (of_both, both.through_eps, bent[:, 0] * largest(eps) + rounding),
        # At x = 0, where nothing is left to the rounding of x.
        (of_eps, moved.through_eps, shared[:, 0] * largest(eps) + _ULPS * largest(origin.value)),
        (still.covariance, origin.covariance, scale),
        (jnp.where(known, both.of_eps, 0.0), jnp.where(known, moved.of_eps, 0.0), shared),
        (
            jnp.where(undefined, 0.0, of_both),
            jnp.where(undefined, 0.0, of_eps),
            jnp.abs(of_eps) + shared[:, 0] * largest(eps) + rounding,
        ),
    )
    in_x, x_values, in_eps, eps_values, eps_alone, in_state, in_sum, sum_values = (
        worst(*pair) for pair in pairs
    )
    return jnp.stack(
        [
            jnp.maximum(in_x, x_values),
            jnp.maximum(jnp.maximum(in_eps, eps_values), eps_alone),
            in_state,
            jnp.maximum(in_sum, sum_values),
        ]
    )


def commutator(
    step: Step, shape: tuple[int, ...], num_steps: int, rng: np.random.Generator
) -> float:
    r"""How far all A_t and B_t B_t^T are from having a common orthonormal eigenbasis, by probes.

    They have one if they are symmetric and commute. Two random combinations C_1 and C_2 of them
    all, each matrix without its multiple of the identity, commute only if all do (almost surely),
    so C_1 C_2 v is compared with C_2 C_1 v for a few random v and, because some combinations show
    little, for a few pairs; and A_t v with A_t^T v for each t. Rounding leaves about 3e-6.
    """
    f, d = flat(step, shape), math.prod(shape)
    pairs = jnp.asarray(rng.normal(size=(3, 2, 2, num_steps)), jnp.float32)
    v = jnp.asarray(rng.choice([-1.0, 1.0], (8, d)), jnp.float32)
    times, zero = jnp.arange(num_steps, dtype=jnp.int32), jnp.zeros(d, jnp.float32)

    @jax.jit
    def products(v: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A v and B B^T v, `[2, T, 8, d]`; A^T v, `[T, 8, d]`."""

        def at(t: jax.Array) -> tuple[jax.Array, ...]:
            _, push = jax.linearize(lambda x, eps: f(x, eps, t), zero, zero)
            pull = jax.linear_transpose(push, zero, zero)
            back, into_eps = jax.vmap(pull)(v)
            nothing = jnp.zeros_like(v)
            return jax.vmap(push)(v, nothing), jax.vmap(push)(nothing, into_eps), back

        of_x, of_noise, back = jax.lax.map(at, times)
        return jnp.stack([of_x, of_noise]), back

    with jax.default_matmul_precision("highest"):
        both, back = products(v)
        of_x = both[0]
        shares = jnp.mean(both * v[None, None], axis=(2, 3), keepdims=True)
        sizes = jnp.max(jnp.abs(both), axis=(2, 3), keepdims=True)
        sizes = jnp.where(sizes > 0.0, sizes, 1.0).at[0].set(1.0)
        spreads = jnp.mean(jnp.square((both - shares * v[None, None]) / sizes), axis=(2, 3))

        def combined(weights: jax.Array, v: jax.Array) -> jax.Array:
            return jnp.einsum(
                "kt,ktvd->vd", weights, (products(v)[0] - shares * v[None, None]) / sizes
            )

        apart = 0.0
        for first, second in pairs:
            difference = combined(first, combined(second, v)) - combined(second, combined(first, v))
            # What combinations of these spreads have on average: one that happens to be small is
            # no reason to blow up rounding.
            expected = [jnp.sum(jnp.square(w) * (spreads + 1e-4)) for w in (first, second)]
            size = jnp.sqrt(expected[0] * expected[1] * v.size)
            apart = max(apart, float(jnp.linalg.norm(difference) / size))
    skew = jnp.max(jnp.abs(of_x - back), axis=(1, 2)) / jnp.max(jnp.abs(of_x), axis=(1, 2))
    return max(apart, float(jnp.max(jnp.nan_to_num(skew))))
