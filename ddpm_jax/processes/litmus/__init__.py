"""The litmus test: which of the shortcuts holds for a chain that is told by its step.

`program` reads the step's code, `probes` linearizes it, `read` and `classify` see it in a basis,
`laws` knows noise that is not Gaussian, `moments` its mean and variance, `rows` says which row
that is, and `simulate` and `confirm` walk the loop. `decide` asks them in this order, `verdict` is
what it hands back.
"""

from ddpm_jax.processes.litmus.decide import litmus as litmus
from ddpm_jax.processes.litmus.verdict import Evidence as Evidence
from ddpm_jax.processes.litmus.verdict import Row as Row
from ddpm_jax.processes.litmus.verdict import Verdict as Verdict
