"""ImageNet at 64x64 in the manner of Nichol & Dhariwal 2021 (https://arxiv.org/abs/2102.09672).

    TFDS_DATA_DIR=/path/to/prepared ddpm-jax train configs/imagenet64.py

Unconditional, as in their sections 3 and 4 and the flags of their released model: T = 4000, cosine
schedule, learned range of variances, L_hybrid, 128 channels times (1, 2, 3, 4), three residual
blocks a level, attention at 16x16 and 8x8, no dropout, Adam at 1e-4, batch 128, EMA decay 0.9999,
1.5M steps. Published: 3.53 bits/dim, of the same network trained on L_vlb.
Measured by this project: not yet.

The network here has 115,942,150 parameters and is not theirs in every part. Attention has one head
and not four. The time is added between a block's convolutions and does not scale the norm there.
The network is told t itself, 0 to 3999, and not t * 1000 / T. Gradients are clipped to a norm of 1,
theirs are not.

The dataset is prepared once, on a machine with internet and TensorFlow:
`tfds build downsampled_imagenet/64x64 --file_format=array_record`. Its 1,281,149 images to train
on are read into memory, 16 GB in each process.
"""

from ddpm_jax.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)


def get_config() -> Config:
    """The paper's unconditional run on ImageNet."""
    return Config(
        data=DataConfig(name="downsampled_imagenet/64x64"),
        schedule=ScheduleConfig(name="cosine", num_steps=4000),
        model=ModelConfig(
            channels=128,
            multipliers=(1, 2, 3, 4),
            num_blocks=3,
            attention_resolutions=(16, 8),
            dropout=0.0,
            norm_groups=32,
            variance="learned_range",
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=0, decay="constant"),
        train=TrainConfig(
            steps=1_500_000,
            batch_size=128,
            objective="hybrid",
            times="uniform",
            ema_decay=(0.9999,),
        ),
        workdir="runs/imagenet64",
    )
