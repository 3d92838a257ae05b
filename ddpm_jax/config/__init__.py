"""The config of an experiment: a member of each family of choices, and the run.

Each family has a module with its base class, which says what a member's `make` gets and returns,
and with the members of this package. A config file may define members of its own.
"""

from ddpm_jax.errors import require

require(
    "ddpm_jax.config",
    "train",
    *("flax", "optax", "orbax.checkpoint", "PIL", "rich", "safetensors", "tyro"),
)

from ddpm_jax.config.averages import *
from ddpm_jax.config.base import *
from ddpm_jax.config.catalogue import *
from ddpm_jax.config.config import *
from ddpm_jax.config.data import *
from ddpm_jax.config.evaluation import *
from ddpm_jax.config.file import *
from ddpm_jax.config.logger import *
from ddpm_jax.config.mesh import *
from ddpm_jax.config.network import *
from ddpm_jax.config.objective import *
from ddpm_jax.config.optimizer import *
from ddpm_jax.config.packaged import *
from ddpm_jax.config.process import *
from ddpm_jax.config.sampler import *
from ddpm_jax.config.schedule import *
from ddpm_jax.config.source import OWN as OWN
from ddpm_jax.config.source import same_definitions as same_definitions
from ddpm_jax.config.source import source_of as source_of
from ddpm_jax.config.stored import *
from ddpm_jax.config.values import checked as checked
from ddpm_jax.config.values import nearest as nearest
from ddpm_jax.config.values import shown as shown
from ddpm_jax.data import ImageSpec as ImageSpec
from ddpm_jax.training.objective import LossTerms as LossTerms
from ddpm_jax.training.objective import TimeLaw as TimeLaw
