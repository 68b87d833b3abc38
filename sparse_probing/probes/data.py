"""One feature's arrays in the shape that every method wants: labelled rows, their split, activations by column.

No fitting here. `ProbeData` keeps stored levels as they are and turns columns into activations when asked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparse_probing.errors import DataError
from sparse_probing.probes.counts import check_labels, check_quantisation
from sparse_probing.probes.labelling import Labels, SignedLabels, as_signs
from sparse_probing.probes.single import check_classes, default_split
from sparse_probing.schemas import SPLITS

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ProbeData:
    """Labelled rows of one feature.

    Attributes
    ----------
    X:
        (n_rows, n_neurons) uint8 levels or floats.
    positive:
        (n_rows,) bool.
    split:
        (n_rows,) int8: 0 train, 1 validation, 2 test.
    groups:
        (n_rows,) integer codes.
    offset, scale:
        (n_neurons,); activation = offset + scale * X. Zero and one for floats.
    row_ids:
        (n_rows,) rows of the arrays handed in.
    """

    X: NDArray[Any]
    positive: NDArray[np.bool_]
    split: NDArray[np.int8]
    groups: NDArray[np.intp]
    offset: Floats
    scale: Floats
    row_ids: NDArray[np.intp]

    @property
    def n_neurons(self) -> int:
        """Number of neurons."""
        return int(self.X.shape[1])

    @property
    def signs(self) -> NDArray[np.int8]:
        """(n_rows,) +1 and -1."""
        return np.where(self.positive, 1, -1).astype(np.int8)

    def rows(self, split: str | int) -> NDArray[np.intp]:
        """Row numbers of a split, by name or code."""
        code = SPLITS.index(split) if isinstance(split, str) else split
        return np.flatnonzero(self.split == code)

    def values(self, rows: NDArray[np.intp] | slice = slice(None), neurons: ArrayLike | None = None) -> Floats:
        """Activations as float64, (len(rows), len(neurons)); all neurons if none are named."""
        if neurons is None:
            return self.X[rows].astype(np.float64) * self.scale + self.offset
        chosen = np.asarray(neurons, np.intp)
        block = self.X[rows][:, chosen] if len(chosen) > 64 else self.X[:, chosen][rows]
        return block.astype(np.float64) * self.scale[chosen] + self.offset[chosen]

    def with_labels(self, positive: NDArray[np.bool_]) -> ProbeData:
        """The same rows under other labels."""
        return replace(self, positive=positive)

    def with_neurons(self, neurons: ArrayLike) -> ProbeData:
        """The same rows with some neurons only, renumbered in the order given."""
        chosen = np.asarray(neurons, np.intp)
        return replace(self, X=self.X[:, chosen], offset=self.offset[chosen], scale=self.scale[chosen])

    def with_features(self, X: NDArray[Any]) -> ProbeData:
        """The same rows with other columns, as floats."""
        return replace(self, X=X, offset=np.zeros(X.shape[1]), scale=np.ones(X.shape[1]))


def prepare(
    X: ArrayLike,
    y: Labels,
    groups: ArrayLike | None = None,
    *,
    labelled: ArrayLike | None = None,
    split: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    rng: np.random.Generator | int = 0,
) -> ProbeData:
    """Check one feature's arrays and keep its labelled rows (parameters as in `single.score_neurons`).

    Raises
    ------
    DataError
        If shapes, labels or split codes do not fit, an activation is not finite, or train lacks one class.
    """
    table = np.asarray(X)
    if table.ndim != 2 or table.shape[1] == 0:
        raise DataError(f"X has shape {table.shape}; expected (n_samples, n_neurons) with at least one neuron.")
    signs = as_signs(y, labelled)
    if signs.ndim != 1:
        raise DataError(f"y has shape {signs.shape}; expected (n_samples,).")
    if split is None:
        split = default_split(signs, groups, table.shape[0], rng)
    labels, codes = check_labels(SignedLabels(signs), split, table.shape[0])
    check_classes(labels, codes)
    kept = np.flatnonzero(labels[:, 0] != 0)
    names = np.arange(table.shape[0]) if groups is None else np.asarray(groups)
    if len(names) != table.shape[0]:
        raise DataError(f"{table.shape[0]} rows of activations with {len(names)} groups.", remedy="Give one per row.")
    low, step = check_quantisation(offset, scale, table.shape[1])
    if table.dtype != np.uint8:
        if not np.issubdtype(table.dtype, np.number) or np.iscomplexobj(table):
            raise DataError(f"X has type {table.dtype}; expected uint8 levels or floats.")
        if offset is not None or scale is not None:
            raise DataError(f"offset and scale given with X of type {table.dtype}; they belong to uint8 levels.")
        if not np.isfinite(table[kept]).all():
            bad = int(np.argmax(~np.isfinite(table[kept]).all(axis=0)))
            raise DataError(
                f"Neuron {bad} has activations that are not finite.", remedy="Extract again in a wider dtype."
            )
    whole = len(kept) == table.shape[0]
    return ProbeData(
        X=table if whole else table[kept],
        positive=labels[kept, 0] > 0,
        split=codes[kept],
        groups=np.unique(names[kept], return_inverse=True)[1].reshape(-1),
        offset=low,
        scale=step,
        row_ids=kept,
    )
