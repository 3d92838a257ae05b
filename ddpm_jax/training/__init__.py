"""Training: the state, the step, the loop, and checkpoints."""

from ddpm_jax.training.checkpoints import CheckpointError as CheckpointError
from ddpm_jax.training.checkpoints import Checkpoints as Checkpoints
from ddpm_jax.training.loop import DivergenceError as DivergenceError
from ddpm_jax.training.loop import Hooks as Hooks
from ddpm_jax.training.loop import fit as fit
from ddpm_jax.training.objective import initial_memory as initial_memory
from ddpm_jax.training.objective import make_loss as make_loss
from ddpm_jax.training.optimizer import learning_rate_schedule as learning_rate_schedule
from ddpm_jax.training.optimizer import make_optimizer as make_optimizer
from ddpm_jax.training.state import TrainState as TrainState
from ddpm_jax.training.state import init_state as init_state
from ddpm_jax.training.step import StepMetrics as StepMetrics
from ddpm_jax.training.step import make_train_step as make_train_step
