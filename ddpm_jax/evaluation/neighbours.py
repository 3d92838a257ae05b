"""Exact nearest rows, and which rows lie in which balls.

scikit-learn's `NearestNeighbors` is not exact for close neighbours. It uses
|x - y|^2 = |x|^2 + |y|^2 - 2 x . y, one matrix product for a block of pairs, which cancels if x is
close to y: with one distant row in the pool, near duplicates come in random order. Its metrics that
subtract are exact, but took 9 times as long for features of 2048 dimensions; and none of them puts
the first of equally near rows first.

Here the matrix product, with a bound of its rounding error, only excludes pairs that are certainly
farther. The other distances are computed as sum((x - y)^2), which is 0 for equal rows, has the
same bits for (x, y) and (y, x), and a relative error of about 1e-15. All is in float64; for
integers the result is exact.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ddpm_jax.evaluation.features import (
    EvaluationError,
    check_at_least,
    check_rows,
    check_same_dim,
)

__all__ = ["Nearest", "ball_counts", "nearest", "nearest_squares"]

QUERIES, POOL = 1024, 4096
"""Rows in one block of pairs: 32 MB for each of a few matrices of squared distances."""
_PAIRS = 2**23
"""Number of differences that are in memory at a time."""
_MANY = 8
"""Number of pairs for each row from which equal pairs are computed only once."""


class Nearest(NamedTuple):
    """The k nearest rows of a pool to each query, nearest first."""

    indices: Int[np.ndarray, "queries k"]
    """Indices of rows of the pool; of equally near rows, the first."""
    distances: Float[np.ndarray, "queries k"]
    """Euclidean distances, float64."""


def nearest(queries: np.ndarray, pool: np.ndarray, k: int) -> Nearest:
    """The `k` rows of a pool that are nearest to each query, exactly.

    A row that is in both has itself as a neighbour, at the distance 0. Memory does not grow with
    the number of rows: 250 MB for rows of 784 numbers.

    Args:
        queries: `[q, dim]`, floats or integers: features, or pixels.
        pool: `[n, dim]`, floats or integers.
        k: number of neighbours, 1 to n.

    Returns:
        Indices and distances, `[q, k]`.

    Raises:
        EvaluationError: rows are not finite, the dimensions differ, or `k` is out of range.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax.evaluation import nearest
        >>> near = nearest(np.array([[2.0, 0.0]]), np.array([[9.0, 0.0], [2.0, 3.0]]), 1)
        >>> near.indices.tolist(), near.distances.tolist()
        ([[1]], [[3.0]])
    """
    check_rows("queries", queries)
    check_rows("pool", pool)
    check_same_dim("queries", queries, "pool", pool)
    check_at_least("k", k, 1)
    if k > len(pool):
        raise EvaluationError(f"k is {k}; it has to be at most the rows of pool, {len(pool)}")
    indices, squares = nearest_squares(queries, pool, k)
    return Nearest(indices, np.sqrt(squares))


def nearest_squares(queries: np.ndarray, pool: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and squared distances, `[q, k]`, of rows that are known to be good."""
    origin = pool.mean(axis=0, dtype=np.float64)
    blocks = [
        _nearest_of_block(queries[start : start + QUERIES], pool, k, origin)
        for start in range(0, len(queries), QUERIES)
    ]
    indices, squares = (np.concatenate(part) for part in zip(*blocks, strict=True))
    return indices, squares


def _nearest_of_block(
    queries: np.ndarray, pool: np.ndarray, k: int, origin: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    num = len(queries)
    # The best so far, as a list of pairs: row of `queries`, row of `pool`, squared distance.
    rows, columns = np.empty(0, np.intp), np.empty(0, np.intp)
    squares, farthest = np.empty(0), np.full(num, np.inf)
    for start in range(0, len(pool), POOL):
        block = pool[start : start + POOL]
        low, high = _bounds(queries, block, origin)
        if k <= len(block):  # k of this block are no farther than this
            farthest = np.minimum(farthest, np.partition(high, k - 1, axis=1)[:, k - 1])
        near_rows, near_columns = np.nonzero(low <= farthest[:, None])
        near = squared_distances(queries, block, near_rows, near_columns)
        rows = np.concatenate([rows, near_rows])
        columns = np.concatenate([columns, near_columns + start])
        squares = np.concatenate([squares, near])
        order = np.lexsort((columns, squares, rows))
        rank = np.arange(len(rows)) - np.searchsorted(rows[order], rows[order])
        last, best = order[rank == k - 1], order[rank < k]
        farthest[rows[last]] = squares[last]
        rows, columns, squares = rows[best], columns[best], squares[best]
    return columns.reshape(num, k), squares.reshape(num, k)


def ball_counts(
    queries: np.ndarray, centres: np.ndarray, squared_radii: np.ndarray, enough: int | None = None
) -> np.ndarray:
    """The number of balls around `centres`, with their surface, that contain each of `queries`.

    With `enough`, no more balls are counted for a query that is in so many of them.
    """
    origin = centres.mean(axis=0, dtype=np.float64)
    most = len(centres) if enough is None else enough
    counts = np.zeros(len(queries), np.int64)
    for start in range(0, len(centres), POOL):
        block = centres[start : start + POOL]
        squares = squared_radii[start : start + POOL]
        open_queries = np.flatnonzero(counts < most)
        for first in range(0, len(open_queries), QUERIES):
            indices = open_queries[first : first + QUERIES]
            rows = queries[indices]
            low, high = _bounds(rows, block, origin)
            inside = high <= squares
            certain = counts[indices] + np.sum(inside, axis=1)
            undecided = np.nonzero((low <= squares) & ~inside & (certain < most)[:, None])
            exact = squared_distances(rows, block, *undecided) <= squares[undecided[1]]
            counts[indices] = certain + np.bincount(undecided[0][exact], minlength=len(rows))
    return counts


def _bounds(x: np.ndarray, y: np.ndarray, origin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Below and above `squared_distances` of each row of `x` to each of `y`, `[len(x), len(y)]`.

    The rows are centred about `origin`, a point in their midst: short rows have small rounding
    errors. With u = 2^-53, the norms and the product are off by dim u (|x| + |y|)^2 at most
    together, in any order of summation, the centring and the last sums by a few u of it; and
    (|x| + |y|)^2 <= 2 (|x|^2 + |y|^2).
    """
    bound = 4.0 * (x.shape[1] + 8) * 2.0**-53
    x, y = (rows.astype(np.float64) - origin for rows in (x, y))
    lengths = np.sum(np.square(x), axis=1)[:, None] + np.sum(np.square(y), axis=1)
    low = x @ y.T
    low *= -2.0
    low += lengths
    lengths *= bound
    return low - lengths, low + lengths


def squared_distances(
    x: np.ndarray, y: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """sum((x - y)^2) of the pairs x[rows[i]], y[columns[i]], in float64."""
    if len(rows) <= _MANY * (len(x) + len(y)):
        return _squared_distances(x, y, rows, columns)
    # If a model draws the same image again and again, many pairs are equally near.
    pairs = _kinds(x)[rows] * len(y) + _kinds(y)[columns]
    _, first, kind = np.unique(pairs, return_index=True, return_inverse=True)
    return _squared_distances(x, y, rows[first], columns[first])[kind]


def _kinds(rows: np.ndarray) -> np.ndarray:
    """A number for each row, the same for equal rows."""
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in rows])


def _squared_distances(
    x: np.ndarray, y: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    at_once = max(1, _PAIRS // x.shape[1])
    squares = np.empty(len(rows))
    for start in range(0, len(rows), at_once):
        some = slice(start, start + at_once)
        difference = x[rows[some]].astype(np.float64) - y[columns[some]]
        squares[some] = np.sum(np.square(difference), axis=1)
    return squares
