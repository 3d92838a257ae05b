"""Fashion-MNIST at 32x32 by a diffusion transformer, on two CPU cores.

    ddpm-jax data convert fashion_mnist DIR fashion_mnist.npz    # DIR has the four IDX files
    ddpm-jax train fashion_mnist_dit --data archive --data.path fashion_mnist.npz
    ddpm-jax evaluate runs/fashion_mnist_dit

Images, noise, objective and evaluation are those of configs/fashion_mnist.py, which explains them.
The network is the transformer of Peebles & Xie 2023 (https://arxiv.org/abs/2212.09748), applied to
pixels: 64 patches of 4x4 and four blocks of width 128. It has 1,274,000 parameters.
"""

from ddpm_jax import config


def get_config() -> config.Config:
    """A run of about an hour."""
    return config.Config(
        data=config.TensorFlowDataset("fashion_mnist"),
        preparation=config.Standard(pad=32),
        schedule=config.LinearLogSNR(num_steps=1000, log_snr_max=12.5, log_snr_min=-8.0),
        network=config.DiT(width=128, depth=4, heads=4, patch=4),
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
        workdir="runs/fashion_mnist_dit",
    )
