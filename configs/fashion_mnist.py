"""Fashion-MNIST (Xiao et al. 2017, https://arxiv.org/abs/1708.07747) at 32x32, on two CPU cores.

    ddpm-jax data prepare fashion_mnist
    ddpm-jax train configs/fashion_mnist.py
    ddpm-jax evaluate runs/fashion_mnist

Images of 28x28 with 256 grey levels, a black border of two pixels around them; 60,000 to train on
and 10,000 held out. The network has 686,769 parameters. Measured by this project: 2.349 +- 0.007
bits/dim of 32x32 pixels (KL 2.243, decoder 0.106; a histogram of each pixel: 3.514), after 75
minutes on two cores of a CPU; docs/fashion_mnist/ has the run's record.

Why these numbers. As for configs/digits.py, noise begins at a quarter of the spacing of the grey
levels, which is 2/255 here: log SNR 12.5. Its fall to -8 is divided into T = 1000 steps, because a
step's length is paid for in bits; training costs the same at any T. What would cost is to evaluate
10,000 images at 1,000 times, so 16 of the terms of each image stand for all, spread such that every
t has 149 or more images.

Samples come from 25 ancestral steps: they look better and have more precision than those of
DPM-Solver++ and DDIM, which are speckled in every third image, but less recall and a larger Frechet
distance; the run's record has both.
"""

from ddpm_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)


def get_config() -> Config:
    """A run of one to two hours."""
    return Config(
        data=DataConfig(name="fashion_mnist", pad=32),
        schedule=ScheduleConfig(
            name="linear_log_snr", num_steps=1000, log_snr_max=12.5, log_snr_min=-8.0
        ),
        model=ModelConfig(
            channels=16,
            multipliers=(1, 2, 4),
            num_blocks=1,
            attention_resolutions=(8,),
            dropout=0.0,
            norm_groups=8,
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=200, decay="cosine", b2=0.99),
        train=TrainConfig(
            steps=9000,
            batch_size=64,
            objective="elbo",
            times="stratified",
            ema_decay=(0.998,),
            log_every=50,
            save_every=500,
            draw_every=1500,
        ),
        evaluation=EvaluationConfig(
            batch_size=100,
            num_samples=64,
            sampler="ancestral",
            sampler_steps=25,
            likelihood_times=16,
        ),
        workdir="runs/fashion_mnist",
    )
