"""Training: the state, the step, the loop, checkpoints and snapshots."""

from ddpm_jax.errors import require

require("ddpm_jax.training", "train", "flax", "optax", "orbax.checkpoint", "rich")

from ddpm_jax.training.checkpoints import CheckpointError as CheckpointError
from ddpm_jax.training.checkpoints import Checkpoints as Checkpoints
from ddpm_jax.training.checkpoints import newest_manifest as newest_manifest
from ddpm_jax.training.checkpoints import newest_sound as newest_sound
from ddpm_jax.training.interrupts import InterruptedTraining as InterruptedTraining
from ddpm_jax.training.interrupts import Interrupts as Interrupts
from ddpm_jax.training.learned_schedule import LearnedSchedule as LearnedSchedule
from ddpm_jax.training.learned_schedule import learned_log_snr as learned_log_snr
from ddpm_jax.training.learned_schedule import (
    learned_schedule_losses as learned_schedule_losses,
)
from ddpm_jax.training.loop import DivergenceError as DivergenceError
from ddpm_jax.training.loop import Hooks as Hooks
from ddpm_jax.training.loop import fit as fit
from ddpm_jax.training.objective import Drawn as Drawn
from ddpm_jax.training.objective import LossTerms as LossTerms
from ddpm_jax.training.objective import Objective as Objective
from ddpm_jax.training.objective import TimeLaw as TimeLaw
from ddpm_jax.training.objective import fixed_times as fixed_times
from ddpm_jax.training.objective import make_losses as make_losses
from ddpm_jax.training.objective import weighted_losses as weighted_losses
from ddpm_jax.training.saver import SaveError as SaveError
from ddpm_jax.training.snapshots import list_snapshots as list_snapshots
from ddpm_jax.training.snapshots import load_snapshot as load_snapshot
from ddpm_jax.training.snapshots import save_snapshot as save_snapshot
from ddpm_jax.training.snapshots import sigma_rels_of as sigma_rels_of
from ddpm_jax.training.snapshots import survey_snapshots as survey_snapshots
from ddpm_jax.training.state import TrainState as TrainState
from ddpm_jax.training.state import init_state as init_state
from ddpm_jax.training.step import StepMetrics as StepMetrics
from ddpm_jax.training.step import TrainStep as TrainStep
from ddpm_jax.training.step import make_gradient as make_gradient
from ddpm_jax.training.step import make_train_step as make_train_step
