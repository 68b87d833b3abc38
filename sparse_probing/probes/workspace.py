"""Memory for large intermediate arrays, kept from one block of work to the next.

Fresh memory comes from the system page by page, which takes longer than the sums that are done in it (measured: a quarter
of the time of scoring a layer). No numbers are made here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Workspace:
    """Arrays by name. An array is the caller's until the same name is asked for again; one thread at a time."""

    def __init__(self) -> None:
        self._flat: dict[tuple[str, np.dtype[np.generic]], NDArray[np.generic]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike = np.float64) -> NDArray[np.generic]:
        """An array of that name, shape and type, its content undefined."""
        key, size = (name, np.dtype(dtype)), math.prod(shape)
        flat = self._flat.get(key)
        if flat is None or flat.size < size:
            flat = self._flat[key] = np.empty(size, dtype)
        return flat[:size].reshape(shape)

    def floats(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """A float64 array of that name and shape, its content undefined."""
        found: NDArray[np.float64] = self.array(name, shape)  # type: ignore[assignment]
        return found


_idle: list[Workspace] = []


@contextmanager
def borrowed_workspace() -> Iterator[Workspace]:
    """Lend a workspace that no other thread uses at the same time; workspaces are kept for later calls."""
    try:
        lent = _idle.pop()
    except IndexError:
        lent = Workspace()
    try:
        yield lent
    finally:
        _idle.append(lent)
