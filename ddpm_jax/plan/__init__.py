"""What a config needs of machines that are not rented yet: compiled ahead of time, and read."""

from ddpm_jax.plan.ask import plans as plans
from ddpm_jax.plan.topologies import Topology as Topology
from ddpm_jax.plan.topologies import parse as parse
