"""Meshes and the compiled form of a step on them."""

from ddpm_jax.parallel.mesh import compile_step as compile_step
from ddpm_jax.parallel.mesh import make_mesh as make_mesh
from ddpm_jax.parallel.mesh import replicated as replicated
from ddpm_jax.parallel.mesh import shard_batch as shard_batch
from ddpm_jax.parallel.mesh import split_by_batch as split_by_batch
