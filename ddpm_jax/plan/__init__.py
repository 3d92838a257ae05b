"""Memory, traffic and time of a config on other machines, from programs compiled ahead of time."""

from ddpm_jax.errors import require

require(
    "ddpm_jax.plan",
    "train",
    *("flax", "optax", "orbax.checkpoint", "PIL", "rich", "safetensors", "tyro"),
)

from ddpm_jax.plan.requests import plans as plans
from ddpm_jax.plan.topologies import Topology as Topology
from ddpm_jax.plan.topologies import parse as parse
