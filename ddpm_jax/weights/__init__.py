"""Reads and writes the weights of other programs."""

from ddpm_jax.errors import require

require("ddpm_jax.weights", "models", "flax", "safetensors")

from ddpm_jax.weights.diffusers import from_diffusers as from_diffusers
from ddpm_jax.weights.openai import from_openai as from_openai
from ddpm_jax.weights.to_diffusers import to_diffusers as to_diffusers
from ddpm_jax.weights.weights import LazyArray as LazyArray
from ddpm_jax.weights.weights import Recipe as Recipe
from ddpm_jax.weights.weights import Weights as Weights
from ddpm_jax.weights.weights import WeightsError as WeightsError
