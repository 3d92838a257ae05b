"""CIFAR-10 in the manner of Nichol & Dhariwal 2021 (https://arxiv.org/abs/2102.09672).

    ddpm-jax data convert cifar10 cifar-10-binary.tar.gz cifar10.npz
    ddpm-jax train cifar10_improved --data archive --data.path cifar10.npz

Their section 3 and the flags of their released model
(https://github.com/openai/improved-diffusion): T = 4000, cosine schedule, learned range of
variances, L_hybrid, 128 channels times (1, 2, 2, 2), three residual blocks a level, attention with
four heads at 16x16 and 8x8, dropout 0.3, Adam at 1e-4 without warm-up, batch 128, EMA decay 0.9999,
500k steps, no flips. Published in table 2: 3.17 bits/dim and FID 3.19. Trained on L_vlb with
importance sampling of t (--objective elbo --times importance): 2.94 and 11.47. Measured
by this project: not yet.

The network has 52,546,438 parameters, like that of their released code, which names its file "50M".
Bits/dim are estimated from 200 terms of each test image, with 476 images or more at each t; theirs
are computed from all terms, with x0_hat clipped to [-1, 1] and a tanh in place of the normal
distribution function.
"""

from ddpm_jax import config


def get_config() -> config.Config:
    """The paper's unconditional run on CIFAR-10."""
    return config.Config(
        data=config.TensorFlowDataset("cifar10"),
        schedule=config.Cosine(num_steps=4000),
        network=config.UNet(
            channels=128,
            multipliers=(1, 2, 2, 2),
            num_blocks=3,
            attention_resolutions=(16, 8),
            heads=4,
            dropout=0.3,
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
        evaluation=config.BitsPerDim(likelihood_times=200),
        train=config.Train(steps=500_000, batch_size=128),
        workdir="runs/cifar10_improved",
    )
