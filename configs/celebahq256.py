"""CelebA-HQ at 256x256 with the settings of Ho et al. 2020 (https://arxiv.org/abs/2006.11239).

    ddpm-jax data prepare celeb_a_hq/256 --from DIR    # with data256x256.tar in it
    ddpm-jax train celebahq256

Appendix B and their scripts/run_celebahq.py (https://github.com/hojonathanho/diffusion): T = 1000,
betas linear from 1e-4 to 0.02, variances of p fixed to the posterior's, 113,673,219 parameters in
six levels (the paper says 114 million), one head of attention at 16x16, no dropout, L_simple, Adam
at 2e-5 with 5,000 steps of warm-up, gradients clipped to a norm of 1, batch 64, EMA decay 0.9999,
500k steps, random flips. Published: samples in figures 1 and 11, and no number.
Measured by this project: not yet.

You have to make the archive yourself: 30,000 PNG files, as explained in
https://github.com/tkarras/progressive_growing_of_gans. It has one split, whose first tenth is held
out: 27,000 images are for training, while the paper used all 30,000. They are 5.3 GB of pixels,
more than data.memory_gb, and are therefore decoded while they are read; with --data.memory-gb 6
they are decoded once.

Differences from the paper, beside that tenth: the norm of the whole batch's gradient is clipped;
theirs was the norm on each of eight cores.
"""

from ddpm_jax import config


def get_config() -> config.Config:
    """The paper's run on faces."""
    return config.Config(
        data=config.TensorFlowDataset("celeb_a_hq/256"),
        preparation=config.Standard(flip=True),
        schedule=config.Linear(num_steps=1000, beta_min=1e-4, beta_max=0.02),
        network=config.UNet(
            channels=128,
            multipliers=(1, 1, 2, 2, 4, 4),
            num_blocks=2,
            attention_resolutions=(16,),
            dropout=0.0,
            norm_groups=32,
            variance="small",
        ),
        objective=config.Simple(),
        times=config.Uniform(),
        optimizer=config.Adam(learning_rate=2e-5, warmup_steps=5000),
        averages=config.EMA(decays=(0.9999,), warmup=False),
        evaluation=config.BitsPerDim(batch_size=64, num_samples=64, likelihood_times=16),
        train=config.Train(steps=500_000, batch_size=64),
        workdir="runs/celebahq256",
    )
