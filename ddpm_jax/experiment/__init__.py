"""An experiment: what a config stands for, its folder, and the commands' common ground."""

from ddpm_jax.experiment.averages import post_hoc_params as post_hoc_params
from ddpm_jax.experiment.build import Experiment as Experiment
from ddpm_jax.experiment.build import build as build
from ddpm_jax.experiment.build import check_batch as check_batch
from ddpm_jax.experiment.build import check_image_size as check_image_size
from ddpm_jax.experiment.build import initial_state as initial_state
from ddpm_jax.experiment.build import lower_step as lower_step
from ddpm_jax.experiment.build import make_form as make_form
from ddpm_jax.experiment.build import make_model as make_model
from ddpm_jax.experiment.build import make_objective as make_objective
from ddpm_jax.experiment.build import make_step as make_step
from ddpm_jax.experiment.build import state_of as state_of
from ddpm_jax.experiment.directory import RunDirectory as RunDirectory
from ddpm_jax.experiment.directory import RunDirectoryError as RunDirectoryError
from ddpm_jax.experiment.measure import evaluate as evaluate
from ddpm_jax.experiment.measure import make_drawer as make_drawer
from ddpm_jax.experiment.process import make_process as make_process
from ddpm_jax.experiment.replay import Replayed as Replayed
from ddpm_jax.experiment.replay import replay as replay
from ddpm_jax.experiment.report import save_drawn as save_drawn
from ddpm_jax.experiment.report import say as say
from ddpm_jax.experiment.train import train as train
