"""`litmus`: which shortcut holds for a chain that is given by its step."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from ddpm_jax.bases import Basis
from ddpm_jax.checks import check_count, check_key
from ddpm_jax.litmus import program, simulate
from ddpm_jax.litmus.modes import TOLERANCE, Probe, probe
from ddpm_jax.litmus.rows import Classification, classify
from ddpm_jax.litmus.verdict import Evidence, Verdict
from ddpm_jax.processes.custom import Step, check_step, custom_chain
from ddpm_jax.schedules.build import check_num_steps

__all__ = ["litmus"]


def litmus(
    step: Step,
    shape: tuple[int, ...],
    num_steps: int,
    key: Key[Array, ""],
    *,
    bases: Mapping[str, Basis] | None = None,
    significance: float = 1e-3,
    num_chains: int = 1024,
    exact_up_to: int = 64,
) -> Verdict:
    """Determines which closed forms a chain has: derived from its step, and tested by simulation.

    The rows, for A_t the factor on x_{t-1} and Q_t the covariance of the noise:

    - "isotropic", A_t = k_t I and Q_t = q_t I: a `Schedule`, or `Spectral`.
    - "spectral", all A_t and Q_t diagonal in one basis: `Spectral`.
    - "affine", x_t = A_t x_{t-1} + b_t + N(0, Q_t): `AffineChain`.
    - "closed, not Gaussian", added noise whose sums keep its law: `GammaChain`.
    - "loop", everything else: `CustomChain`.

    **Derived**: the step is linearized at every t, at the origin and at 10 base points with
    elements of x from 0.02 to 4500 and of eps up to 5.4, where float32 normals end. All of f has to
    be affine, and the noise's covariance the same everywhere; where the step's program shows it
    that is proved, in exact arithmetic. Up to `exact_up_to` dimensions the Jacobians are complete
    and a joint eigenbasis is computed if there is one. Above, random vectors test whether they are
    diagonal in each of a list of bases, or at least symmetric and commuting; an element is then
    measured against the largest of all.

    **Resolution**, in float32. What is detected, relative to the size of the quantity:

    - 1e-5: a departure of the step from affine, an anisotropy, or a covariance of the noise that
      depends on x.
    - 1e-4: the distance of the noise's law from the normal one (Kolmogorov's).
    - A basis that turns: the angle times the difference of the two eigenvalues, from 1e-5 of those
      of Q and 3e-6 of the largest of A (1e-5 above `exact_up_to`).
    - Rounding of x or of the noise to a narrower type, where the rounded part is more than 3e-3 of
      all for bfloat16 and 2e-2 for float16: it departs from affine by 4e-3 and 5e-4, and rounded
      noise is not normal. Less is noted in `evidence.note`.

    A factor on x below 1e-6 of the largest, or such a deviation of the noise (1e-3 above
    `exact_up_to`), counts as 0. Mean and covariance of noise of another law are known where a
    quadrature finds an error below 1e-3; it misses peaks narrower than 2e-4 of a deviation, except
    around eps = 0. The test can miss what happens beyond the base points, or between them without a
    slope at them.

    **Tested**: chains are simulated from three x_0, and the derived mean, covariance and law of x_t
    tested at three times (`litmus.simulate`). A rejection makes it a "loop".

    Args:
        step: a pure function `(x_prev, eps, t) -> x_t` of one sample, float32; eps is standard
            normal noise of the sample's shape, t a scalar int32 in [0, T) that is traced.
        shape: of one sample. A step that needs noise of an earlier step keeps it in the sample.
        num_steps: T, at least 2.
        key: typed random key; draws base points, noise and directions.
        bases: more bases to try, by name, such as the principal axes of the data.
        significance: probability that simulation rejects a correct derivation; all tests together
            have it.
        num_chains: chains simulated from each x_0, at least 64. An error of a mean is detected from
            about 5 / sqrt(num_chains) deviations, of a variance from twice that share.
        exact_up_to: the largest d for complete Jacobians, 2 T d^2 numbers.

    Returns:
        The row, the process for `q_sample` and its like, and the measurements; `print` it.

    Raises:
        TypeError: a step that cannot be traced, or arguments of the wrong type.
        ValueError: a step that is no pure function of its arguments, draws random numbers itself or
            returns another shape; T below 2, or another argument outside its range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ddpm_jax.litmus import litmus
        >>> betas = jnp.linspace(0.01, 0.2, 10)
        >>> def step(x_prev, eps, t):
        ...     return jnp.sqrt(1.0 - betas[t]) * x_prev + jnp.sqrt(betas[t]) * eps
        >>> verdict = litmus(step, (4,), 10, jax.random.key(0), num_chains=64)
        >>> verdict.row, verdict.process.num_steps
        ('isotropic', 10)
    """
    shape = tuple(shape)
    _check_arguments(shape, num_steps, key, significance, num_chains, exact_up_to)
    check_step(step, shape)
    sample = jax.ShapeDtypeStruct(shape, jnp.float32)
    traced = jax.make_jaxpr(lambda *arguments: step(*arguments))(sample, sample, jnp.int32(0))
    draws = program.random_draws(traced)
    if draws:
        raise ValueError(
            f"step draws random numbers of its own ({', '.join(draws)}): every chain would see the"
            " same ones; all its noise has to come from eps, and constants from outside"
        )
    proved, narrow = program.is_affine(traced), program.narrow_types(traced)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
    exact = math.prod(shape) <= exact_up_to
    chain = probe(step, shape, num_steps, rng, bases or {}, exact=exact)
    result = classify(chain, proved=proved, narrow=narrow)
    p_values, count = simulate.p_values(step, shape, num_steps, result, key, rng, num_chains)
    evidence = _evidence(chain, result, proved)._replace(
        p_values=p_values,
        threshold=significance / max(1, count),
        significance=significance,
        num_chains=num_chains if p_values else 0,
    )
    worst = min(p_values, key=p_values.__getitem__, default=None)
    if worst is None or p_values[worst] >= evidence.threshold:
        return Verdict(result.row, result.process, evidence)
    reason = (
        f"simulation rejects what was derived ({result.row}): the test of {worst} has"
        f" p = {p_values[worst]:.1e}"
    )
    evidence = evidence._replace(reason=reason, note="")
    return Verdict("loop", custom_chain(step, num_steps), evidence)


def _evidence(chain: Probe, result: Classification, proved: bool) -> Evidence:
    """The evidence without the results of simulation."""
    chosen, law = result.chosen, result.law
    gap = math.nan
    if chosen is not None:
        gap = float(np.max(np.abs(chosen.keep**2 + chosen.added - 1.0)))
    return Evidence(
        reason=result.reason,
        note=result.note,
        method="exact" if chain.exact else "probes",
        proved=proved,
        dimension=chain.dimension,
        num_steps=chain.num_steps,
        num_points=chain.linear.num_points,
        **{name: float(np.max(values)) for name, values in chain.linear.departures.items()},
        resolution=TOLERANCE,
        offset=chain.offset,
        bases={modes.name: (modes.error_of_x, modes.error_of_noise) for modes in result.read},
        basis=chosen.name if chosen else "",
        anisotropy=chosen.anisotropy if chosen else (math.nan, math.nan),
        variance_gap=gap,
        law=law.name if law else "normal",
        law_distance=law.distance if law else 0.0,
        p_values={},
        threshold=math.nan,
        significance=math.nan,
        num_chains=0,
        same_moments=result.same_moments,
    )


def _check_arguments(
    shape: tuple[int, ...],
    num_steps: int,
    key: jax.Array,
    significance: float,
    num_chains: int,
    exact_up_to: int,
) -> None:
    if not shape or min(shape) < 1:
        raise ValueError(f"shape is {shape}; it has to have at least one axis, each of 1 or more")
    check_num_steps(num_steps)
    check_key("key", key)
    if not 0.0 < significance < 1.0:
        raise ValueError(f"significance is {significance}; it has to be inside (0, 1)")
    check_count("num_chains", num_chains)
    check_count("exact_up_to", exact_up_to)
    if num_chains < 64:
        raise ValueError(f"num_chains is {num_chains}; the tests take at least 64")
    if exact_up_to < 0:
        raise ValueError(f"exact_up_to is {exact_up_to}; it has to be 0 or more")
