"""A run that goes from mesh to mesh, in this process or in several.

Its network is `small`, its images come from the pipeline that shares batches out, and its
checkpoints are in one folder. It prints a line of JSON for each leg.
"""

import functools
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import small
from flax.core import meta

from ddpm_jax import config, parallel, training
from ddpm_jax.data import Arrays, Examples, make_iterator
from ddpm_jax.parallel import hosts, watchdog
from ddpm_jax.training import ema

MEMBERS = {"jit": config.Jit, "shard_map": config.ShardMap, "pmap": config.Pmap}
IMAGES = np.random.default_rng(3).integers(0, 17, (80, small.SIDE, small.SIDE, 1), np.uint8)


class Leg(NamedTuple):
    """Steps on one mesh, from the checkpoint in one folder to that in another."""

    name: str
    """Also of the folder that the last step is saved in."""
    origin: str | None
    form: str
    data: int
    fsdp: int
    start: int
    stop: int


class Told(NamedTuple):
    """What the first process prints of a leg."""

    name: str
    losses: list[float]
    digest: str
    """Of the bytes of the state, put together again."""
    state: list[np.ndarray]


def go(leg, folder):
    """Runs one leg with all devices that there are, or the first of them."""
    objective = small.make_objective()
    mesh = parallel.make_mesh(leg.data, leg.fsdp)
    boxed = functools.partial(small.born, objective, jnp.float32)
    like = parallel.abstract(jax.eval_shape(boxed), mesh)
    shardings = parallel.shardings(like)
    member = MEMBERS[leg.form](data=leg.data, fsdp=leg.fsdp)
    form = member.make(mesh, shardings, "float32")

    def losses(params, batch, drawn):
        return objective.losses(params, batch.images.astype(np.float32) / 8.0 - 1.0, drawn)

    step = training.make_train_step(
        objective._replace(losses=losses),
        small.OPTIMIZER,
        averages=[functools.partial(ema.decay_at, decay=0.9)],
        window_steps=1,
        form=form,
    )
    data = make_iterator(
        Arrays(IMAGES),
        batch_size=small.BATCH,
        seed=0,
        flip=True,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    birth = jax.jit(lambda: meta.unbox(boxed()), out_shardings=shardings)
    if leg.origin is None:
        state = birth()
    else:
        with training.Checkpoints(folder / leg.origin, read_only=True) as checkpoints:
            restored = checkpoints.restore(like, leg.start, verify=False)
        state = restored.state
        data.set_state(restored.data_state)
    images = jax.ShapeDtypeStruct((small.BATCH, *IMAGES.shape[1:]), np.uint8)
    batch = form.abstract_batch(Examples(images, None))
    compiled = form.lower(step, state, batch).compile()
    hosts.barrier(f"{leg.name} is compiled")
    told = []
    for _ in range(leg.start, leg.stop):
        state, metrics = compiled(state, form.place(next(data)))
        told.append(float(metrics.loss))
    with training.Checkpoints(folder / leg.name) as checkpoints:
        checkpoints.save(leg.stop, state, data.get_state(), held_out_loss=0.0)
        checkpoints.wait()
    numbers = state._replace(key=jax.random.key_data(state.key))
    whole = jax.jit(lambda tree: tree, out_shardings=parallel.replicated(mesh))(numbers)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(whole)]
    digest = hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()
    return Told(leg.name, told, digest, leaves)


def main(index, count, port, folder, legs):
    watchdog.install()  # standard output is for the results alone
    hosts.join(coordinator=f"localhost:{port}", count=int(count), index=int(index))
    for leg in json.loads(legs):
        told = go(Leg(*leg), Path(folder))
        if hosts.is_first():
            print(json.dumps(told[:3]), flush=True)
