"""Noise schedules: how much signal and how much noise there is at each time.

`tables` has the `Schedule` itself and the equations, and `build` makes its tables. `constructors`
makes one that preserves variance, from a formula or from given tables; `signal_noise` makes the
others, such as variance exploding and rectified flow; `learned` makes one from parameters;
`transforms` makes one from another.
"""

from ddpm_jax.schedules.constructors import constant as constant
from ddpm_jax.schedules.constructors import cosine as cosine
from ddpm_jax.schedules.constructors import from_alpha_bar as from_alpha_bar
from ddpm_jax.schedules.constructors import from_betas as from_betas
from ddpm_jax.schedules.constructors import from_log_snr as from_log_snr
from ddpm_jax.schedules.constructors import linear as linear
from ddpm_jax.schedules.constructors import linear_log_snr as linear_log_snr
from ddpm_jax.schedules.constructors import quadratic as quadratic
from ddpm_jax.schedules.constructors import sigmoid as sigmoid
from ddpm_jax.schedules.learned import Endpoints as Endpoints
from ddpm_jax.schedules.learned import Monotone as Monotone
from ddpm_jax.schedules.learned import from_monotone as from_monotone
from ddpm_jax.schedules.learned import monotone as monotone
from ddpm_jax.schedules.learned import monotone_steps as monotone_steps
from ddpm_jax.schedules.signal_noise import from_signal_noise as from_signal_noise
from ddpm_jax.schedules.signal_noise import rectified_flow as rectified_flow
from ddpm_jax.schedules.signal_noise import sub_variance_preserving as sub_variance_preserving
from ddpm_jax.schedules.signal_noise import variance_exploding as variance_exploding
from ddpm_jax.schedules.signal_noise import variance_preserving as variance_preserving
from ddpm_jax.schedules.tables import Schedule as Schedule
from ddpm_jax.schedules.transforms import respaced as respaced
from ddpm_jax.schedules.transforms import shifted as shifted
from ddpm_jax.schedules.transforms import zero_terminal_snr as zero_terminal_snr
