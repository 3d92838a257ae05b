"""The configuration of an experiment: its fields, what they have to be, and its files."""

from ddpm_jax.config.fields import Affects as Affects
from ddpm_jax.config.fields import Config as Config
from ddpm_jax.config.fields import ConfigError as ConfigError
from ddpm_jax.config.fields import DataConfig as DataConfig
from ddpm_jax.config.fields import EvaluationConfig as EvaluationConfig
from ddpm_jax.config.fields import HostsConfig as HostsConfig
from ddpm_jax.config.fields import MeshConfig as MeshConfig
from ddpm_jax.config.fields import ModelConfig as ModelConfig
from ddpm_jax.config.fields import OptimizerConfig as OptimizerConfig
from ddpm_jax.config.fields import ProcessConfig as ProcessConfig
from ddpm_jax.config.fields import SamplerName as SamplerName
from ddpm_jax.config.fields import ScheduleConfig as ScheduleConfig
from ddpm_jax.config.fields import TrainConfig as TrainConfig
from ddpm_jax.config.rules import make_preparation as make_preparation
from ddpm_jax.config.rules import make_schedule as make_schedule
from ddpm_jax.config.rules import validate as validate
from ddpm_jax.config.stored import Difference as Difference
from ddpm_jax.config.stored import affects as affects
from ddpm_jax.config.stored import differences as differences
from ddpm_jax.config.stored import flat as flat
from ddpm_jax.config.stored import from_json as from_json
from ddpm_jax.config.stored import load as load
from ddpm_jax.config.stored import to_json as to_json
from ddpm_jax.config.values import checked as checked
from ddpm_jax.config.values import effects as effects
from ddpm_jax.config.values import shown as shown
