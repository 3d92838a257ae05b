"""Evaluation: baselines and pictures."""

from ddpm_jax.evaluation.baselines import histogram_bits_per_dim as histogram_bits_per_dim
from ddpm_jax.evaluation.baselines import uniform_bits_per_dim as uniform_bits_per_dim
from ddpm_jax.evaluation.pictures import image_grid as image_grid
from ddpm_jax.evaluation.pictures import save_png as save_png
from ddpm_jax.evaluation.pictures import strip_times as strip_times
