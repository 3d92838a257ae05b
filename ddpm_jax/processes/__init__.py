"""Forward processes beyond isotropy."""

from ddpm_jax.processes.constructors import blurring as blurring
from ddpm_jax.processes.constructors import correlated as correlated
from ddpm_jax.processes.constructors import equal_snr as equal_snr
from ddpm_jax.processes.constructors import isotropic as isotropic
from ddpm_jax.processes.contract import Chain as Chain
from ddpm_jax.processes.contract import Modal as Modal
from ddpm_jax.processes.contract import NoClosedForm as NoClosedForm
from ddpm_jax.processes.contract import Process as Process
from ddpm_jax.processes.per_pixel import per_pixel as per_pixel
from ddpm_jax.processes.spectral import Spectral as Spectral
from ddpm_jax.processes.spectral import spectral as spectral
