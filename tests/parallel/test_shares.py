"""Shares of work by number, and what several processes make of them."""

import numpy as np
import pytest

from ddpm_jax.parallel import shares


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize(("num", "size"), [(10, 3), (12, 3), (2, 5), (1, 1), (0, 4)])
def test_each_item_is_in_the_blocks_of_one_process(num, size, processes):
    every = [
        number
        for index in range(processes)
        for first, items in shares.blocks_of(index, processes, num, size)
        for number in range(first, first + items)
    ]
    assert sorted(every) == list(range(num))


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_the_rows_of_all_processes_come_in_the_order_of_the_items(processes, monkeypatch):
    rows = np.arange(22.0).reshape(11, 2)
    own = [
        np.concatenate(
            [rows[:0]]
            + [rows[first : first + n] for first, n in shares.blocks_of(index, processes, 11, 3)]
        )
        for index in range(processes)
    ]
    monkeypatch.setattr(shares.hosts, "gathered_arrays", lambda values: own)
    np.testing.assert_array_equal(shares.gathered_blocks(own[0], 11, 3), rows)


def test_the_mesh_of_one_process_is_local():
    assert shares.is_local(shares.local_mesh())
