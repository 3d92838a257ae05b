"""The result of the litmus test: the row, the process, and why."""

from typing import Any, Literal, NamedTuple

__all__ = ["Evidence", "Row", "Verdict"]

Row = Literal["isotropic", "spectral", "affine", "closed, not Gaussian", "loop"]
"""The kinds of chains, from the cheapest x_t given x_0 to the most expensive; see `litmus`."""

_COST = {
    "isotropic": "one multiply-add per element, the same for every t",
    "spectral": "one multiply-add per mode and {basis}, the same for every t",
    "affine": "one scan of T steps once, log2 T deep; then d^2 multiply-adds, the same for every t",
    "closed, not Gaussian": "one draw of {law} per element, the same for every t",
    "loop": "t + 1 steps",
}


class Evidence(NamedTuple):
    """The measurements behind the verdict."""

    reason: str
    """Why it is this row, in one sentence."""
    note: str
    """A caveat of the process, or why there is none; may be empty."""
    method: Literal["exact", "probes"]
    """Whether the step was linearized along all directions or along a few random ones."""
    proved: bool
    """Whether the step's program shows that it is affine in x and eps; probes ran all the same."""
    dimension: int
    """d, the elements of one sample."""
    num_steps: int
    """T, the number of steps."""
    num_points: int
    """Base points at each t, of all the sizes that `probes.SCALES` lists."""
    in_x: float
    """How far f(x, 0) is from affine, relative; of all t the worst; see `probes`."""
    in_eps: float
    """How far the noise is from linear in eps, relative."""
    in_state: float
    """How far the noise's covariance is from independent of x, relative."""
    in_sum: float
    """How far the noise, of whatever law, is from independent of x, relative."""
    resolution: float
    """The largest of these four, and of a covariance off its diagonal, that counts as rounding."""
    offset: float
    """The largest element of any b_t."""
    bases: dict[str, tuple[float, float]]
    """The relative size of what is off the diagonal of A and of Q, in each basis that was tried."""
    basis: str
    """The name of the basis that fits; empty if none does."""
    anisotropy: tuple[float, float]
    """How far the diagonals of A, and of Q, are from constant in that basis, relative."""
    variance_gap: float
    """The largest departure of k^2 + q from 1, of any t and mode; NaN without a basis."""
    law: str
    """Of the noise: "normal", "gamma", "Cauchy", or "" for another."""
    law_distance: float
    """From the nearest of these, Kolmogorov's; 0 for noise linear in eps."""
    p_values: dict[str, float]
    """The least of each test, over all x_0 and times; empty if nothing was simulated."""
    threshold: float
    """A p-value below it rejects: the significance divided by the number of tests."""
    significance: float
    """Probability that simulation rejects a correct derivation."""
    num_chains: int
    """Chains simulated from each of three x_0."""
    same_moments: Any
    """For added noise without a closed form: the Gaussian process of its mean and covariance."""


class Verdict(NamedTuple):
    """Which row of the table a chain is in, the process of it, and the evidence; `print` it."""

    row: Row
    """The row; see `litmus`."""
    process: Any
    """For `q_sample` and its like; None where the library cannot make it (`evidence.note`)."""
    evidence: Evidence
    """Why, with the measurements."""

    def __str__(self) -> str:
        e = self.evidence
        basis = "no basis change" if e.basis == "identity" else f"two changes to {e.basis}"
        cost = _COST[self.row].format(basis=basis, law=e.law)
        name = "none" if self.process is None else type(self.process).__name__
        how = (
            "all directions" if e.method == "exact" else "random directions"
        ) + f" at {e.num_points} points of each t"
        worst = sorted(e.bases.items(), key=lambda item: max(item[1]))[:4]
        lines = [
            ("row", self.row),
            ("why", e.reason),
            ("process", f"{name}, T = {e.num_steps}, d = {e.dimension}"),
            ("cost", f"of x_t given x_0: {cost}"),
            ("derived", how + ("; affine by its program" if e.proved else "")),
            (
                "departs",
                f"in x {e.in_x:.0e}, in eps {e.in_eps:.0e}, noise with x {e.in_state:.0e}"
                f" (of its law {e.in_sum:.0e}); resolved {e.resolution:.0e}",
            ),
            ("bases", ", ".join(f"{name} {a:.0e} {q:.0e}" for name, (a, q) in worst)),
        ]
        if e.basis:
            apart = f"k apart by {e.anisotropy[0]:.0e}, q by {e.anisotropy[1]:.0e}"
            gap = f"k^2 + q - 1 up to {e.variance_gap:.0e}; offset {e.offset:.0e}"
            lines.append(("tables", f"{apart}; {gap}"))
        if e.law != "normal" or e.law_distance > 0.0:
            lines.append(("noise", f"{e.law or 'another law'}, distance {e.law_distance:.0e}"))
        if e.p_values:
            values = ", ".join(f"{name} {value:.2g}" for name, value in e.p_values.items())
            walked = f"3 x {e.num_chains} loops: {values}; rejected below {e.threshold:.0e}"
            lines.append(("p-values", walked))
        if e.note:
            lines.append(("note", e.note))
        return "\n".join(f"{name:<9} {text}" for name, text in lines if text)
