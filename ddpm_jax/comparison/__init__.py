"""Several runs side by side: what differs in their configs, results and samples, as one page."""

from ddpm_jax.errors import require

require(
    "ddpm_jax.comparison",
    "train",
    *("flax", "optax", "orbax.checkpoint", "PIL", "rich", "safetensors", "tyro"),
)
