"""CIFAR-10 with the hyperparameters of Ho et al. 2020 (https://arxiv.org/abs/2006.11239).

    TFDS_DATA_DIR=/path/to/prepared ddpm-jax train configs/cifar10.py

Section 4 and appendix B: T = 1000, betas linear from 1e-4 to 0.02, the 35.7M-parameter U-Net with
attention at 16x16 and dropout 0.1, Adam at 2e-4 with 5,000 steps of warm-up, batch 128, EMA decay
0.9999, 800k steps, random flips. Published: FID 3.17 (L_simple), at most 3.75 bits/dim.
Measured by this project: not yet.

The dataset is prepared once, on a machine with internet and TensorFlow:
`tfds build cifar10 --file_format=array_record`.
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
    """The paper's unconditional CIFAR-10 run."""
    return Config(
        data=DataConfig(name="cifar10", flip=True),
        schedule=ScheduleConfig(name="linear", num_steps=1000, beta_min=1e-4, beta_max=0.02),
        model=ModelConfig(
            channels=128,
            multipliers=(1, 2, 2, 2),
            num_blocks=2,
            attention_resolutions=(16,),
            dropout=0.1,
            norm_groups=32,
        ),
        optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=5000, decay="constant"),
        train=TrainConfig(
            steps=800_000,
            batch_size=128,
            objective="simple",
            times="uniform",
            ema_decay=(0.9999,),
        ),
        workdir="runs/cifar10",
    )
