"""LSUN churches at 256x256 with the settings of Ho et al. 2020 (https://arxiv.org/abs/2006.11239).

    ddpm-jax data prepare lsun/church_outdoor    # TensorFlow and tensorflow-io read its database
    ddpm-jax train lsun256

For bedrooms, which are not flipped:

    ddpm-jax train lsun256 --data.name lsun/bedroom --preparation.no-flip
        --train.steps 2400000 --workdir runs/lsun256_bedroom

Appendix B and their scripts/run_lsun.py (https://github.com/hojonathanho/diffusion): the network
and all settings of configs/celebahq256.py, 113,673,219 parameters; 1.2M steps for churches, 2.4M
for bedrooms. Published, in table 3: FID 7.89 of churches, 6.36 of bedrooms.
Measured by this project: not yet.

The photographs have many sizes (Yu et al. 2015, https://arxiv.org/abs/1506.03365): the split
`train` (126,227 churches or 3,033,042 bedrooms) is for training, and `validation` (300) held out.
They are decoded, resized and cut to squares while they are read, by threads beside the training.

Differences from the paper: images are resized by Pillow's bicubic filter and then cut; theirs were
cut first and then resized by Pillow's Lanczos filter, with StyleGAN's tool. The gradient is clipped
as configs/celebahq256.py explains. Their script flips bedrooms by default; the paper says that they
were not flipped.
"""

from ddpm_jax import config


def get_config() -> config.Config:
    """The paper's run on churches."""
    return config.Config(
        data=config.TensorFlowDataset("lsun/church_outdoor"),
        preparation=config.Standard(size=256, flip=True),
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
        evaluation=config.BitsPerDim(batch_size=64, num_samples=64, likelihood_times=100),
        train=config.Train(steps=1_200_000, batch_size=64),
        workdir="runs/lsun256",
    )
