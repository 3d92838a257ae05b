"""Data sets of images, endless batches that resume exactly, and scaling to [-1, 1]."""

from ddpm_jax.errors import require

require("ddpm_jax.data", "train", "PIL")

from ddpm_jax.data.archive import archive_levels as archive_levels
from ddpm_jax.data.archive import archive_shape as archive_shape
from ddpm_jax.data.archive import read_archive as read_archive
from ddpm_jax.data.digits import DIGITS_LEVELS as DIGITS_LEVELS
from ddpm_jax.data.digits import digits_shape as digits_shape
from ddpm_jax.data.digits import read_digits as read_digits
from ddpm_jax.data.encoded import OnBadImage as OnBadImage
from ddpm_jax.data.encoded import with_crop_and_memory as with_crop_and_memory
from ddpm_jax.data.folder import read_folder as read_folder
from ddpm_jax.data.images import DataError as DataError
from ddpm_jax.data.images import check_images as check_images
from ddpm_jax.data.images import check_labels as check_labels
from ddpm_jax.data.images import to_bytes as to_bytes
from ddpm_jax.data.images import to_levels as to_levels
from ddpm_jax.data.images import to_model_range as to_model_range
from ddpm_jax.data.pipeline import BatchIterator as BatchIterator
from ddpm_jax.data.pipeline import make_iterator as make_iterator
from ddpm_jax.data.preparation import BadImageError as BadImageError
from ddpm_jax.data.preparation import Preparation as Preparation
from ddpm_jax.data.prepared import declared_shape as declared_shape
from ddpm_jax.data.prepared import prepared_directory as prepared_directory
from ddpm_jax.data.prepared import read_prepared as read_prepared
from ddpm_jax.data.source import Arrays as Arrays
from ddpm_jax.data.source import CentreCropped as CentreCropped
from ddpm_jax.data.source import Examples as Examples
from ddpm_jax.data.source import ImageSet as ImageSet
from ddpm_jax.data.source import ImageSpec as ImageSpec
from ddpm_jax.data.source import Source as Source
from ddpm_jax.data.source import Subset as Subset
from ddpm_jax.data.source import check_crop as check_crop
from ddpm_jax.data.source import in_batches as in_batches
