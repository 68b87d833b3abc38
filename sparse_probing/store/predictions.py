"""How labels and predictions on test rows are packed into one value of a table: a bit a row, or a float32 where targets are numbers.

The caller decides which rows are packed, and in what order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def pack(values: NDArray[Any]) -> bytes:
    """(n_rows,) booleans, eight a byte, the first in the lowest bit; or numbers, as little-endian float32."""
    if values.dtype == bool:
        return np.packbits(values, bitorder="little").tobytes()
    return values.astype("<f4").tobytes()


def unpack(packed: bytes, n_rows: int, *, numbers: bool = False) -> NDArray[Any]:
    """What was packed: (n_rows,) booleans, or float64 where `numbers` were."""
    if numbers:
        return np.frombuffer(packed, "<f4", n_rows).astype(np.float64)
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=n_rows, bitorder="little").astype(bool)


def pack_groups(codes: NDArray[Any]) -> bytes:
    """(n_rows,) group codes as little-endian int32."""
    return codes.astype("<i4").tobytes()


def unpack_groups(packed: bytes) -> NDArray[np.int32]:
    """(n_rows,) group codes."""
    return np.frombuffer(packed, "<i4").astype(np.int32)
