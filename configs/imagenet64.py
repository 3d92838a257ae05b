"""ImageNet at 64x64 in the manner of Nichol & Dhariwal 2021 (https://arxiv.org/abs/2102.09672).

    ddpm-jax data prepare downsampled_imagenet/64x64
    ddpm-jax train imagenet64

Unconditional, as in their section 3 and the flags of their released model
(https://github.com/openai/improved-diffusion): T = 4000, cosine schedule, learned range of
variances, L_hybrid, 128 channels times (1, 2, 3, 4), three residual blocks a level, attention with
four heads at 16x16 and 8x8, no dropout, Adam at 1e-4 without warm-up, batch 128, EMA decay 0.9999,
1.5M steps, no flips. Published: FID 19.2. Trained on L_vlb with importance sampling of t
(--objective elbo --times importance): 3.53 bits/dim. Measured by this project: not yet.

The images are those of van den Oord et al. 2016 (https://arxiv.org/abs/1601.06759): the split
`train` (1,281,149 images) for training, `validation` (49,999) held out. The training images are
16 GB of pixels, more than data.memory_gb, and are therefore decoded while they are read, by threads
beside the training; with --data.memory-gb 20 they are decoded once.

The network has 121,063,942 parameters, like that of their released code; the paper's section 6
says 120M. Bits/dim are estimated from 40 terms of each held-out image, with 485 images or more at
each t; theirs use x0_hat clipped to [-1, 1] and a tanh in place of the normal distribution
function.
"""

from ddpm_jax import config


def get_config() -> config.Config:
    """The paper's unconditional run on ImageNet."""
    return config.Config(
        data=config.TensorFlowDataset("downsampled_imagenet/64x64"),
        schedule=config.Cosine(num_steps=4000),
        network=config.UNet(
            channels=128,
            multipliers=(1, 2, 3, 4),
            num_blocks=3,
            attention_resolutions=(16, 8),
            heads=4,
            dropout=0.0,
            norm_groups=32,
            norm_epsilon=1e-5,
            scale_shift=True,
            symmetric_padding=True,
            cosine_first=True,
            frequency_shift=0.0,
            time_scale=1000 / 4000,
            variance="learned_range",
            interpolation_range="symmetric",
        ),
        objective=config.Hybrid(),
        times=config.Uniform(),
        optimizer=config.Adam(learning_rate=1e-4, warmup_steps=0, clip_norm=None),
        averages=config.EMA(decays=(0.9999,), warmup=False),
        evaluation=config.BitsPerDim(likelihood_times=40),
        train=config.Train(steps=1_500_000, batch_size=128),
        workdir="runs/imagenet64",
    )
