"""Meshes of devices, how arrays are split over them, and the compiled forms of a step."""

from ddpm_jax.errors import require

require("ddpm_jax.parallel", "train", "flax", "orbax.checkpoint", "rich")

from ddpm_jax.parallel.forms import Form as Form
from ddpm_jax.parallel.forms import Gradient as Gradient
from ddpm_jax.parallel.forms import Reduction as Reduction
from ddpm_jax.parallel.forms import jit_form as jit_form
from ddpm_jax.parallel.forms import one_device as one_device
from ddpm_jax.parallel.forms import pmap_form as pmap_form
from ddpm_jax.parallel.forms import shard_map_form as shard_map_form
from ddpm_jax.parallel.mesh import make_mesh as make_mesh
from ddpm_jax.parallel.mesh import replicated as replicated
from ddpm_jax.parallel.mesh import split_by_batch as split_by_batch
from ddpm_jax.parallel.rules import LARGEST as LARGEST
from ddpm_jax.parallel.rules import RULES as RULES
from ddpm_jax.parallel.rules import abstract as abstract
from ddpm_jax.parallel.rules import axis_names as axis_names
from ddpm_jax.parallel.rules import shardings as shardings
from ddpm_jax.parallel.rules import with_largest as with_largest
