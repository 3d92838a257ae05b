"""The litmus test: which of the shortcuts holds for a chain that is told by its step.

`program` reads the step's code, `probes` linearizes it, `classify` looks for a basis, `laws` for
the law of noise that is not Gaussian, `simulate` walks the loop; `decide` asks them in this order.
"""

from ddpm_jax.processes.litmus.decide import litmus as litmus
from ddpm_jax.processes.litmus.verdict import Evidence as Evidence
from ddpm_jax.processes.litmus.verdict import Row as Row
from ddpm_jax.processes.litmus.verdict import Verdict as Verdict
