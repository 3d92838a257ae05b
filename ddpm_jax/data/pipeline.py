"""Endless batches of uint8 images, the same ones after a resume and on any number of processes.

The data are one stream without end: epoch after epoch, each a fresh permutation of all images.
Place i of the stream is image `order[i mod n]` of epoch `i // n`, flipped or not as a bit of its
own says, and batch k of a run is places k * batch_size to (k + 1) * batch_size. So

- an epoch holds every image exactly once; batches run on across its end and none is dropped, also
  where `batch_size` or the number of processes does not divide n;
- process p of P takes the p-th of P equal blocks of each batch: together they hold the batch, and
  joined in the order of their index they are the batch that one process would have made. The state
  is the number of batches handed out, which every process shares, so a run may resume on another
  number of processes;
- order and flips depend on `seed` and the place alone. Their random words come straight from
  Philox (Salmon et al. 2011), a bit generator whose stream NumPy keeps from release to release,
  which it does not promise for `Generator.permutation`.

The images are in memory and one index array gathers a whole batch: 0.1 ms for 128 digits, where a
grain pipeline of one item per image (shuffle, slice, repeat, batch) takes 3.7 ms, 29 microseconds
of Python an image. grain therefore reads batches here, and gives the read-ahead thread and the
state that counts what was handed out, not what was read ahead.
"""

import functools
import sys
from typing import Any

import grain
import numpy as np
from jaxtyping import Bool, Int, UInt8

from ddpm_jax.data.images import DataError, check_images

__all__ = ["BatchIterator", "make_iterator"]

State = dict[str, int | bool]

# Two batches ahead, by one thread: the gather then costs the training loop nothing.
_READ_AHEAD = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)


class BatchIterator:
    """Hands out uint8 batches `[batch_size / process_count, height, width, channel]`, for ever.

    Made by `make_iterator`. `get_state` is a small dict of JSON values that stands for exactly the
    batches handed out so far; `set_state` goes to that place, forward or back.
    """

    def __init__(self, batches: "_Batches"):
        self._run = batches.run
        self._iterator: Any = iter(grain.MapDataset.source(batches).to_iter_dataset(_READ_AHEAD))

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> UInt8[np.ndarray, "batch height width channel"]:
        return next(self._iterator)

    def get_state(self) -> State:
        """Batches handed out, and what the stream was made of."""
        return {"batches": self._iterator.get_state()["next_index"], **self._run}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues after `state["batches"]` batches.

        Raises:
            DataError: the state is of another stream (its seed, batch size, number of images or
                flips differ), which would repeat or skip images unseen; or of none.
        """
        for name, here in self._run.items():
            if name not in state:
                raise DataError(
                    f"state has no {name!r}, only {sorted(state)}; it has to come from get_state"
                )
            if state[name] != here:
                raise DataError(
                    f"state was saved with {name} = {state[name]} and this iterator has {here};"
                    " images would be repeated or skipped, so make it with the saved value"
                )
        batches = state.get("batches")
        if not isinstance(batches, int) or batches < 0:
            raise DataError(f"state['batches'] is {batches!r}; it has to be an integer, 0 or more")
        self._iterator.set_state({"next_index": batches})


def make_iterator(
    images: UInt8[np.ndarray, "n height width channel"],
    *,
    batch_size: int,
    seed: int,
    flip: bool,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchIterator:
    """This process's part of an endless, shuffled, resumable stream of batches.

    Args:
        images: the whole training set, the same array on every process.
        batch_size: of the global batch, all processes together. It may exceed the number of
            images: such a batch holds some of them more than once.
        seed: of the order and the flips, 0 to 2**32 - 1; the same on every process.
        flip: whether to mirror each image left to right with probability 1/2, anew in each epoch.
        process_index: which process this is, `jax.process_index()`.
        process_count: how many there are, `jax.process_count()`; divides `batch_size`.

    Raises:
        DataError: an argument outside its range, by name, or `images` as `check_images` says.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.data import make_iterator
        >>> images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
        >>> batches = make_iterator(images, batch_size=5, seed=0, flip=False)
        >>> sorted(next(batches).ravel().tolist())
        [0, 1, 2, 3, 4]
        >>> batches.get_state()["batches"]
        1
    """
    check_images("images", images)
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; it has to be 1 or more")
    if process_count < 1:
        raise DataError(f"process_count is {process_count}; it has to be 1 or more")
    if not 0 <= process_index < process_count:
        raise DataError(
            f"process_index is {process_index}; with process_count = {process_count} it is 0 to"
            f" {process_count - 1}"
        )
    if batch_size % process_count:
        nearest = -(-batch_size // process_count) * process_count
        raise DataError(
            f"batch_size is {batch_size}; it is shared evenly by process_count = {process_count}"
            f" processes, so take a multiple, such as {nearest}"
        )
    if not 0 <= seed < 2**32:
        raise DataError(f"seed is {seed}; it has to be 0 to {2**32 - 1}")
    return BatchIterator(_Batches(images, batch_size, seed, flip, process_index, process_count))


class _Batches:
    """One process's batches of one stream, by their number: a grain source."""

    def __init__(
        self,
        images: np.ndarray,
        batch_size: int,
        seed: int,
        flip: bool,
        process_index: int,
        process_count: int,
    ):
        self.run: State = {
            "batch_size": batch_size,
            "num_images": len(images),
            "seed": seed,
            "flip": flip,
        }
        self._images, self._flip = images, flip
        self._batch_size, self._share = batch_size, batch_size // process_count
        self._offset = process_index * self._share
        # Read in order, a batch needs the epoch it is in and perhaps the next.
        self._epoch = functools.lru_cache(maxsize=2)(
            functools.partial(_epoch, seed, num_images=len(images))
        )

    def __len__(self) -> int:
        return sys.maxsize // self._batch_size

    def __getitem__(self, batch: int) -> UInt8[np.ndarray, "batch height width channel"]:
        first = batch * self._batch_size + self._offset
        epochs, places = np.divmod(np.arange(first, first + self._share), len(self._images))
        order = np.empty(self._share, np.int64)
        flipped = np.empty(self._share, np.bool_)
        for epoch in range(epochs[0], epochs[-1] + 1):
            inside = epochs == epoch
            epoch_order, epoch_flipped = self._epoch(epoch)
            order[inside] = epoch_order[places[inside]]
            flipped[inside] = epoch_flipped[places[inside]]
        images = self._images[order]  # a copy: whoever gets it may keep it
        if self._flip:
            images[flipped] = images[flipped, :, ::-1]
        return images


def _epoch(
    seed: int, epoch: int, *, num_images: int
) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """The order of one epoch, a permutation, and which of its places are flipped."""
    # Seeded by the pair: with seed + epoch, one run's epochs would be another's, shifted.
    words = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    order = np.argsort(words.random_raw(num_images), kind="stable")
    return order, words.random_raw(num_images) >= 2**63
