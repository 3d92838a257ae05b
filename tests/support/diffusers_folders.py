"""diffusers' networks of many options, tiny and of random weights, and the folders that it writes.

Importing it skips the tests where diffusers is missing.
"""

import numpy as np
from peers import diffusers, torch

SMALL = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
}
SIX = ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D")

CONFIGS = {
    # The options of google/ddpm-cifar10-32.
    "cifar10": SMALL
    | {
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    },
    # Those of train_unconditional.py, whose levels are wider.
    "train_unconditional": {
        "sample_size": 32,
        "block_out_channels": (8, 8, 16, 16, 24, 24),
        "layers_per_block": 2,
        "down_block_types": SIX,
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *("UpBlock2D",) * 4),
        "norm_num_groups": 4,
    },
    "residual blocks resample": SMALL
    | {
        "down_block_types": ("ResnetDownsampleBlock2D",) * 2,
        "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
    },
    "each way resamples by itself, beside attention": SMALL
    | {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "downsample_type": "resnet",
        "attention_head_dim": 4,
    },
    "upsample_type": SMALL | {"upsample_type": "resnet", "attention_head_dim": 2},
    "scale_shift": SMALL | {"resnet_time_scale_shift": "scale_shift"},
    "scale_shift, another norm": SMALL
    | {
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 2,
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    },
    "no attention": SMALL
    | {
        "down_block_types": ("DownBlock2D",) * 2,
        "up_block_types": ("UpBlock2D",) * 2,
        "add_attention": False,
    },
    "classes": SMALL | {"num_class_embeds": 5},
    "learned variance": SMALL | {"out_channels": 6},
    "wide grey images": SMALL
    | {"sample_size": (4, 12), "in_channels": 1, "out_channels": 1, "freq_shift": 0.5},
    "one level": SMALL
    | {
        "block_out_channels": (12,),
        "down_block_types": ("AttnDownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "attention_head_dim": 3,
    },
    "odd multiples, old names of blocks": SMALL
    | {
        "block_out_channels": (12, 20, 28),
        "attention_head_dim": 4,
        "down_block_types": ("UNetResAttnDownBlock2D", "UNetResDownBlock2D", "DownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UNetResUpBlock2D"),
        "dropout": 0.3,
    },
}


def randomized(network, seed=0):
    """The network, none of whose weights is 0 or 1, in evaluation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, leaf in network.named_parameters():
            drawn = torch.randn(leaf.shape, generator=generator)
            if leaf.ndim > 1:
                leaf.copy_(drawn * leaf[0].numel() ** -0.5)
            else:
                leaf.copy_(0.3 * drawn + ("norm" in name and name.endswith("weight")))
    return network.eval()


def network_of(config, seed=0):
    return randomized(diffusers.UNet2DModel(**config), seed)


def save(network, folder, scheduler=None, **options):
    """The folder of a pipeline."""
    scheduler = scheduler or diffusers.DDPMScheduler()
    pipeline = {"DDIMScheduler": diffusers.DDIMPipeline}.get(
        type(scheduler).__name__, diffusers.DDPMPipeline
    )
    pipeline(unet=network, scheduler=scheduler).save_pretrained(folder, **options)
    return folder


def inputs(config, *, batch=3, num_steps=1000, seed=0):
    """x_t, t and labels, or None, as arrays of our layout."""
    rng = np.random.default_rng(seed)
    size = config["sample_size"]
    height, width = size if isinstance(size, tuple) else (size, size)
    x_t = rng.normal(size=(batch, height, width, config.get("in_channels", 3)))
    t = np.array([0, num_steps - 1, *rng.integers(0, num_steps, batch - 2)], np.int32)
    classes = config.get("num_class_embeds")
    return x_t, t, None if classes is None else rng.integers(0, classes, batch, np.int32)


def their_output(network, x_t, t, labels=None):
    """In our layout, in the dtype of the network."""
    x_t = torch.from_numpy(np.moveaxis(x_t, -1, 1).copy()).to(network.dtype)
    labels = None if labels is None else torch.from_numpy(labels)
    with torch.inference_mode():
        output = network(x_t, torch.from_numpy(np.asarray(t)), class_labels=labels).sample
    return np.moveaxis(output.numpy(), 1, -1)


class WideTimes(torch.nn.Module):
    """The sinusoids of t in float64, where theirs are float32 in any network."""

    def __init__(self, config):
        super().__init__()
        half = config.block_out_channels[0] // 2
        self.frequencies = 10_000.0 ** (
            -torch.arange(half, dtype=torch.float64) / (half - config.freq_shift)
        )
        self.cosine_first = config.flip_sin_to_cos

    def forward(self, t):
        angles = t[:, None].double() * self.frequencies[None, :]
        waves = [torch.sin(angles), torch.cos(angles)]
        return torch.cat(waves[::-1] if self.cosine_first else waves, dim=-1)


def widened(network):
    """The same network in float64."""
    network = network.double()
    network.time_proj = WideTimes(network.config)
    return network
