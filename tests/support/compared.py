"""Run directories without training: a config, metrics and results, to be compared."""

import dataclasses
import json

import numpy as np
import tiny

from ddpm_jax.experiment import RunDirectory
from ddpm_jax.npz import save_npz

ABOUT = {"dataset": "digits", "fingerprint": "ab", "preparation": "none", "held_out_images": 50}


def metric(name, value, **more):
    return {"name": name, "value": value, "held_out": 1.0, "halves": 0.5, **more}


def make_run(path, *, steps=24, metrics=(), bits=None, step=24, about=None, network="ab", **config):
    """A run as far as `compare` reads it; `bits` are those of single images."""
    run = RunDirectory(path)
    run.make(dataclasses.replace(tiny.get_config(), workdir=str(path), **config))
    lines = [{"step": s, "loss": 1.0 + 1 / s, "gradient_norm": 2.0} for s in range(1, steps + 1)]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = run.evaluation / f"step_{step:07d}"
    folder.mkdir(parents=True)
    results = {
        "dataset": "digits",
        "networks": [{"network": "digits classifier", "network_sha256": network}],
        "sampling": {"images": 40, "class": "a:Ancestral", "steps": None, "seed": 3},
        "params": {
            "ema": {
                "results": {"bits_per_dim": 2.5, "standard_error": 0.25, "images": 50},
                "per_time": {"mean": [3.0, 1.0, None, 0.5]},
                "metrics": list(metrics),
            }
        },
    }
    (folder / "results.json").write_text(json.dumps(results))
    if bits is not None:
        values = {"bits_per_dim": np.array(bits, np.float64), "numbers": np.arange(len(bits))}
        facts = json.dumps({**ABOUT, "step": step, **(about or {})})
        save_npz(folder / "bits_per_image_ema.npz", values | {"about": np.array(facts)})
    return path
