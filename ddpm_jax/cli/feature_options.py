"""Options of the commands that compare samples: feature networks and references."""

import dataclasses
from pathlib import Path

import jax

from ddpm_jax.evaluation import FeatureNetwork, clip_network, dinov2_network, inception_network
from ddpm_jax.evaluation.dinov2 import DINOv2Resize
from ddpm_jax.evaluation.inception_weights import Resize

__all__ = ["FeatureOptions", "feature_networks"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """Which features samples are compared by, and with what."""

    reference: tuple[Path, ...] = ()
    """What samples are compared with: a file of statistics (of `ddpm-jax evaluate`,
    guided-diffusion, EDM, clean-fid, torch-fidelity, pytorch-fid), or a folder or .npz of images.
    Several files are for several networks."""
    reference_kind: str | None = None
    """The program that wrote the statistics, if it is not recognized: guided-diffusion, edm, edm2,
    clean-fid, torch-fidelity, pytorch-fid."""
    inception: Path | None = None
    """Weights of Inception-v3, for FID and its relatives: the public
    pt_inception-2015-12-05-6726825d.pth, or the .npz that `ddpm-jax data inception` made of it."""
    inception_resize: Resize = "tensorflow"
    """How images are resized for it. Take the one of the program that made the reference."""
    other_weights: bool = False
    """Accept another file of Inception-v3 weights. The results are then named after it."""
    dinov2: Path | None = None
    """Weights of DINOv2: a folder or .safetensors of transformers, or the .pth of its authors."""
    dinov2_resize: DINOv2Resize = "dgm-eval"
    """The same for DINOv2."""
    clip: Path | None = None
    """Weights of CLIP's image encoder, for CMMD: a folder or .safetensors of transformers."""
    classifier: Path | None = None
    """The classifier.npz of another evaluation on the same images."""


def feature_networks(
    options: FeatureOptions, sharding: jax.sharding.Sharding
) -> list[FeatureNetwork]:
    """The networks that the options name, except for the classifier.

    Args:
        options: of the command line.
        sharding: placement of their weights.
    """
    networks = []
    if options.inception is not None:
        networks.append(
            inception_network(
                options.inception,
                resize=options.inception_resize,
                other_weights=options.other_weights,
                sharding=sharding,
            )
        )
    if options.dinov2 is not None:
        networks.append(
            dinov2_network(options.dinov2, resize=options.dinov2_resize, sharding=sharding)
        )
    if options.clip is not None:
        networks.append(clip_network(options.clip, sharding=sharding))
    return networks
