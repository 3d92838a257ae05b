"""Evaluation: metrics of samples in a feature space, feature networks, baselines, pictures."""

from ddpm_jax.errors import require

require(
    "ddpm_jax.evaluation",
    "evaluate",
    *("flax", "optax", "orbax.checkpoint", "PIL", "rich", "safetensors"),
)

from ddpm_jax.evaluation.features import EvaluationError as EvaluationError
from ddpm_jax.evaluation.features import FeatureNetwork as FeatureNetwork
from ddpm_jax.evaluation.features import Features as Features
from ddpm_jax.evaluation.frechet import frechet_distance as frechet_distance
from ddpm_jax.evaluation.frechet import (
    frechet_distance_of_gaussians as frechet_distance_of_gaussians,
)
from ddpm_jax.evaluation.inception_weights import inception_network as inception_network
from ddpm_jax.evaluation.likelihood import histogram_bits_per_dim as histogram_bits_per_dim
from ddpm_jax.evaluation.likelihood import uniform_bits_per_dim as uniform_bits_per_dim
from ddpm_jax.evaluation.metrics import INCEPTION as INCEPTION
from ddpm_jax.evaluation.metrics import InceptionScore as InceptionScore
from ddpm_jax.evaluation.metrics import KernelDistance as KernelDistance
from ddpm_jax.evaluation.metrics import Metric as Metric
from ddpm_jax.evaluation.metrics import inception_score as inception_score
from ddpm_jax.evaluation.metrics import kernel_distance as kernel_distance
from ddpm_jax.evaluation.metrics import kernel_distance_of_subsets as kernel_distance_of_subsets
from ddpm_jax.evaluation.metrics import metric_name as metric_name
from ddpm_jax.evaluation.moments import Moments as Moments
from ddpm_jax.evaluation.moments import covariance as covariance
from ddpm_jax.evaluation.moments import merge as merge
from ddpm_jax.evaluation.moments import moments_of as moments_of
from ddpm_jax.evaluation.neighbours import Nearest as Nearest
from ddpm_jax.evaluation.neighbours import PrecisionRecall as PrecisionRecall
from ddpm_jax.evaluation.neighbours import nearest as nearest
from ddpm_jax.evaluation.neighbours import precision_recall as precision_recall
from ddpm_jax.evaluation.pictures import image_grid as image_grid
from ddpm_jax.evaluation.pictures import save_png as save_png
from ddpm_jax.evaluation.pictures import strip_times as strip_times
from ddpm_jax.evaluation.references import Provenance as Provenance
from ddpm_jax.evaluation.references import Reference as Reference
from ddpm_jax.evaluation.references import check_same as check_same
from ddpm_jax.evaluation.references import load_reference as load_reference
from ddpm_jax.evaluation.references import make_reference as make_reference
from ddpm_jax.evaluation.references import save_reference as save_reference
from ddpm_jax.evaluation.streaming import features_of as features_of
