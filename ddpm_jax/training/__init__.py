"""Training: the state, the step, the loop, and checkpoints."""

from ddpm_jax.training.checkpoints import CheckpointError as CheckpointError
from ddpm_jax.training.checkpoints import Checkpoints as Checkpoints
from ddpm_jax.training.checkpoints import newest_sound as newest_sound
from ddpm_jax.training.gradient import make_gradient as make_gradient
from ddpm_jax.training.interrupts import InterruptedTraining as InterruptedTraining
from ddpm_jax.training.interrupts import Interrupts as Interrupts
from ddpm_jax.training.loop import DivergenceError as DivergenceError
from ddpm_jax.training.loop import Hooks as Hooks
from ddpm_jax.training.loop import fit as fit
from ddpm_jax.training.objective import Drawn as Drawn
from ddpm_jax.training.objective import Objective as Objective
from ddpm_jax.training.objective import deterministic as deterministic
from ddpm_jax.training.objective import make_objective as make_objective
from ddpm_jax.training.objective import weighted_losses as weighted_losses
from ddpm_jax.training.optimizer import learning_rate_schedule as learning_rate_schedule
from ddpm_jax.training.optimizer import make_optimizer as make_optimizer
from ddpm_jax.training.saver import SaveError as SaveError
from ddpm_jax.training.snapshots import list_snapshots as list_snapshots
from ddpm_jax.training.snapshots import load_snapshot as load_snapshot
from ddpm_jax.training.snapshots import save_snapshot as save_snapshot
from ddpm_jax.training.state import TrainState as TrainState
from ddpm_jax.training.state import init_state as init_state
from ddpm_jax.training.step import StepMetrics as StepMetrics
from ddpm_jax.training.step import TrainStep as TrainStep
from ddpm_jax.training.step import make_train_step as make_train_step
