"""Which row of the table a linearized chain is in, and the process that is made of it."""

import math
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax import schedules
from ddpm_jax.bases import Basis, orthonormal
from ddpm_jax.litmus import laws, probes
from ddpm_jax.litmus.laws import Law
from ddpm_jax.litmus.modes import (
    ROUNDING,
    TOLERANCE,
    Modes,
    Probe,
    joint_eigenbasis,
    modes_of_matrices,
)
from ddpm_jax.litmus.verdict import Row
from ddpm_jax.processes.affine import affine_chain
from ddpm_jax.processes.custom import custom_chain
from ddpm_jax.processes.gamma import gamma
from ddpm_jax.processes.spectral import build

__all__ = ["Classification", "classify"]

OFFSET = 3e-6
"""The largest b_t that counts as 0, where data and noise are of the size 1."""
VARIANCE_GAP = 1e-6
"""The largest |k^2 + q - 1| of a schedule: a few roundings of k."""
LARGEST_X = 4.5 * max(probes.SCALES)
"""The largest elements of x at which the step is probed."""
COMMUTING = 6e-6
"""Of `probes.commutator`, what counts as rounding."""
MOST_BYTES = 2**28
"""The tables of an affine chain are made if they take no more."""


class Classification(NamedTuple):
    """What was derived, before simulation."""

    row: Row
    process: Any
    reason: str
    note: str = ""
    read: tuple[Modes, ...] = ()
    """The chain in all bases that were tried."""
    chosen: Modes | None = None
    """The chain in the basis that fits."""
    law: Law | None = None
    """The law of noise that is not linear in eps."""
    total: Law | None = None
    """The law of x_t minus `left` times x_0, if it is closed and not Gaussian."""
    left: np.ndarray | None = None
    """The factors on x_0 in the elements of `total`, `[T, k]`."""
    same_moments: Any = None


def classify(chain: Probe, *, proved: bool, narrow: tuple[str, ...] = ()) -> Classification:
    """The row of a chain, by how far its step departs from affine.

    Args:
        chain: the linearized chain.
        proved: whether the step's program shows that it is affine.
        narrow: the types narrower than float32 to which the program rounds values of x or eps.
    """
    worst = {name: float(np.max(value)) for name, value in chain.linear.departures.items()}
    if proved or max(worst["in_x"], worst["in_eps"], worst["in_state"]) <= TOLERANCE:
        result = _gaussian(chain)
        if not narrow:
            return result
        rounds = f"the step rounds to {_names(narrow)}, by less than {TOLERANCE:.0e} of its size"
        return result._replace(note="; ".join(text for text in (result.note, rounds) if text))
    loop = custom_chain(chain.step, chain.num_steps)
    reason = _not_in_closed_form(chain, worst)
    if reason:
        rounds = f"; the step rounds to {_names(narrow)}" if narrow else ""
        return Classification("loop", loop, reason + rounds)
    return _added(chain, loop, narrow)


def _not_in_closed_form(chain: Probe, worst: dict[str, float]) -> str:
    """Why the chain can only be walked, whatever the law of its noise; else nothing."""
    finite = chain.linear.finite
    when = {name: int(np.argmax(value)) for name, value in chain.linear.departures.items()}
    for name, what in (
        ("origin", "f(0, 0) is not finite at t = {t}"),
        ("values", f"f(x, 0) is not finite at t = {{t}}, for an x within {LARGEST_X:.0f}"),
        ("x", "the slope of f(x, 0) in x is not finite at t = {t}: there is no A to read"),
    ):
        if not finite[name].all():
            return what.format(t=int(np.argmin(finite[name])))
    if worst["in_x"] > TOLERANCE:
        return f"nonlinear in x, by {_share(worst['in_x'])} at t = {when['in_x']}"
    if worst["in_sum"] > TOLERANCE:
        name = "in_state" if TOLERANCE < worst["in_state"] < math.inf else "in_sum"
        return f"the noise depends on x, by {_share(worst[name])} at t = {when[name]}"
    return ""


def _names(types: tuple[str, ...]) -> str:
    return " and ".join(types)


def _share(value: float) -> str:
    return f"{value:.1e} of its size" if value < 1.0 else "all of its size"


def _gaussian(chain: Probe) -> Classification:
    """The row of a linear chain with Gaussian noise."""
    read = chain.modes()
    if chain.exact and not any(modes.fits for modes in read):
        A, B = chain.matrices()
        both = np.concatenate([A, B @ np.swapaxes(B, -1, -2)])
        basis = orthonormal(joint_eigenbasis(both, chain.rng), chain.shape)
        read.append(modes_of_matrices("eigenbasis", basis, chain.shape, A, B))
    chosen = next((modes for modes in read if modes.fits), None)
    result = Classification("affine", None, "", read=tuple(read), chosen=chosen)

    noise = math.sqrt(max(0.0, float(np.max(read[0].added))))
    if chain.offset > OFFSET * (1.0 + noise):
        reason = f"linear and Gaussian, with an offset b_t of up to {chain.offset:.1e}"
        if chosen is not None:
            reason += f"; all else is diagonal in the basis {chosen.name}"
        return _affine(chain, result, reason)
    if chosen is None:
        return _without_basis(chain, result)
    shared = chosen.name == "identity" and (
        chosen.anisotropy[0] <= ROUNDING and chosen.anisotropy[1] <= TOLERANCE
    )
    try:
        process, is_schedule = _modal(chosen, shared=shared)
    except ValueError as error:
        what = "one scalar pair per t" if shared else f"diagonal in the basis {chosen.name}"
        return _affine(chain, result, f"{what}, but no table holds it: {error}")
    if not shared:
        reason = f"all A_t and Q_t are diagonal in the basis {chosen.name}, and not isotropic"
        return result._replace(row="spectral", process=process, reason=reason)
    reason = "A_t = k_t I and Q_t = q_t I, with k^2 + q = 1: a schedule"
    if not is_schedule:
        reason = "A_t = k_t I and Q_t = q_t I; k^2 + q is not 1: one shared mode, no schedule"
    return result._replace(row="isotropic", process=process, reason=reason)


def _without_basis(chain: Probe, result: Classification) -> Classification:
    if not chain.exact:
        apart = probes.commutator(chain.step, chain.shape, chain.num_steps, chain.rng)
        if apart <= COMMUTING:
            return result._replace(
                row="spectral",
                reason="all matrices are symmetric and commute: they share an orthonormal basis,"
                f" none of {', '.join(chain.bases)}",
                note="no process, because probes cannot find the basis: name it in `bases`, or"
                f" give an `exact_up_to` of {chain.dimension}",
            )
    least = min(max(modes.error_of_x, modes.error_of_noise) for modes in result.read)
    return _affine(
        chain,
        result,
        "linear and Gaussian, with matrices that share no orthonormal basis: off the diagonal by"
        f" {least:.1e} at best",
    )


def _modal(modes: Modes, *, shared: bool) -> tuple[Any, bool]:
    """The process of these modes, and whether it is a schedule.

    Raises:
        ValueError: a table of logarithms cannot hold it.
    """
    keep, added = (_even(table, modes.basis) for table in (modes.keep, modes.added))
    if (keep < 0.0).any():
        raise ValueError("a factor on x is negative")
    if shared:
        axes = tuple(range(1, keep.ndim))
        keep, added = (table.mean(axis=axes, keepdims=True) for table in (keep, added))
        if np.max(np.abs(keep**2 + added - 1.0)) <= VARIANCE_GAP:
            return schedules.from_betas(added.reshape(-1)), True
    elif modes.basis.kind != "orthonormal":
        for axis in range(1, keep.ndim):
            if _apart(keep, axis) <= ROUNDING and _apart(added, axis) <= TOLERANCE:
                keep, added = (table.mean(axis=axis, keepdims=True) for table in (keep, added))
    noise, total = np.empty_like(added), np.zeros_like(added[0])
    for t in range(len(keep)):
        total = keep[t] ** 2 * total + added[t]
        noise[t] = total
    with np.errstate(divide="ignore"):
        return build(2.0 * np.cumsum(np.log(keep), axis=0), np.log(noise), modes.basis), False


def _even(table: np.ndarray, basis: Basis) -> np.ndarray:
    """What is even but for rounding made so: a Fourier basis takes nothing else."""
    if basis.kind != "fourier":
        return table
    axes = tuple(axis + 1 for axis in basis.axes)
    mirrored = np.roll(np.flip(table, axes), 1, axes)
    size = np.max(np.abs(table), axis=tuple(range(1, table.ndim)), keepdims=True)
    return np.where(np.abs(table - mirrored) <= TOLERANCE * size, 0.5 * (table + mirrored), table)


def _apart(table: np.ndarray, axis: int) -> float:
    """How far the entries along an axis lie apart, relative to the largest of them."""
    size = np.max(np.abs(table), axis=axis)
    return float(np.max(np.ptp(table, axis=axis) / np.where(size > 0.0, size, 1.0)))


def _affine(chain: Probe, result: Classification, reason: str) -> Classification:
    d, T = chain.dimension, chain.num_steps
    size = 4 * T * d**2 * (6 + 2 * (1 + math.ceil(math.log2(T))))
    if size > MOST_BYTES:
        note = (
            f"no process: the tables of d = {d} and T = {T} take {size / 2**20:.0f} MiB, and"
            f" {MOST_BYTES / 2**20:.0f} MiB are the most that is made"
        )
        return result._replace(reason=reason, note=note)
    if not chain.exact:
        note = f"no process, because the Jacobians are not complete: give an `exact_up_to` of {d}"
        return result._replace(reason=reason, note=note)
    A, B = chain.matrices()
    process = affine_chain(A, chain.linear.offset, B @ np.swapaxes(B, -1, -2))
    return result._replace(reason=reason, process=process)


def _added(chain: Probe, loop: Any, narrow: tuple[str, ...]) -> Classification:
    """The row of a chain linear in x, with added noise that is not linear in eps."""
    law = laws.recognise(chain.step, chain.shape, chain.num_steps, chain.rng)
    rounds = f", and is rounded to {_names(narrow)}" if narrow else ""
    if law is None:
        what = "is not linear in eps" if chain.linear.finite["eps"].all() else "has no finite slope"
        reason = f"linear in x, and noise that is added but mixes elements and {what}{rounds}"
        return Classification("loop", loop, reason, "the law of such noise is not looked for")
    if narrow:  # what a law is rounded to is none that sums keep
        law = law._replace(name="")
    moments = _with_moments(chain, law)
    gaussian = None if moments is None else _gaussian(moments)
    if law.name == "normal" and gaussian is not None:
        return gaussian._replace(law=law)
    identity = chain.modes()[0]
    result = Classification("loop", loop, "", read=(identity,), law=law)
    diagonal = identity.error_of_x <= identity.rounding
    if law.name in ("gamma", "Cauchy") and diagonal:
        keep = identity.keep.reshape(chain.num_steps, -1)[:, law.elements]
        total = laws.sums(law, keep)
        if total is not None:
            process, note = _gamma(identity, law)
            return result._replace(
                row="closed, not Gaussian",
                process=process,
                reason=f"linear in x, and added noise whose law, {law.name}, sums keep",
                note=note,
                chosen=identity,
                total=total,
                left=np.cumprod(keep, axis=0),
            )
    result = result._replace(reason=f"linear in x, but {_why_not(law, identity, rounds)}")
    if gaussian is None or gaussian.process is None:
        return result._replace(note="mean and covariance are not known" if gaussian is None else "")
    note = (
        "mean and covariance are known all the same, and are those of `evidence.same_moments`"
        f" (of the noise, to {max(law.error, 1e-6):.0e})"
    )
    return result._replace(note=note, same_moments=gaussian.process)


def _why_not(law: Law, identity: Modes, rounds: str) -> str:
    """Why sums of noise of this law are not known, as the second half of a sentence."""
    if not law.name:
        return f"noise of an unknown law{rounds}, whose sums are of another kind"
    if law.name == "normal":
        return f"of the normal noise only {len(law.elements)} elements are known, and they differ"
    if identity.error_of_x > identity.rounding:
        return f"{law.name} noise whose elements x_t mixes: they do not stay independent"
    if law.name == "gamma" and (identity.keep <= 0.0).any():
        return "gamma noise and a factor on x that is not above 0: sums turn its tail round"
    return f"{law.name} noise without a shared scale, whose sums are of another kind"


def _with_moments(chain: Probe, law: Law) -> Probe | None:
    """The chain with Gaussian noise of the same mean and variance, or None if these are unknown."""
    if not np.isfinite(law.variance).all():
        return None
    mean, variance = law.mean, law.variance
    if law.name == "normal":
        mean, variance = law.location, law.scale**2
    if len(law.elements) < chain.dimension:
        if not law.alike:  # nothing is known of the others
            return None
        mean, variance = (
            np.repeat(table[:, :1], chain.dimension, axis=1) for table in (mean, variance)
        )
    # What the quadrature leaves of a mean is no offset.
    least = max(TOLERANCE, law.error)
    mean = np.where(np.abs(mean) <= least * np.sqrt(variance), 0.0, mean)
    return chain.with_noise(mean, variance)


def _gamma(modes: Modes, law: Law) -> tuple[Any, str]:
    """The process of gamma noise, or None and why there is none."""
    if law.name != "gamma":
        return None, f"no process: the library has none of {law.name} noise"
    keep = modes.keep.reshape(len(modes.keep), -1)
    base = law.scale / np.cumprod(keep[:, law.elements], axis=0)
    if modes.anisotropy[0] > ROUNDING or np.ptp(base) > laws.SAME_SCALE * abs(np.mean(base)):
        return None, "no process: that of `gamma` has one schedule and one scale for all elements"
    betas = law.variance.mean(axis=1)
    if np.mean(base) < 0.0 or np.max(np.abs(law.mean)) > TOLERANCE * math.sqrt(np.max(betas)):
        return None, "no process: the noise of `gamma` has mean 0 and its tail above"
    if (np.abs(keep.mean(axis=1) ** 2 + betas - 1.0) > VARIANCE_GAP + 1e-4 * betas).any():
        return None, "no process: that of `gamma` preserves the variance, k^2 + q = 1"
    return gamma(schedules.from_betas(betas), float(np.mean(base))), ""
