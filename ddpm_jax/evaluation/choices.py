"""A random choice of rows from a stream whose length is not known, in bounded memory.

Each image number has a priority, a hash of the number and a seed. The choice of k rows are the k of
lowest priority. It is uniform over the sets of k rows, as a random permutation of the numbers would
make it; it does not depend on the order or the size of the batches; and the choice from two parts
of a stream is the choice from the choices of the parts. Images that are sorted by class do not
matter.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt64

from ddpm_jax.evaluation.features import EvaluationError, check_at_least

__all__ = ["ChosenRows", "chosen_rows", "priorities"]

_STEP = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio, odd: the increment of SplitMix64."""


class ChosenRows(NamedTuple):
    """Rows of features with their image numbers, in ascending order of the numbers."""

    numbers: Int[np.ndarray, " rows"]
    """Image numbers, `[rows]`, int64."""
    rows: Float[np.ndarray, "rows dim"]
    """Features, `[rows, dim]`."""


def priorities(numbers: Int[np.ndarray, " n"], seed: int = 0) -> UInt64[np.ndarray, " n"]:
    """The priority of each image number.

    Args:
        numbers: image numbers, 0 or more.
        seed: of the choice, 0 or more.

    Returns:
        uint64 `[n]`: numbers under a permutation of the 64-bit integers, which looks random.

    References:
        Steele, Lea and Flood 2014, Fast splittable pseudorandom number generators, figure 13
        (the finalizer of SplitMix64)
    """
    x = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(_STEP)
    x = _mixed(x ^ _mixed(np.full(1, seed, np.uint64)))
    return _mixed(x + np.uint64(_STEP))


def chosen_rows(*parts: ChosenRows, most: int, seed: int = 0) -> ChosenRows:
    """The choice of at most `most` rows from all parts together.

    Args:
        parts: rows with their image numbers, at least one part; no number occurs twice.
        most: number of rows in the choice, 0 or more; all rows if there are fewer.
        seed: of the choice; the same for all parts of a stream.

    Returns:
        The rows of lowest priority, in ascending order of their image numbers.

    Raises:
        EvaluationError: `most` is negative, or a number occurs twice.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.evaluation import ChosenRows, chosen_rows
        >>> part = ChosenRows(np.arange(6), np.arange(6.0)[:, None])
        >>> len(chosen_rows(part, most=4).numbers), len(chosen_rows(part, most=9).numbers)
        (4, 6)
    """
    check_at_least("most", most, 0)
    numbers = np.concatenate([part.numbers for part in parts])
    picked = np.argsort(priorities(numbers, seed), kind="stable")[:most]
    picked = picked[np.argsort(numbers[picked])]
    ordered = numbers[picked]
    if (ordered[1:] == ordered[:-1]).any():
        raise EvaluationError("numbers holds an image number twice; each image has its own")
    starts = np.cumsum([0, *(len(part.numbers) for part in parts)])
    rows = np.empty((len(picked), parts[0].rows.shape[1]), parts[0].rows.dtype)
    for part, first, end in zip(parts, starts, starts[1:], strict=False):  # no copy of all rows
        of_part = (first <= picked) & (picked < end)
        rows[of_part] = part.rows[picked[of_part] - first]
    return ChosenRows(ordered, rows)


def _mixed(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
