"""Other people's weights, in and out."""

from ddpm_jax.weights.weights import LazyArray as LazyArray
from ddpm_jax.weights.weights import Recipe as Recipe
from ddpm_jax.weights.weights import Weights as Weights
from ddpm_jax.weights.weights import WeightsError as WeightsError
