r"""Polynomials through what a network estimated at several times, and their integrals over a step.

Solvers of higher order continue an estimate f, x0_hat or eps_hat, from times that they visited
before. Newton's polynomial through f_0, f_1, ... at z_0, z_1, ... is

.. math::

    P(z) = f_0 + (z - z_0) f[0, 1] + (z - z_0) (z - z_1) f[0, 1, 2] + \dots, \qquad
    f[0 \dots k] = \sum_{j \le k} \frac{f_j}{\prod_{i \le k,\, i \ne j} (z_j - z_i)} \tag{1}

and a step takes an integral of it, which needs the moments, the integrals of z^k. In a step of
length h in lambda, that is a mean of x0_hat in which the end counts most (Lu et al. 2022,
proposition 4.1; Zhao et al. 2023, eq. 3):

.. math::

    D = \int_0^h w(z)\, P(z)\, dz, \qquad w(z) = \frac{e^{z - h}}{1 - e^{-h}}, \qquad
    x_s = \frac{b_s}{b_t} x_t + a_s \big(1 - e^{-h}\big) D \tag{2}

The reverse diffusion is the same with 2 z and 2 h in the places of z and h, plus its noise.

References:
    - Lu et al. 2022, https://arxiv.org/abs/2211.01095
    - Zhao et al. 2023, https://arxiv.org/abs/2302.04867
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.arrays import per_example
from ddpm_jax.processes.modal import Modal
from ddpm_jax.samplers.base import everywhere

__all__ = [
    "LARGEST_GROWTH",
    "Past",
    "differences",
    "exponential_moments",
    "finite",
    "next_term",
    "no_past",
    "polynomial_weights",
    "remember",
]

LARGEST_GROWTH = 32.0
"""By how much a term may enlarge errors of the estimates, per length of the step. Even steps have 3
at order 4; a step that is many times as long as those before it has its cube."""

_TERMS = 18
"""Of the downward recurrence of the moments: 1 / 18! is below float64's rounding."""


class Past(NamedTuple):
    """Estimates of earlier steps, and how far back they are in lambda; the latest first."""

    values: tuple[Float[Array, "batch *data"], ...]
    """By modes, each of which has a lambda of its own."""
    distances: tuple[Float[Array, "batch *modes"], ...]
    """How far their lambda lies below that of x_t; infinite where there was no step, or one out of
    pure noise."""


def no_past(process: Modal, x_t: Array, length: int) -> Past:
    """Room for the estimates of `length` steps."""
    nothing = jnp.zeros_like(process.basis.to_modes(x_t))
    never = everywhere(process, x_t.shape[0], jnp.inf)
    return Past((nothing,) * length, (never,) * length)


def remember(past: Past, value: Array, h: Array) -> Past:
    """The past after a step of length `h` with the estimate `value`, by modes."""
    length = len(past.values)
    present = Past(
        (value, *past.values)[:length],
        (h, *(h + distance for distance in past.distances))[:length],
    )
    # Where lambda stays, the next estimate takes the place of this one.
    return jax.tree.map(
        lambda new, old: jnp.where(per_example(h == 0.0, new), old, new), present, past
    )


def differences(
    process: Modal, weights: Sequence[Array], values: Sequence[Array], value: Array
) -> Array:
    """sum_j w_j (f_j - f), of f by modes, as data."""
    terms = [
        per_example(weight, value) * (other - value)
        for weight, other in zip(weights, values, strict=True)
    ]
    return process.basis.to_data(sum(terms, jnp.zeros_like(value)))


def finite(h: Array) -> Array:
    """`h`, and 0 where it is infinite; then no polynomial has a weight."""
    return jnp.where(jnp.isinf(h), 0.0, h)


def exponential_moments(h: Array, count: int) -> list[Array]:
    r"""The means of 1, z, z^2, ... under w of eq. (2), of a finite `h`.

    .. math::

        \int_0^h w(z)\, z^k\, dz = h^k \frac{\chi_k}{\chi_0}, \qquad
        \chi_k = \int_0^1 e^{h (z - 1)} z^k\, dz, \qquad h \chi_k = 1 - k \chi_{k-1}

    The recurrence loses digits upwards if h is small, and gains them downwards.
    """
    small = h < 1.0
    long, short = jnp.where(small, 1.0, h), jnp.where(small, h, 0.0)
    upwards = [-jnp.expm1(-long) / long]
    for k in range(1, count):
        upwards.append((1.0 - k * upwards[-1]) / long)
    downwards = [jnp.full_like(h, 1.0 / (_TERMS + 1))]
    for k in range(_TERMS, 0, -1):
        downwards.insert(0, (1.0 - short * downwards[0]) / k)
    chi = [jnp.where(small, down, up) for up, down in zip(upwards, downwards, strict=False)]
    return [h**k * chi_k / chi[0] for k, chi_k in enumerate(chi)]


def polynomial_weights(
    nodes: Sequence[Array],
    near: Sequence[Array],
    moments: Sequence[Array],
    *,
    line: Array | None = None,
) -> tuple[list[Array], list[Array]]:
    """Of f_j - f_0 in the integral of P - f_0, for j = 1, 2, ...; and which of all nodes count.

    P ends before the first term that has a node which is not `near`, or that would enlarge errors
    of f more than `LARGEST_GROWTH` times: where nodes coincide, it is infinite. `line` stands in
    the place of the first moment where P is a straight line.
    """
    counts, terms = [jnp.ones_like(moments[0], dtype=bool)], []
    for k, is_near in enumerate(near, start=1):
        integral, products = next_term(nodes[: k + 1], counts, moments)
        growth = sum(jnp.abs(integral / product) for product in products)
        counts.append(counts[-1] & is_near & (growth <= LARGEST_GROWTH * moments[0]))
        terms.append((integral, products))
    weights = [jnp.zeros_like(moments[0]) for _ in near]
    for k, (integral, products) in enumerate(terms, start=1):
        if k == 1 and line is not None:
            integral = jnp.where(counts[2], integral, line) if len(near) > 1 else line
        integral = jnp.where(counts[k], integral, 0.0)
        for j in range(1, k + 1):
            weights[j - 1] += integral / jnp.where(counts[k], products[j], 1.0)
    return weights, counts


def next_term(
    nodes: Sequence[Array], counts: Sequence[Array], moments: Sequence[Array]
) -> tuple[Array, list[Array]]:
    """The term of eq. (1) that the last node adds to the polynomial through those that count.

    The integral of the product of z - z_i, and for each node the product in the denominator.
    """
    zero = jnp.zeros_like(moments[0])
    basis = [jnp.ones_like(zero)]  # coefficients of 1, z, z^2, ...
    for node, is_in in zip(nodes[:-1], counts, strict=True):
        longer = zip([zero, *basis], [*basis, zero], strict=True)
        basis = [jnp.where(is_in, up - node * same, same) for up, same in longer]
    integral = sum((c * moment for c, moment in zip(basis, moments, strict=False)), start=zero)
    among = [*counts, jnp.ones_like(zero, dtype=bool)]
    products = [
        math.prod(
            (jnp.where(among[i], z_j - z_i, 1.0) for i, z_i in enumerate(nodes) if i != j),
            start=jnp.ones_like(zero),
        )
        for j, z_j in enumerate(nodes)
    ]
    return integral, products
