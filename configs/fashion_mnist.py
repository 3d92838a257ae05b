"""Fashion-MNIST (Xiao et al. 2017, https://arxiv.org/abs/1708.07747) at 32x32, on two CPU cores.

    ddpm-jax data convert fashion_mnist DIR fashion_mnist.npz    # DIR has the four IDX files
    ddpm-jax train configs/fashion_mnist.py --data archive --data.path fashion_mnist.npz
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

from ddpm_jax import config


def get_config() -> config.Config:
    """A run of one to two hours."""
    return config.Config(
        data=config.TensorFlowDataset("fashion_mnist"),
        preparation=config.Standard(pad=32),
        schedule=config.LinearLogSNR(num_steps=1000, log_snr_max=12.5, log_snr_min=-8.0),
        network=config.UNet(
            channels=16,
            multipliers=(1, 2, 4),
            num_blocks=1,
            attention_resolutions=(8,),
            dropout=0.0,
            norm_groups=8,
        ),
        objective=config.ELBO(),
        times=config.Stratified(),
        optimizer=config.Adam(
            learning_rate=2e-3, warmup_steps=200, b2=0.99, decay=config.CosineDecay()
        ),
        averages=config.EMA(decays=(0.998,)),
        sampler=config.Ancestral(steps=25),
        evaluation=config.BitsPerDim(batch_size=100, num_samples=64, likelihood_times=16),
        train=config.Train(
            steps=9000, batch_size=64, log_every=50, save_every=500, draw_every=1500
        ),
        workdir="runs/fashion_mnist",
    )
