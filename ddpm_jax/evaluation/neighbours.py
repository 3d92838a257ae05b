"""Nearest rows, exactly: a matrix product finds the candidates, differences decide.

|x - y|^2 = |x|^2 + |y|^2 - 2 x.y costs one matrix product for a block of pairs, but cancels where
x is near y, which is where neighbours are. So it is only used with a bound of its rounding error,
to leave out the pairs that are farther for certain. The others are computed as sum((x - y)^2),
which is 0 for equal rows, the same bits for (x, y) and (y, x), and right to about 1e-15 of itself.
Float64 throughout; of integers the result is exact.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ddpm_jax.evaluation.guards import EvaluationError, check_at_least, check_rows, check_same_dim

__all__ = ["Nearest", "bounded_squares", "centred", "nearest", "squared_distances"]

QUERIES, POOL = 1024, 4096
"""Rows that meet at a time: 32 MB for each of a few matrices of squared distances."""
_PAIRS = 2**23
"""Values of which differences are held at a time."""
_MANY = 8
"""More pairs to a row than that are looked through for equal ones."""


class Nearest(NamedTuple):
    """The k nearest rows of a pool to each query, nearest first."""

    indices: Int[np.ndarray, "queries k"]
    """Of rows of the pool; of equally near ones, the first."""
    distances: Float[np.ndarray, "queries k"]
    """Euclidean, float64."""


def nearest(queries: np.ndarray, pool: np.ndarray, k: int) -> Nearest:
    """The `k` rows of `pool` nearest to each row of `queries`, and how far they are.

    A row that is in both has itself for a neighbour, at the distance 0. Memory is that of blocks,
    of 250 MB for many rows of 784 numbers.

    Args:
        queries: `[q, dim]`, floats or integers: features, or pixels.
        pool: `[n, dim]`.
        k: from 1 to n.

    Raises:
        EvaluationError: rows that are not finite, different dimensions, or a `k` that is not there.

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
        raise EvaluationError(f"k is {k}; pool has {len(pool)} rows, and k can be at most that")
    origin = pool.mean(axis=0, dtype=np.float64)
    found = [
        _nearest_of_block(queries[start : start + QUERIES], pool, k, origin)
        for start in range(0, len(queries), QUERIES)
    ]
    indices, squares = (np.concatenate(part) for part in zip(*found, strict=True))
    return Nearest(indices, np.sqrt(squares))


def _nearest_of_block(
    queries: np.ndarray, pool: np.ndarray, k: int, origin: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Indices and squared distances, `[q, k]`, through the pool block by block."""
    num = len(queries)
    shifted = centred(queries, origin)
    # The best so far, as a list of pairs: row of `queries`, row of `pool`, squared distance.
    rows, columns = np.empty(0, np.intp), np.empty(0, np.intp)
    squares, farthest = np.empty(0), np.full(num, np.inf)
    for start in range(0, len(pool), POOL):
        block = pool[start : start + POOL]
        low, high = bounded_squares(shifted, centred(block, origin))
        if k <= len(block):  # k of this block are no farther than this
            farthest = np.minimum(farthest, np.partition(high, k - 1, axis=1)[:, k - 1])
        near_rows, near_columns = np.nonzero(low <= farthest[:, None])
        near = squared_distances(queries, block, near_rows, near_columns)
        rows = np.concatenate([rows, near_rows])
        columns = np.concatenate([columns, near_columns + start])
        squares = np.concatenate([squares, near])
        order = np.lexsort((columns, squares, rows))
        rank = np.arange(len(rows)) - np.searchsorted(rows[order], rows[order])
        last, kept = order[rank == k - 1], order[rank < k]
        farthest[rows[last]] = squares[last]
        rows, columns, squares = rows[kept], columns[kept], squares[kept]
    return columns.reshape(num, k), squares.reshape(num, k)


def centred(rows: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """In float64, about a point in their midst: short rows have small rounding errors."""
    return rows.astype(np.float64) - origin


def bounded_squares(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Below and above the squared distance of each row of `x` to each of `y`, `[len(x), len(y)]`.

    What `squared_distances` says of the rows before they were centred is between the two. With
    u = 2^-53, the norms and the product are off by dim u (|x| + |y|)^2 at most together, in any
    order of summation, the centring and the last sums by a few u of it; and
    (|x| + |y|)^2 <= 2 (|x|^2 + |y|^2).
    """
    bound = 4.0 * (x.shape[1] + 8) * 2.0**-53
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
    # So many are equally near where a model draws one and the same image again and again.
    pairs = _kinds(x)[rows] * len(y) + _kinds(y)[columns]
    _, first, kind = np.unique(pairs, return_index=True, return_inverse=True)
    return _squared_distances(x, y, rows[first], columns[first])[kind]


def _kinds(rows: np.ndarray) -> np.ndarray:
    """A number for each row, of equal rows the same one."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(row.tobytes(), len(seen)) for row in rows])


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
