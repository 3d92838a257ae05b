"""The copy of a config file in a run of format 1. What is here stays as it is."""

import dataclasses

import flax.linen as nn

from ddpm_jax import config


class Layer(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x_t, t):
        return nn.Dense(x_t.shape[-1])(nn.Dense(self.width)(x_t))


@dataclasses.dataclass(frozen=True)
class TwoLayers(config.Network):
    width: int = 8
    depths: tuple[int, ...] = (1, 2)

    def make(self, images):
        return Layer(self.width)


def get_config():
    return config.Config(
        data=config.Archive("images.npz", memory_gb=0.5),
        preparation=config.Standard(pad=12, flip=True),
        schedule=config.Sigmoid(num_steps=20, tau=0.75),
        process=config.Blurring(max_blur=1.5),
        network=TwoLayers(width=6, depths=(3,), predicts="v"),
        objective=config.P2(k=2.0),
        times=config.Importance(history=4),
        optimizer=config.Lion(learning_rate=3e-4, decay=config.InverseSqrtDecay(timescale=7)),
        averages=config.PostHocEMA(widths=(0.05, 0.2), every=50),
        sampler=config.DPMSolverPP(
            steps=5, order=1, threshold=config.DynamicThreshold(quantile=0.9)
        ),
        evaluation=config.HeldOutLoss(batch_size=16),
        mesh=config.ShardMap(fsdp=2),
        hosts=config.JaxHosts(heartbeat_seconds=20),
        logger=config.NoLogger(),
        train=config.Train(steps=100),
        seed=7,
        workdir="runs/format1",
    )
