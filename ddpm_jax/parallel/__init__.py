"""Meshes, what is split over them, and the compiled forms of a step."""

from ddpm_jax.parallel.forms import Form as Form
from ddpm_jax.parallel.forms import FormName as FormName
from ddpm_jax.parallel.forms import Gradient as Gradient
from ddpm_jax.parallel.forms import Reduction as Reduction
from ddpm_jax.parallel.forms import make_form as make_form
from ddpm_jax.parallel.forms import one_device as one_device
from ddpm_jax.parallel.mesh import make_mesh as make_mesh
from ddpm_jax.parallel.mesh import replicated as replicated
from ddpm_jax.parallel.mesh import split_by_batch as split_by_batch
from ddpm_jax.parallel.rules import RULES as RULES
from ddpm_jax.parallel.rules import abstract as abstract
from ddpm_jax.parallel.rules import shardings as shardings
