"""CIFAR-10 with the settings of Ho et al. 2020 (https://arxiv.org/abs/2006.11239).

    ddpm-jax data convert cifar10 cifar-10-binary.tar.gz cifar10.npz
    ddpm-jax train cifar10 --data archive --data.path cifar10.npz

Section 4, appendix B and their scripts/run_cifar.py (https://github.com/hojonathanho/diffusion):
T = 1000, betas linear from 1e-4 to 0.02, variances of p fixed to the betas, 35,746,307 parameters,
one head of attention at 16x16, dropout 0.1, L_simple, Adam at 2e-4 with 5,000 steps of warm-up,
gradients clipped to a norm of 1, batch 128, EMA decay 0.9999, 800k steps, random flips. Published,
in table 1: FID 3.17 from the training images (5.24 from the test images), Inception score 9.46, at
most 3.75 bits/dim.
Measured by this project: not yet.

Differences from the paper: the norm of the whole batch's gradient is clipped; theirs was the norm
on each of eight cores. Their bits/dim use x0_hat clipped to [-1, 1], a decoder with the posterior's
variance at t = 1 in place of the first beta, and a tanh in place of the normal distribution
function.
"""

from ddpm_jax import config


def get_config() -> config.Config:
    """The paper's unconditional CIFAR-10 run."""
    return config.Config(
        data=config.TensorFlowDataset("cifar10"),
        preparation=config.Standard(flip=True),
        schedule=config.Linear(num_steps=1000, beta_min=1e-4, beta_max=0.02),
        network=config.UNet(
            channels=128,
            multipliers=(1, 2, 2, 2),
            num_blocks=2,
            attention_resolutions=(16,),
            dropout=0.1,
            norm_groups=32,
            variance="large",
        ),
        objective=config.Simple(),
        times=config.Uniform(),
        optimizer=config.Adam(learning_rate=2e-4, warmup_steps=5000),
        averages=config.EMA(decays=(0.9999,), warmup=False),
        train=config.Train(steps=800_000, batch_size=128),
        workdir="runs/cifar10",
    )
