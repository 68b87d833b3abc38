"""Labels and predictions come back as they were packed."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_probing.store.predictions import pack, pack_groups, unpack, unpack_groups


@pytest.mark.parametrize("n_rows", [0, 1, 8, 13])
def test_what_is_packed_comes_back(n_rows: int) -> None:
    rng = np.random.default_rng(n_rows)
    right = rng.random(n_rows) < 0.5
    assert len(pack(right)) == -(-n_rows // 8)
    np.testing.assert_array_equal(unpack(pack(right), n_rows), right)
    numbers = rng.standard_normal(n_rows).astype(np.float32)
    np.testing.assert_array_equal(unpack(pack(numbers), n_rows, numbers=True), numbers)
    codes = rng.integers(0, 2**31 - 1, n_rows)
    np.testing.assert_array_equal(unpack_groups(pack_groups(codes)), codes)


def test_the_first_row_is_the_lowest_bit() -> None:
    assert pack(np.array([True, False, False, False])) == b"\x01"
