"""Endless batches of uint8 images, the same after a resume and on any number of processes.

The data are an endless stream of epochs, each a new permutation of all images. Place i of the
stream is image `order[i mod n]` of epoch `i // n`, flipped and cropped by its own random words.
Batch k of a run is the places k * batch_size to (k + 1) * batch_size. Therefore

- an epoch contains each image exactly once. Batches continue across its end, and no image is
  dropped, even if `batch_size` or the number of processes does not divide n;
- process p of P takes the p-th of P equal blocks of each batch. Joined in the order of the
  processes, the blocks are the batch that one process would have made. The state is the number of
  batches returned, the same on all processes, so that a run may resume on another number of
  processes;
- order, flips and crops depend only on `seed` and the place. Their random words come directly from
  Philox (Salmon et al. 2011), a bit generator whose stream NumPy keeps from release to release; it
  does not promise that for `Generator.permutation`.

Images in memory are gathered by one index array for a whole batch. That takes 0.1 ms for 128
digits; a grain pipeline with one item per image (shuffle, slice, repeat, batch) takes 3.7 ms, 29
microseconds of Python an image. Therefore grain reads whole batches here. It provides the threads
that read ahead, several if images are decoded, and a state that counts the batches returned, not
those read ahead. Its threads share memory; worker processes would tie the state to their number.
"""

import functools
import os
import sys
import threading
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int, UInt64

from ddpm_jax.data.images import DataError
from ddpm_jax.data.source import Examples, Source, check_crop
from ddpm_jax.errors import require

__all__ = ["BatchIterator", "make_iterator"]

State = dict[str, int | bool | None]

_MOST_THREADS = 16


class BatchIterator:
    """An endless iterator over `Examples` of `batch_size / process_count` images, uint8.

    `make_iterator` makes it.

    Args:
        batches: the stream; an implementation detail.
    """

    def __init__(self, batches: "_Batches"):
        require("ddpm_jax.data.pipeline", "train", "grain")
        import grain  # takes a fifth of a second, and only training needs it

        self._run = batches.run
        self._iterator: Any = iter(
            grain.MapDataset.source(batches).to_iter_dataset(
                grain.ReadOptions(**_read_options(batches.source))
            )
        )

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Examples:
        return next(self._iterator)

    def get_state(self) -> State:
        """The place in the stream.

        Returns:
            The number of batches returned so far and the arguments of the stream, as values that
            JSON can hold.
        """
        return {"batches": self._iterator.get_state()["next_index"], **self._run}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a place in the stream, forward or back.

        Args:
            state: the result of `get_state`.

        Raises:
            DataError: the state is of another stream: its seed, batch size, number of images, flips
                or crops differ, so that images would be repeated or skipped.
        """
        for name, here in self._run.items():
            if name not in state:
                raise DataError(
                    f"state has no {name!r}, only {sorted(state)}; it has to come from get_state"
                )
            if state[name] != here and name == "num_images":
                raise DataError(
                    f"the data set had {state[name]} images when the state was saved"
                    f" (num_images = {state[name]}) and has {here} now; images would be repeated or"
                    " skipped, so restore the former images, or begin a new run"
                )
            if state[name] != here:
                raise DataError(
                    f"state was saved with {name} = {state[name]} and this iterator has {here};"
                    " images would be repeated or skipped, so make it with the saved value"
                )
        batches = state.get("batches")
        if not isinstance(batches, int) or isinstance(batches, bool) or batches < 0:
            raise DataError(f"state['batches'] is {batches!r}; it has to be an integer, 0 or more")
        self._iterator.set_state({"next_index": batches})


def make_iterator(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    flip: bool,
    crop: int | None = None,
    with_labels: bool = False,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchIterator:
    """An endless, shuffled, resumable stream of batches: the part of this process.

    Args:
        source: all training images, the same on all processes.
        batch_size: number of images of the global batch, over all processes. It may exceed the
            number of images: a batch then contains some of them more than once.
        seed: of order, flips and crops, 0 to 2**32 - 1; the same on all processes.
        flip: whether to mirror images left to right with probability 1/2, newly drawn each epoch.
        crop: side of a square that is cut from each image at random, newly drawn each epoch, in
            pixels.
        with_labels: whether batches contain labels.
        process_index: number of this process, `jax.process_index()`.
        process_count: number of processes, `jax.process_count()`; it divides `batch_size`.

    Returns:
        The iterator. It raises a DataError when it reaches an image that cannot be used.

    Raises:
        DataError: an argument is out of range, or the source has no labels.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.data import Arrays, make_iterator
        >>> source = Arrays(np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1))
        >>> batches = make_iterator(source, batch_size=5, seed=0, flip=False)
        >>> sorted(next(batches).images.ravel().tolist())
        [0, 1, 2, 3, 4]
        >>> batches.get_state()["batches"]
        1
    """
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
            f"batch_size is {batch_size}; it has to be a multiple of process_count,"
            f" {process_count}, such as {nearest}"
        )
    if not 0 <= seed < 2**32:
        raise DataError(f"seed is {seed}; it has to be 0 to {2**32 - 1}")
    if crop is not None:
        check_crop(crop, source.image_shape)
    if with_labels and not source.labelled:
        raise DataError("the data set has no labels; a network with classes needs them")
    return BatchIterator(
        _Batches(source, batch_size, seed, flip, crop, with_labels, process_index, process_count)
    )


def _read_options(source: Source) -> dict[str, int]:
    """Two batches ahead for each thread."""
    # One thread is enough for images in memory: the training loop never waits for it.
    threads = 1 if source.in_memory else min(os.cpu_count() or 1, _MOST_THREADS)
    return {"num_threads": threads, "prefetch_buffer_size": 2 * threads}


class _Batches:
    """One process's batches of a stream by number: a source for grain."""

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        flip: bool,
        crop: int | None,
        with_labels: bool,
        process_index: int,
        process_count: int,
    ):
        self.run: State = {
            "batch_size": batch_size,
            "num_images": len(source),
            "seed": seed,
            "flip": flip,
            "crop": crop,
        }
        self.source = source
        self._flip, self._crop, self._with_labels = flip, crop, with_labels
        self._batch_size, self._share = batch_size, batch_size // process_count
        self._offset = process_index * self._share
        # Read in order, a batch needs the epoch it is in and perhaps the next. Of the threads that
        # read ahead the first makes it, and the others wait for it.
        self._lock = threading.Lock()
        self._epoch = functools.lru_cache(maxsize=2)(
            functools.partial(_epoch, seed, num_images=len(source), crops=crop is not None)
        )

    def __len__(self) -> int:
        return sys.maxsize // self._batch_size

    def __getitem__(self, batch: int) -> Examples:
        first = batch * self._batch_size + self._offset
        epochs, places = np.divmod(np.arange(first, first + self._share), len(self.source))
        parts = []
        for epoch in range(epochs[0], epochs[-1] + 1):
            with self._lock:
                drawn_of_all = self._epoch(epoch)
            parts.append(drawn_of_all.at(places[epochs == epoch]))
        drawn: _Epoch = jax.tree.map(lambda *of_epochs: np.concatenate(of_epochs), *parts)
        images, labels = self.source[drawn.order]
        if self._crop is not None and drawn.corner is not None:
            images = _cropped(images, drawn.corner, self._crop)
        if self._flip:
            images[drawn.flipped] = images[drawn.flipped, :, ::-1]
        return Examples(images, labels if self._with_labels else None)


class _Epoch(NamedTuple):
    """The random choices of an epoch, for each place."""

    order: Int[np.ndarray, " n"]
    """A permutation of the images."""
    flipped: Bool[np.ndarray, " n"]
    corner: UInt64[np.ndarray, "n 2"] | None
    """Random words for top and left of the crop."""

    def at(self, places: Int[np.ndarray, " some"]) -> "_Epoch":
        corner = None if self.corner is None else self.corner[places]
        return _Epoch(self.order[places], self.flipped[places], corner)


def _epoch(seed: int, epoch: int, *, num_images: int, crops: bool) -> _Epoch:
    # Seeded by the pair: with seed + epoch, one run's epochs would be another's, shifted.
    words = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    order = np.argsort(words.random_raw(num_images), kind="stable")
    flipped = words.random_raw(num_images) >= 2**63
    corner = words.random_raw((num_images, 2)) if crops else None
    return _Epoch(order, flipped, corner)


def _cropped(images: np.ndarray, corner: np.ndarray, side: int) -> np.ndarray:
    """A square of each image, every place as likely as any other (but for 2^-64 of rounding)."""
    places = np.array(images.shape[1:3], np.uint64) - np.uint64(side) + np.uint64(1)
    top, left = (corner % places).astype(np.intp).T
    rows, columns = (first[:, None] + np.arange(side) for first in (top, left))
    return images[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]
