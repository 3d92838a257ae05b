"""The litmus test: which shortcut holds for a chain that is told by its step."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from ddpm_jax import bases as all_bases
from ddpm_jax import schedules
from ddpm_jax.bases import Basis
from ddpm_jax.checks import check_key
from ddpm_jax.processes.affine import affine_chain
from ddpm_jax.processes.custom import check_step, custom_chain
from ddpm_jax.processes.gamma import gamma
from ddpm_jax.processes.litmus import classify, laws, probes, program, simulate
from ddpm_jax.processes.litmus.classify import ROUNDING, TOLERANCE, Modes
from ddpm_jax.processes.litmus.laws import Law
from ddpm_jax.processes.litmus.probes import Linearized, Step
from ddpm_jax.processes.litmus.verdict import Evidence, Row, Verdict
from ddpm_jax.processes.spectral import build
from ddpm_jax.schedules.tables import check_num_steps

__all__ = ["litmus"]

VARIANCE_GAP = 1e-6
"""The largest |k^2 + q - 1| of a schedule: a few roundings of k."""
MOST_BYTES = 2**28
"""An affine chain whose tables would take more is not made: 26 T d^2 float32 numbers at most."""


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
    r"""Which row of the table a chain is in, derived from its step and confirmed by the loop.

        isotropic              A_t = k_t I, Q_t = q_t I              `Schedule`, or `Spectral`
        spectral               all A_t, Q_t diagonal in one basis    `Spectral`
        affine                 x_t = A_t x_{t-1} + b_t + N(0, Q_t)   `AffineChain`
        closed, not Gaussian   added noise whose sums keep its law   `GammaChain`
        loop                   everything else                       `CustomChain`

    **Derived**: the step is linearized at every t, at the origin and at 10 base points with
    elements of x from 0.05 to 1500 and of eps up to 5.4, where float32 normals end
    (`litmus.probes`). All of f has to be affine, and the noise's covariance the same everywhere, to
    2e-5 of each element's own size; in exact arithmetic that is proved where the step's program
    shows it. With d up to `exact_up_to` the Jacobians are complete, and a joint eigenbasis is found
    if there is one. Above, random vectors say whether they are diagonal in each of a list of bases,
    or at least commute; what one element of many does is then measured against the largest.

    **What it can see**, in float32: an anisotropy or a state dependence of the noise's covariance,
    or a bend of the step, of 2e-5 of its size; of a basis that turns by an angle, the angle times
    the spread of the eigenvalues, from 2e-5 of those of Q and 5e-6 of the largest of A. What only
    happens further out, or between the base points and without a slope at them, it may miss.

    **Confirmed**: loops are walked from three x_0, and the derived mean, covariance and law of x_t
    tested at three times (`litmus.simulate`). A rejection makes it a "loop".

    Args:
        step: a pure function `(x_prev, eps, t) -> x_t` of one sample, float32; eps is standard
            normal noise of the sample's shape, t a scalar int32 in [0, T) that is traced.
        shape: of one sample. A step that needs noise of an earlier step keeps it in the sample.
        num_steps: T, at least 2.
        key: typed random key; draws base points, noise and directions.
        bases: more bases to try, by name, such as the principal axes of the data.
        significance: how probable it may be that simulation rejects what was derived rightly; it
            is shared out to all tests.
        num_chains: loops from each x_0, at least 64. A mean is seen to be off from about
            5 / sqrt(num_chains) deviations, a variance from twice that share.
        exact_up_to: the largest d for complete Jacobians, 2 T d^2 numbers.

    Raises:
        TypeError: a step that cannot be traced, or arguments of the wrong type.
        ValueError: a step that is no pure function of its arguments, draws random numbers itself or
            returns another shape; T below 2, or another argument outside its range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ddpm_jax import processes
        >>> betas = jnp.linspace(0.01, 0.2, 10)
        >>> def step(x_prev, eps, t):
        ...     return jnp.sqrt(1.0 - betas[t]) * x_prev + jnp.sqrt(betas[t]) * eps
        >>> verdict = processes.litmus(step, (4,), 10, jax.random.key(0), num_chains=64)
        >>> verdict.row, verdict.process.num_steps
        ('isotropic', 10)
    """
    shape = tuple(shape)
    _check(shape, num_steps, key, significance, num_chains, exact_up_to)
    check_step(step, shape)
    traced = jax.make_jaxpr(lambda *arguments: step(*arguments))(
        jnp.zeros(shape), jnp.zeros(shape), jnp.int32(0)
    )
    draws = program.random_draws(traced)
    if draws:
        raise ValueError(
            f"step draws random numbers of its own ({', '.join(draws)}): every chain would see the"
            " same ones; all its noise has to come from eps, and constants from outside"
        )
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
    chain = _look(step, shape, num_steps, rng, bases or {}, exact_up_to)
    proved = program.is_affine(traced)
    found = _decide(chain, proved)
    confirmed, p_values, threshold = _confirm(chain, found, key, num_chains, significance)
    evidence = _evidence(chain, found, proved)._replace(
        p_values=p_values,
        threshold=threshold,
        significance=significance,
        num_chains=num_chains if p_values else 0,
    )
    if confirmed:
        return Verdict(found.row, found.process, evidence)
    worst = min(p_values, key=p_values.__getitem__)
    reason = (
        f"simulation rejects what was derived ({found.row}): the test of {worst} has"
        f" p = {p_values[worst]:.1e}"
    )
    return Verdict("loop", custom_chain(step, num_steps), evidence._replace(reason=reason))


class _Chain(NamedTuple):
    """A step, what the probes saw of it, and how to read it in a basis."""

    step: Step
    shape: tuple[int, ...]
    num_steps: int
    rng: np.random.Generator
    linear: Linearized
    exact: bool
    bases: dict[str, Basis]
    signs: np.ndarray  # [bases, 2, d], the modes of the random directions

    def modes(self) -> list[Modes]:
        """In every basis that is tried."""
        if self.exact:
            A, B = self.matrices()
            return [classify.modes(name, basis, self.shape, A, B) for name, basis in self.bases.items()]
        return [
            classify.modes_by_probes(
                name,
                basis,
                self.shape,
                self.signs[i],
                self.linear.of_x[:, 2 * i : 2 * i + 2],
                self.linear.of_eps[:, 2 * i : 2 * i + 2],
            )
            for i, (name, basis) in enumerate(self.bases.items())
        ]

    def directions(self) -> np.ndarray:
        """Vectors of the data `[2 bases, d]`, two of random signs in each basis."""
        vectors = [
            np.asarray(basis.to_data(jnp.asarray(signs.reshape(2, *self.shape), jnp.float32)))
            for basis, signs in zip(self.bases.values(), self.signs, strict=True)
        ]
        return np.concatenate(vectors).reshape(2 * len(vectors), -1)

    def matrices(self) -> tuple[np.ndarray, np.ndarray]:
        """A and B `[T, d, d]`, of exact Jacobians."""
        return np.swapaxes(self.linear.of_x, -1, -2), np.swapaxes(self.linear.of_eps, -1, -2)


class _Found(NamedTuple):
    """The answer, before simulation had its say."""

    row: Row
    process: Any
    reason: str
    note: str = ""
    read: tuple[Modes, ...] = ()
    chosen: Modes | None = None
    law: Law | None = None
    keep: np.ndarray | None = None  # [T, k], the factors on the elements of the law
    same_moments: Any = None


def _look(
    step: Step,
    shape: tuple[int, ...],
    num_steps: int,
    rng: np.random.Generator,
    more: Mapping[str, Basis],
    exact_up_to: int,
) -> _Chain:
    tried = {**classify.candidates(shape), **more}
    d = math.prod(shape)
    exact = d <= exact_up_to
    signs = rng.choice([-1.0, 1.0], (len(tried), 2, d))
    chain = _Chain(step, shape, num_steps, rng, None, exact, tried, signs)
    directions = None if exact else chain.directions()
    return chain._replace(linear=probes.linearize(step, shape, num_steps, rng, directions))


def _decide(chain: _Chain, proved: bool) -> _Found:
    """The row, from how far the step departs from affine."""
    worst = {name: float(values.max()) for name, values in chain.linear.departures.items()}
    at = {name: int(values.argmax()) for name, values in chain.linear.departures.items()}
    loop = custom_chain(chain.step, chain.num_steps)
    if proved or max(worst["in_x"], worst["in_eps"], worst["in_state"]) <= TOLERANCE:
        return _gaussian(chain)
    if worst["in_x"] > TOLERANCE:
        reason = f"nonlinear in x: off by {worst['in_x']:.1e} of its size at t = {at['in_x']}"
        return _Found("loop", loop, reason)
    if worst["in_sum"] > TOLERANCE:
        name = "in_state" if worst["in_state"] > TOLERANCE else "in_sum"
        reason = f"the noise depends on x: by {worst[name]:.1e} of its size at t = {at[name]}"
        return _Found("loop", loop, reason)
    return _added(chain, loop)


def _gaussian(chain: _Chain) -> _Found:
    """Of a linear chain with Gaussian noise."""
    read = chain.modes()
    offset, size = _offset(chain.linear), 1.0 + math.sqrt(max(0.0, read[0].added.max()))
    fitting = [modes for modes in read if modes.fits]
    if not fitting and chain.exact:
        A, B = chain.matrices()
        both = np.concatenate([A, B @ np.swapaxes(B, -1, -2)])
        matrix = classify.joint_eigenbasis(both, chain.rng)
        basis = all_bases.orthonormal(matrix, chain.shape)
        read.append(classify.modes("eigenbasis", basis, chain.shape, A, B))
        fitting = [modes for modes in read if modes.fits]
    common = dict(read=tuple(read), chosen=fitting[0] if fitting else None)
    if offset > ROUNDING * size:
        reason = f"linear and Gaussian, with an offset b_t of up to {offset:.1e}"
        if fitting:
            reason += f"; all else is diagonal in the basis {fitting[0].name}"
        return _affine(chain, reason, common)
    if not fitting:
        worst = min(max(modes.error_of_x, modes.error_of_noise) for modes in read)
        reason = "linear and Gaussian, with matrices that share no orthonormal eigenbasis"
        if not chain.exact:
            apart = probes.commutator(chain.step, chain.shape, chain.num_steps, chain.rng)
            if apart <= 5.0 * TOLERANCE:
                return _Found(
                    "spectral",
                    None,
                    "all matrices are symmetric and commute: they share an orthonormal eigenbasis,"
                    f" none of {', '.join(chain.bases)}",
                    "no process: probes cannot find the basis; give it in `bases`, or an"
                    f" `exact_up_to` of {math.prod(chain.shape)}",
                    **common,
                )
        return _affine(chain, f"{reason} (off the diagonal {worst:.1e} at best)", common)
    chosen = fitting[0]
    shared = chosen.name == "identity" and (
        chosen.anisotropy[0] <= ROUNDING and chosen.anisotropy[1] <= TOLERANCE
    )
    try:
        process = _modal(chosen, shared)
    except ValueError as error:
        what = "one scalar pair per t" if shared else f"diagonal in the basis {chosen.name}"
        return _affine(chain, f"{what}, but not in logarithms: {error}", common)
    if not shared:
        reason = f"all A_t and Q_t are diagonal in the basis {chosen.name}, and not isotropic"
        return _Found("spectral", process, reason, **common)
    if isinstance(process, schedules.Schedule):
        reason = "A_t = k_t I, Q_t = q_t I with k^2 + q = 1: a schedule"
    else:
        reason = "A_t = k_t I, Q_t = q_t I; k^2 + q is not 1, so one shared mode and no schedule"
    return _Found("isotropic", process, reason, **common)


def _modal(modes: Modes, shared: bool) -> Any:
    """The process of these modes; ValueError if a table of logarithms cannot hold it."""
    keep, added = modes.keep, modes.added
    if (keep < 0.0).any():
        raise ValueError("a factor on x is negative")
    if shared:
        axes = tuple(range(1, keep.ndim))
        keep, added = (table.mean(axis=axes, keepdims=True) for table in (keep, added))
        if np.abs(keep**2 + added - 1.0).max() <= VARIANCE_GAP:
            return schedules.from_betas(added.reshape(-1))
    elif modes.basis.kind != "orthonormal":
        for axis in range(1, keep.ndim):
            if _alike(keep, axis) <= ROUNDING and _alike(added, axis) <= TOLERANCE:
                keep, added = (table.mean(axis=axis, keepdims=True) for table in (keep, added))
    noise, total = np.empty_like(added), np.zeros_like(added[0])
    for t in range(len(keep)):
        total = keep[t] ** 2 * total + added[t]
        noise[t] = total
    with np.errstate(divide="ignore"):
        return build(2.0 * np.cumsum(np.log(keep), axis=0), np.log(noise), modes.basis)


def _affine(chain: _Chain, reason: str, common: dict[str, Any]) -> _Found:
    d, T = math.prod(chain.shape), chain.num_steps
    bytes_needed = 4 * T * d**2 * (6 + 2 * (1 + math.ceil(math.log2(T))))
    if not chain.exact or bytes_needed > MOST_BYTES:
        size = f"the dense matrices of d = {d} and T = {T} take {bytes_needed / 2**20:.0f} MiB"
        note = f"no process: {size}, and {MOST_BYTES / 2**20:.0f} MiB is the most that is made"
        if bytes_needed <= MOST_BYTES:
            note = f"no process, because Jacobians were not complete: `exact_up_to` = {d} makes one"
        return _Found("affine", None, reason, note, **common)
    A, B = chain.matrices()
    Q = B @ np.swapaxes(B, -1, -2)
    return _Found("affine", affine_chain(A, chain.linear.offset, Q), reason, **common)


def _added(chain: _Chain, loop: Any) -> _Found:
    """Of a chain linear in x with noise that is added, but no linear function of eps."""
    law = laws.recognise(chain.step, chain.shape, chain.num_steps, chain.rng)
    if law is None:
        reason = "linear in x, and noise that is added but mixes elements and is not linear in eps"
        return _Found("loop", loop, reason, "the law of such noise is not looked for")
    moments = _with_moments(chain, law)
    gaussian = None if moments is None else _gaussian(moments)
    if law.name == "normal" and gaussian is not None:
        return gaussian._replace(law=law)
    identity = chain.modes()[0]
    common = dict(read=(identity,), law=law, same_moments=gaussian and gaussian.process)
    note = ""
    if common["same_moments"] is not None:
        note = (
            "mean and covariance are known all the same: those of `evidence.same_moments`, a"
            f" Gaussian chain ({gaussian.row})"
        )
    if law.name in ("gamma", "Cauchy") and identity.error_of_x <= ROUNDING:
        keep = identity.keep.reshape(chain.num_steps, -1)[:, law.elements]
        if laws.sums(law, keep) is not None:
            process, why = _gamma(identity, law)
            reason = f"linear in x, and added noise whose law, {law.name}, is kept by sums"
            found = _Found("closed, not Gaussian", process, reason, why, **common)
            return found._replace(chosen=identity, keep=keep)
    what = f"{law.name} noise without a shared scale" if law.name else "noise of an unknown law"
    reason = f"linear in x, but {what}, of which sums are of another kind"
    return _Found("loop", loop, reason, note, **common)


def _with_moments(chain: _Chain, law: Law) -> _Chain | None:
    """The chain with Gaussian noise of the same mean and variance, or None if these are unknown."""
    d = math.prod(chain.shape)
    if not np.isfinite(law.variance).all():
        return None
    mean, variance = law.mean, law.variance
    if len(law.elements) < d:
        if np.ptp(variance, axis=1).any() or np.ptp(mean, axis=1).any():
            return None
        mean, variance = (np.repeat(table[:, :1], d, axis=1) for table in (mean, variance))
    mean = np.where(np.abs(mean) <= TOLERANCE * np.sqrt(variance), 0.0, mean)  # of the quadrature
    if chain.exact:
        of_eps = np.sqrt(variance)[:, :, None] * np.eye(d)
    else:
        of_eps = variance[:, None] * chain.directions()
    return chain._replace(linear=chain.linear._replace(of_eps=of_eps, offset=mean))


def _gamma(modes: Modes, law: Law) -> tuple[Any, str]:
    """The process of gamma noise, or None and why not."""
    if law.name != "gamma":
        return None, f"no process: the library has none of {law.name} noise"
    keep, T = modes.keep.reshape(len(modes.keep), -1), len(modes.keep)
    base = law.scale / np.cumprod(keep[:, law.elements], axis=0)
    if modes.anisotropy[0] > ROUNDING or np.ptp(base) > laws.SAME_SCALE * abs(base.mean()):
        return None, "no process: `gamma` has one schedule and one scale for all elements"
    betas = law.variance.mean(axis=1)
    if base.mean() < 0.0 or np.abs(law.mean).max() > TOLERANCE * math.sqrt(betas.max()):
        return None, "no process: the noise of `gamma` has mean 0 and its tail above"
    if (np.abs(keep.mean(axis=1) ** 2 + betas - 1.0) > VARIANCE_GAP + 1e-4 * betas).any():
        return None, "no process: that of `gamma` preserves the variance, k^2 + q = 1"
    return gamma(schedules.from_betas(betas), float(base.mean())), ""


def _confirm(
    chain: _Chain, found: _Found, key: jax.Array, num_chains: int, significance: float
) -> tuple[bool, dict[str, float], float]:
    """Whether loops agree with what was found; the least p-value of each test; what rejects."""
    if found.row == "loop" or (found.process is None and found.keep is None):
        return True, {}, significance
    x0, T = simulate.starts(chain.rng, chain.shape), chain.num_steps
    least: dict[str, float] = {}
    count = 0
    walked = simulate.walk(chain.step, x0, key, T, num_chains, (0, T // 2, T - 1))
    for t, x in walked:
        for start, samples in zip(x0, x, strict=True):
            for name, p_value in _p_values(found, t, start, samples, chain.rng).items():
                least[name] = min(least.get(name, 1.0), p_value)
                count += 1
    threshold = significance / count
    return min(least.values()) >= threshold, least, threshold


def _p_values(
    found: _Found, t: int, x0: jax.Array, x: jax.Array, rng: np.random.Generator
) -> dict[str, float]:
    """Of the claim about x_t `[chains, *shape]` given one x_0 `[*shape]`."""
    time = jnp.full(1, t, jnp.int32)
    if found.keep is not None and found.law is not None:
        total = laws.sums(found.law, found.keep)
        elements = found.law.elements
        start = np.asarray(x0, np.float64).reshape(-1)[elements]
        samples = np.asarray(x, np.float64).reshape(len(x), -1)[:, elements]
        centre = np.prod(found.keep[: t + 1], axis=0) * start + total.location[t]
        below = laws.distribution(
            total.name, (samples - centre) / total.scale[t], total.shape[t]
        )
        return {"law": simulate.uniform_p_value(below.reshape(-1))}
    if found.row == "affine":
        M, m, C = (np.asarray(table[0], np.float64) for table in found.process.marginal(time))
        mean = M @ np.asarray(x0, np.float64).reshape(-1) + m
        return _without_noiseless(np.asarray(x, np.float64).reshape(len(x), -1) - mean, mean, C, rng)
    residuals = simulate.white(found.process, x0, x, time)
    return simulate.normal_p_values(np.asarray(residuals, np.float64).reshape(len(x), -1), rng)


def _without_noiseless(
    departures: np.ndarray, mean: np.ndarray, covariance: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """Tests of x - mean ~ N(0, covariance), which may be singular: there x is its mean."""
    variances, directions = np.linalg.eigh(covariance)
    size = max(1.0, np.abs(mean).max(), math.sqrt(variances[-1]))
    noisy = variances > (1e-5 * size) ** 2  # the rest drowns in float32's rounding of x
    along = departures @ directions
    off = np.abs(along[:, ~noisy]).max(initial=0.0)
    p_values = {"noiseless": float(off <= 1e-4 * size)}
    if noisy.any():
        residuals = along[:, noisy] / np.sqrt(variances[noisy])
        p_values |= simulate.normal_p_values(residuals, rng)
    return p_values


def _evidence(chain: _Chain, found: _Found, proved: bool) -> Evidence:
    """All but what simulation adds."""
    chosen, law = found.chosen, found.law
    gap = math.nan
    if chosen is not None:
        gap = float(np.abs(chosen.keep**2 + chosen.added - 1.0).max())
    return Evidence(
        reason=found.reason,
        note=found.note,
        method="exact" if chain.exact else "probes",
        proved=proved,
        dimension=math.prod(chain.shape),
        num_steps=chain.num_steps,
        num_points=chain.linear.num_points,
        **{name: float(values.max()) for name, values in chain.linear.departures.items()},
        resolution=TOLERANCE,
        offset=_offset(chain.linear),
        bases={modes.name: (modes.error_of_x, modes.error_of_noise) for modes in found.read},
        basis=chosen.name if chosen else "",
        anisotropy=chosen.anisotropy if chosen else (math.nan, math.nan),
        variance_gap=gap,
        law=law.name if law else "normal",
        law_distance=law.distance if law else 0.0,
        p_values={},
        threshold=math.nan,
        significance=math.nan,
        num_chains=0,
        same_moments=found.same_moments,
    )


def _offset(linear: Linearized) -> float:
    return float(np.abs(linear.offset).max())


def _alike(table: np.ndarray, axis: int) -> float:
    """How far the entries along an axis lie apart, relative to the largest of them."""
    size = np.abs(table).max(axis=axis)
    return float((np.ptp(table, axis=axis) / np.where(size > 0.0, size, 1.0)).max())


def _check(
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
    if num_chains < 64:
        raise ValueError(f"num_chains is {num_chains}; the tests take at least 64")
    if exact_up_to < 0:
        raise ValueError(f"exact_up_to is {exact_up_to}; it has to be 0 or more")
