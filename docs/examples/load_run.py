"""A trained run in two lines: its samples, its network at any t, its process.

ddpm-jax train configs/digits.py
python docs/examples/load_run.py runs/digits
"""

import sys

import jax
import jax.numpy as jnp

import ddpm_jax
from ddpm_jax import config


def main(path: str = "runs/digits") -> None:
    run = ddpm_jax.load_run(path, report=print)
    images = run.sample(
        jax.random.key(0), 16, sampler=config.DDIM(steps=min(20, run.process.num_steps))
    )
    print(f"{run.path} at step {run.step}: 16 images, {images.shape[1:]}, mean {images.mean():.3f}")

    # How much of an image is left in x_t for the network: x0_hat at half of the chain.
    process, t = run.process, jnp.full(16, run.process.num_steps // 2, jnp.int32)
    x_t = ddpm_jax.q_sample(process, images, t, jax.random.normal(jax.random.key(1), images.shape))
    labels = jnp.arange(16) % run.images.num_classes if run.config.network.classes else None
    prediction = run.predict(x_t, process.network_time(t), labels)
    source = run.config.network.predicts
    x0_hat = ddpm_jax.convert(process, prediction, x_t, t, source=source, target="x0")
    print(f"root mean square error of x0_hat at t = {t[0]}: {jnp.std(x0_hat - images):.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
