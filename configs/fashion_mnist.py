"""Fashion-MNIST (Xiao et al. 2017, https://arxiv.org/abs/1708.07747) at 32x32, on two CPU cores.

    ddpm-jax data convert fashion_mnist DIR fashion_mnist.npz    # DIR has the four IDX files
    ddpm-jax train fashion_mnist --data archive --data.path fashion_mnist.npz
    ddpm-jax evaluate runs/fashion_mnist

The images have 28x28 pixels with 256 grey levels, and get a black border of two pixels; 60,000 are
for training and 10,000 held out. The network has 686,769 parameters. Measured by this project:
2.350 +- 0.007 bits/dim of 32x32 pixels (KL 2.245, decoder 0.105; a histogram of each pixel: 3.514),
after 75 to 100 minutes on two CPU cores; docs/fashion_mnist/ has the run's record.

Why these numbers: as in configs/digits.py, noise begins at a quarter of the spacing of the grey
levels, which is 2/255 here: log SNR 12.5. Its fall to -8 is divided into T = 1000 steps, because
long steps cost bits, and training costs the same at any T. The evaluation of 10,000 images at 1,000
times would take long; therefore 16 terms of each image are computed, spread so that each t has 149
or more images.

Samples come from 25 ancestral steps. They look better and have higher precision than those of
DPM-Solver++ and DDIM, many of which are speckled, but lower recall; the run's record has both.
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
