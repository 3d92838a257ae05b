"""The litmus test: which of the shortcuts holds for a chain that is given by its step.

- `decide`: `litmus` itself; calls the others in this order.
- `program`: reads the step's program: random draws, casts, a proof that it is affine.
- `probes`: linearizes the step at every t.
- `modes`: reads the linearized chain in bases, and looks for a joint eigenbasis.
- `moments`: mean and variance of noise that is not linear in eps.
- `laws`: the law of such noise, and whether sums keep it.
- `rows`: which row of the table that is, and the process of it.
- `simulate`: walks the loop and tests the claim.
- `verdict`: the result.
"""

from ddpm_jax.litmus.decide import litmus as litmus
from ddpm_jax.litmus.verdict import Evidence as Evidence
from ddpm_jax.litmus.verdict import Row as Row
from ddpm_jax.litmus.verdict import Verdict as Verdict
