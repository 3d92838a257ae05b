"""Evaluation: metrics of samples in a feature space, feature networks, baselines, pictures."""

from ddpm_jax.errors import require

require(
    "ddpm_jax.evaluation",
    "evaluate",
    *("flax", "optax", "orbax.checkpoint", "PIL", "rich", "safetensors"),
)

from ddpm_jax.evaluation.choices import ChosenRows as ChosenRows
from ddpm_jax.evaluation.choices import chosen_rows as chosen_rows
from ddpm_jax.evaluation.choices import priorities as priorities
from ddpm_jax.evaluation.clip import clip_network as clip_network
from ddpm_jax.evaluation.confidence import Estimate as Estimate
from ddpm_jax.evaluation.confidence import mean_of as mean_of
from ddpm_jax.evaluation.confidence import proportion as proportion
from ddpm_jax.evaluation.dinov2 import dinov2_network as dinov2_network
from ddpm_jax.evaluation.features import EvaluationError as EvaluationError
from ddpm_jax.evaluation.features import FeatureNetwork as FeatureNetwork
from ddpm_jax.evaluation.features import Features as Features
from ddpm_jax.evaluation.foreign_references import REFERENCE_KINDS as REFERENCE_KINDS
from ddpm_jax.evaluation.foreign_references import ReferenceContents as ReferenceContents
from ddpm_jax.evaluation.foreign_references import read_foreign_reference as read_foreign_reference
from ddpm_jax.evaluation.foreign_references import read_reference as read_reference
from ddpm_jax.evaluation.foreign_references import reference_contents as reference_contents
from ddpm_jax.evaluation.frechet import frechet_distance as frechet_distance
from ddpm_jax.evaluation.frechet import (
    frechet_distance_of_gaussians as frechet_distance_of_gaussians,
)
from ddpm_jax.evaluation.frechet_intervals import frechet_at_infinity as frechet_at_infinity
from ddpm_jax.evaluation.frechet_intervals import frechet_interval as frechet_interval
from ddpm_jax.evaluation.inception_score import InceptionScore as InceptionScore
from ddpm_jax.evaluation.inception_score import ScoreSums as ScoreSums
from ddpm_jax.evaluation.inception_score import inception_score as inception_score
from ddpm_jax.evaluation.inception_score import inception_score_of_sums as inception_score_of_sums
from ddpm_jax.evaluation.inception_score import merge_score_sums as merge_score_sums
from ddpm_jax.evaluation.inception_score import score_sums_of as score_sums_of
from ddpm_jax.evaluation.inception_weights import inception_network as inception_network
from ddpm_jax.evaluation.kernels import KernelDistance as KernelDistance
from ddpm_jax.evaluation.kernels import cmmd as cmmd
from ddpm_jax.evaluation.kernels import kernel_distance as kernel_distance
from ddpm_jax.evaluation.kernels import kernel_distance_interval as kernel_distance_interval
from ddpm_jax.evaluation.kernels import kernel_distance_of_subsets as kernel_distance_of_subsets
from ddpm_jax.evaluation.likelihood import histogram_bits_per_dim as histogram_bits_per_dim
from ddpm_jax.evaluation.likelihood import uniform_bits_per_dim as uniform_bits_per_dim
from ddpm_jax.evaluation.manifolds import DensityCoverage as DensityCoverage
from ddpm_jax.evaluation.manifolds import PrecisionRecall as PrecisionRecall
from ddpm_jax.evaluation.manifolds import density_coverage as density_coverage
from ddpm_jax.evaluation.manifolds import precision_recall as precision_recall
from ddpm_jax.evaluation.memorization import near_fraction as near_fraction
from ddpm_jax.evaluation.memorization import near_level as near_level
from ddpm_jax.evaluation.metrics import INCEPTION as INCEPTION
from ddpm_jax.evaluation.metrics import METRICS as METRICS
from ddpm_jax.evaluation.metrics import Comparison as Comparison
from ddpm_jax.evaluation.metrics import Metric as Metric
from ddpm_jax.evaluation.metrics import Name as Name
from ddpm_jax.evaluation.metrics import metric_name as metric_name
from ddpm_jax.evaluation.moments import Gaussian as Gaussian
from ddpm_jax.evaluation.moments import Moments as Moments
from ddpm_jax.evaluation.moments import covariance as covariance
from ddpm_jax.evaluation.moments import gaussian_of as gaussian_of
from ddpm_jax.evaluation.moments import merge as merge
from ddpm_jax.evaluation.moments import moments_of as moments_of
from ddpm_jax.evaluation.neighbours import Nearest as Nearest
from ddpm_jax.evaluation.neighbours import nearest as nearest
from ddpm_jax.evaluation.pictures import image_grid as image_grid
from ddpm_jax.evaluation.pictures import save_png as save_png
from ddpm_jax.evaluation.pictures import strip_times as strip_times
from ddpm_jax.evaluation.reference_images import make_reference as make_reference
from ddpm_jax.evaluation.reference_images import reference_from_images as reference_from_images
from ddpm_jax.evaluation.references import Provenance as Provenance
from ddpm_jax.evaluation.references import Reference as Reference
from ddpm_jax.evaluation.references import check_network as check_network
from ddpm_jax.evaluation.references import check_same as check_same
from ddpm_jax.evaluation.references import load_reference as load_reference
from ddpm_jax.evaluation.references import save_reference as save_reference
from ddpm_jax.evaluation.sample_sets import SampleSet as SampleSet
from ddpm_jax.evaluation.sample_sets import open_samples as open_samples
from ddpm_jax.evaluation.scores import Floors as Floors
from ddpm_jax.evaluation.scores import Score as Score
from ddpm_jax.evaluation.scores import SourceSamples as SourceSamples
from ddpm_jax.evaluation.scores import floors_of as floors_of
from ddpm_jax.evaluation.scores import score_samples as score_samples
from ddpm_jax.evaluation.scores import scores_of as scores_of
from ddpm_jax.evaluation.streaming import features_of as features_of
from ddpm_jax.evaluation.sums import MOST_ROWS as MOST_ROWS
from ddpm_jax.evaluation.sums import Sums as Sums
from ddpm_jax.evaluation.sums import load_sums as load_sums
from ddpm_jax.evaluation.sums import merge_sums as merge_sums
from ddpm_jax.evaluation.sums import save_sums as save_sums
from ddpm_jax.evaluation.sums import sums_of as sums_of
from ddpm_jax.evaluation.sums import sums_of_features as sums_of_features
