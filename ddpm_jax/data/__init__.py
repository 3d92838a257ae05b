"""Images in and out: data sets as arrays, endless batches that resume, scaling to [-1, 1]."""

from ddpm_jax.data.images import DataError as DataError
from ddpm_jax.data.images import ImageSet as ImageSet
from ddpm_jax.data.images import check_images as check_images
from ddpm_jax.data.images import check_labels as check_labels
from ddpm_jax.data.images import to_levels as to_levels
from ddpm_jax.data.images import to_model_range as to_model_range
from ddpm_jax.data.pipeline import BatchIterator as BatchIterator
from ddpm_jax.data.pipeline import make_iterator as make_iterator
from ddpm_jax.data.sources import image_levels as image_levels
from ddpm_jax.data.sources import image_shape as image_shape
from ddpm_jax.data.sources import load as load
