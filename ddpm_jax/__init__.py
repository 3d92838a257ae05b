"""Denoising diffusion probabilistic models as pure functions in JAX.

The core, importable without Flax, files or a command line:

- `bases`: coordinates in which modes do not mix.
- `schedules`: tables of a chain.
- `processes`: forward processes beyond isotropy, and what holds for which.
- `predictions`: what a network predicts, and all that follows from it.
- `forward`: q, noising in one expression, posteriors, conversions.
- `reverse`: p, the variance of the way back, fixed or learned.
- `gaussians`: KL, entropy, log densities, likelihoods of grey levels.
- `timesteps`: how t is drawn.
- `losses`: the simple loss and the ELBO's terms.
- `likelihood`: bits per dimension, by the bound and by the probability flow.
- `samplers`: from noise to images, in many steps or few; guidance, inpainting.
- `analytic`: data whose best denoiser is known.
- `litmus`: which shortcut holds for a chain that is given by its step.

Around it: `models`, `weights`, `parallel`, `training`, `data`, `evaluation`, `config`,
`experiment`, `plan`, `cli`. `train` trains a config, and `load_run` loads what it has trained.

Names are imported when they are first used: importing JAX takes seconds, in which `ddpm-jax` has to
be able to answer ctrl-C.
"""

import importlib
import sys
import typing

if sys.version_info < (3, 11):  # noqa: UP036 - pip refuses, PYTHONPATH does not
    raise ImportError(f"ddpm_jax needs Python 3.11 or newer; this is {sys.version.split()[0]}")

if typing.TYPE_CHECKING:
    from ddpm_jax import analytic as analytic
    from ddpm_jax import bases as bases
    from ddpm_jax import gaussians as gaussians
    from ddpm_jax import likelihood as likelihood
    from ddpm_jax import litmus as litmus
    from ddpm_jax import losses as losses
    from ddpm_jax import predictions as predictions
    from ddpm_jax import processes as processes
    from ddpm_jax import reverse as reverse
    from ddpm_jax import samplers as samplers
    from ddpm_jax import schedules as schedules
    from ddpm_jax import timesteps as timesteps
    from ddpm_jax.experiment import load_run as load_run
    from ddpm_jax.experiment.train import train as train
    from ddpm_jax.forward import convert as convert
    from ddpm_jax.forward import q_chain as q_chain
    from ddpm_jax.forward import q_posterior as q_posterior
    from ddpm_jax.forward import q_sample as q_sample
    from ddpm_jax.forward import q_step as q_step
    from ddpm_jax.forward import q_transition as q_transition
    from ddpm_jax.likelihood import bits_per_dim as bits_per_dim
    from ddpm_jax.likelihood import estimate_bits_per_dim as estimate_bits_per_dim
    from ddpm_jax.likelihood import flow_bits_per_dim as flow_bits_per_dim
    from ddpm_jax.losses import elbo_loss as elbo_loss
    from ddpm_jax.losses import hybrid_loss as hybrid_loss
    from ddpm_jax.losses import kl_weight as kl_weight
    from ddpm_jax.losses import simple_loss as simple_loss
    from ddpm_jax.losses import vlb_terms as vlb_terms
    from ddpm_jax.losses import weighted_loss as weighted_loss
    from ddpm_jax.schedules import Schedule as Schedule

__version__ = "0.2.0"

_PACKAGES = (
    *("analytic", "bases", "gaussians", "likelihood", "litmus", "losses"),
    *("predictions", "processes", "reverse", "samplers", "schedules", "timesteps"),
)
_HOMES = {
    "load_run": "experiment",
    "train": "experiment",
    "convert": "forward",
    "q_chain": "forward",
    "q_posterior": "forward",
    "q_sample": "forward",
    "q_step": "forward",
    "q_transition": "forward",
    "bits_per_dim": "likelihood",
    "estimate_bits_per_dim": "likelihood",
    "flow_bits_per_dim": "likelihood",
    "elbo_loss": "losses",
    "hybrid_loss": "losses",
    "kl_weight": "losses",
    "simple_loss": "losses",
    "vlb_terms": "losses",
    "weighted_loss": "losses",
    "Schedule": "schedules",
}
"""Which module each of the other names is from."""


def __getattr__(name: str) -> typing.Any:
    if name in _PACKAGES:
        return importlib.import_module(f"ddpm_jax.{name}")
    if name in _HOMES:
        value = getattr(importlib.import_module(f"ddpm_jax.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'ddpm_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PACKAGES, *_HOMES})
