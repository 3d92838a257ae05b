"""The relatives of DDPM as configs: what differs from a base config, and nothing else."""

import dataclasses
import math
from typing import Any

from benchmarks.settings import unet_of
from ddpm_jax import config as configs
from ddpm_jax.config import Config
from ddpm_jax.errors import UserError

__all__ = ["cases_of"]


def cases_of(base: Config) -> dict[str, Config]:
    """Configs by the names of the relatives.

    The endpoints of log SNR are those of the base config, but where a relative has its own: DDPM's
    betas, the cosine, and rectified flow. The first relative is the base config, with a network
    that predicts v.

    Args:
        base: a config with a U-Net and a schedule that is linear in log SNR.

    Raises:
        UserError: the schedule is another one.
    """
    schedule = base.schedule
    if not isinstance(schedule, configs.LinearLogSNR):
        raise UserError(
            f"schedule is {type(schedule).__name__}; the suite compares with LinearLogSNR, which"
            " the config has to have"
        )
    num_steps = schedule.num_steps
    plain = dataclasses.replace(unet_of(base), predicts="v")
    # sigma_data = 1: the input is x_t / r, the output v / r up to its sign.
    scaled = configs.EDM(network=unet_of(base), predicts="v", sigma_data=1.0, noise_input="time")
    exploding = configs.VarianceExploding(
        num_steps=num_steps,
        sigma_min=math.exp(-0.5 * schedule.log_snr_max),
        sigma_max=math.exp(-0.5 * schedule.log_snr_min),
    )
    learned = configs.LearnedLogSNR(
        num_steps=num_steps, log_snr_max=schedule.log_snr_max, log_snr_min=schedule.log_snr_min
    )

    def replaced(network: configs.Network = plain, **members: Any) -> Config:
        return dataclasses.replace(base, network=network, **members)

    return {
        "linear in log SNR": replaced(),
        "DDPM linear": replaced(schedule=configs.Linear(num_steps=1000)),
        "cosine": replaced(schedule=configs.Cosine(num_steps=1000)),
        "variance exploding": replaced(scaled, schedule=exploding),
        "rectified flow": replaced(scaled, schedule=configs.RectifiedFlow(num_steps=num_steps)),
        "learned": replaced(schedule=learned),
        "learned, ends too": replaced(schedule=dataclasses.replace(learned, endpoints="learned")),
        "blurring": replaced(process=configs.Blurring()),
        "correlated": replaced(process=configs.Correlated()),
        "variance exploding, EDM's loss": replaced(
            dataclasses.replace(scaled, predicts="edm", sigma_data=0.5),
            schedule=exploding,
            objective=configs.Simple(),
            times=configs.LogNormal(),
        ),
        "rectified flow, SD3's loss": replaced(
            dataclasses.replace(scaled, predicts="flow"),
            schedule=configs.RectifiedFlow(num_steps=num_steps),
            objective=configs.Simple(),
            times=configs.LogNormal(mean=0.0, std=1.0),
        ),
    }
