"""An experiment: the objects that a config declares, its run directory, training and sampling."""

from ddpm_jax.errors import require

require(
    "ddpm_jax.experiment",
    "train",
    *("flax", "optax", "orbax.checkpoint", "PIL", "rich", "safetensors", "tyro"),
    *("grain", "matplotlib"),  # late, by each training
)

from ddpm_jax.experiment.data_record import read_data_record as read_data_record
from ddpm_jax.experiment.experiment import Experiment as Experiment
from ddpm_jax.experiment.experiment import build as build
from ddpm_jax.experiment.experiment import check_batch as check_batch
from ddpm_jax.experiment.experiment import image_spec_of as image_spec_of
from ddpm_jax.experiment.experiment import initial_state as initial_state
from ddpm_jax.experiment.experiment import make_network as make_network
from ddpm_jax.experiment.experiment import state_of as state_of
from ddpm_jax.experiment.post_hoc import post_hoc_params as post_hoc_params
from ddpm_jax.experiment.replay import Replayed as Replayed
from ddpm_jax.experiment.replay import replay as replay
from ddpm_jax.experiment.run import Run as Run
from ddpm_jax.experiment.run import alone as alone
from ddpm_jax.experiment.run import build_run as build_run
from ddpm_jax.experiment.run import load_run as load_run
from ddpm_jax.experiment.run import restore_run as restore_run
from ddpm_jax.experiment.run_directory import RunDirectory as RunDirectory
from ddpm_jax.experiment.run_directory import RunDirectoryError as RunDirectoryError
from ddpm_jax.experiment.sampler_artifact import export_sampler as export_sampler
from ddpm_jax.experiment.sampler_artifact import sampler_files as sampler_files
from ddpm_jax.experiment.sampler_program import PLATFORMS as PLATFORMS
from ddpm_jax.experiment.sampler_program import Placement as Placement
from ddpm_jax.experiment.sampler_program import check_platforms as check_platforms
from ddpm_jax.experiment.sampler_program import sampler_program as sampler_program
from ddpm_jax.experiment.sampling import Samples as Samples
from ddpm_jax.experiment.sampling import make_drawer as make_drawer
from ddpm_jax.experiment.step import abstract_batch as abstract_batch
from ddpm_jax.experiment.step import lower_step as lower_step
from ddpm_jax.experiment.step import make_batches as make_batches
from ddpm_jax.experiment.step import make_form as make_form
from ddpm_jax.experiment.step import make_objective as make_objective
from ddpm_jax.experiment.step import make_step as make_step
from ddpm_jax.experiment.step import trained_model as trained_model
from ddpm_jax.experiment.train import train as train
