"""Forward processes beyond isotropy, and the closed forms that each of them has.

For a chain x_t = f(x_{t-1}, noise), from the cheapest x_t given x_0 to the most expensive:

- one scalar per step, white noise: a `Schedule` (`isotropic`), one (a, b) per t.
- diagonal in one orthonormal basis: `Spectral`, one (a, b) per t and mode, and all of this
  library's functions; made by `blurring`, `correlated`, `equal_snr`, `per_pixel` and `spectral`.
- linear and Gaussian, any matrices: `affine_chain`, Gaussian marginals, transitions and posteriors,
  from one associative scan.
- linear, with noise of a law that sums keep: `gamma`, closed marginals, and posteriors of another
  law.
- anything else: `custom_chain`, which can only be run step by step.

`ddpm_jax.litmus` says which of these a step makes.
"""

from ddpm_jax.processes.affine import AffineChain as AffineChain
from ddpm_jax.processes.affine import affine_chain as affine_chain
from ddpm_jax.processes.chain import Chain as Chain
from ddpm_jax.processes.chain import NoClosedForm as NoClosedForm
from ddpm_jax.processes.constructors import blurring as blurring
from ddpm_jax.processes.constructors import correlated as correlated
from ddpm_jax.processes.constructors import equal_snr as equal_snr
from ddpm_jax.processes.constructors import isotropic as isotropic
from ddpm_jax.processes.custom import CustomChain as CustomChain
from ddpm_jax.processes.custom import check_step as check_step
from ddpm_jax.processes.custom import custom_chain as custom_chain
from ddpm_jax.processes.gamma import GammaChain as GammaChain
from ddpm_jax.processes.gamma import gamma as gamma
from ddpm_jax.processes.modal import Modal as Modal
from ddpm_jax.processes.modal import Process as Process
from ddpm_jax.processes.per_pixel import per_pixel as per_pixel
from ddpm_jax.processes.spectral import Spectral as Spectral
from ddpm_jax.processes.spectral import spectral as spectral
