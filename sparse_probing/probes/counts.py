"""How often each level of each neuron occurs in each class and split: the sufficient statistic of one-neuron probes.

Stored activations have at most 256 levels a neuron. `count_levels` makes one pass over them for all features together;
`LevelCounts` add up across shards, machines and time, to the last bit. Fitting and metrics live in `single`.

The pass is a sparse product: row i of the codes has one entry per neuron, at (neuron, level), and the product of that
one-hot matrix with the label columns is the table of counts. SciPy runs it at about a nanosecond per entry and column,
without the interpreter's lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from sparse_probing.errors import DataError
from sparse_probing.schemas import SPLITS

N_LEVELS = 256
# Entries of a one-hot matrix, or floats quantised, at once.
_CHUNK_ENTRIES = 1 << 20

Codes = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LevelCounts:
    """Class-by-level counts of one feature.

    Attributes
    ----------
    counts:
        (3, 2, n_neurons, 256) int64: split, class (0 negative, 1 positive), neuron, level.
    offset, scale:
        (n_neurons,); activation = offset + scale * level.
    """

    counts: NDArray[np.int64]
    offset: NDArray[np.floating[Any]]
    scale: NDArray[np.floating[Any]]

    def __add__(self, other: LevelCounts) -> LevelCounts:
        """Counts of both parts together.

        Raises
        ------
        DataError
            If the parts differ in neurons or in quantisation: their levels would mean different activations.
        """
        same = self.counts.shape == other.counts.shape
        if not (same and np.array_equal(self.offset, other.offset) and np.array_equal(self.scale, other.scale)):
            raise DataError(
                f"Level counts of {self.counts.shape[2]} and {other.counts.shape[2]} neurons, or with different "
                "quantisation, were added.",
                remedy="Quantise all shards with the same offset and scale.",
            )
        return LevelCounts(self.counts + other.counts, self.offset, self.scale)

    @property
    def n_neurons(self) -> int:
        """Number of neurons counted."""
        return int(self.counts.shape[2])

    def class_sizes(self) -> NDArray[np.int64]:
        """(3, 2) labelled samples by split and class."""
        return np.asarray(self.counts[:, :, 0, :].sum(axis=-1))


@dataclass(frozen=True, eq=False)
class LabelColumns:
    """The distinct 0/1 columns behind several features' labels, by split.

    Positives and labelled rows of all features are columns; equal ones (a one-against-rest collection is labelled
    throughout) are kept once. `positive[f]` and `labelled[f]` are the columns of feature f.
    """

    rows: tuple[NDArray[np.intp], ...]
    columns: tuple[NDArray[np.float32], ...]
    positive: tuple[int, ...]
    labelled: tuple[int, ...]


def label_columns(labels: NDArray[np.int8], split: NDArray[np.int8]) -> LabelColumns:
    """Distinct label columns of (n_samples, n_features) labels, for each of the three splits."""
    distinct: dict[bytes, int] = {}
    kept: list[NDArray[np.bool_]] = []

    def place(column: NDArray[np.bool_]) -> int:
        key = np.packbits(column).tobytes()
        if key not in distinct:
            distinct[key] = len(kept)
            kept.append(column)
        return distinct[key]

    labelled = tuple(place(labels[:, feature] != 0) for feature in range(labels.shape[1]))
    positive = tuple(place(labels[:, feature] > 0) for feature in range(labels.shape[1]))
    table = np.stack(kept, axis=1)
    needed = table.any(axis=1)
    rows = tuple(np.flatnonzero((split == code) & needed) for code in range(len(SPLITS)))
    columns = tuple(np.ascontiguousarray(table[index].astype(np.float32)) for index in rows)
    return LabelColumns(rows, columns, positive, labelled)


def count_tables(codes: Codes, columns: LabelColumns, neurons: slice) -> list[NDArray[Any]]:
    """Count a chunk of neurons: one (n_chunk, 256, n_columns) table per split.

    Tables hold exact integers as float32 (float64 past 2**24 rows of a split).
    """
    return [_count(codes, neurons, rows, labels) for rows, labels in zip(columns.rows, columns.columns, strict=True)]


def _count(codes: Codes, neurons: slice, rows: NDArray[np.intp], labels: NDArray[np.float32]) -> NDArray[Any]:
    width = neurons.stop - neurons.start
    n_cells, n_columns = width * N_LEVELS, labels.shape[1]
    total: NDArray[Any] = np.zeros((n_cells, n_columns), np.float32 if len(rows) < 1 << 24 else np.float64)
    if n_columns == 2 and (labels[:, 1] <= labels[:, 0]).all():
        # Labelled rows and, among them, positive ones: one feature. Two passes over parts cost less than one over both.
        positive = labels[:, 1] > 0
        within = _count_ones(codes, neurons, rows[positive], n_cells)
        total[:, 1] = within
        total[:, 0] = within + _count_ones(codes, neurons, rows[~positive & (labels[:, 0] > 0)], n_cells)
        return total.reshape(width, N_LEVELS, n_columns)
    for part, one_hot in _one_hot(codes, neurons, rows, n_cells):
        total += one_hot @ labels[part]
    return total.reshape(width, N_LEVELS, n_columns)


def _count_ones(codes: Codes, neurons: slice, rows: NDArray[np.intp], n_cells: int) -> NDArray[Any]:
    total: NDArray[Any] = np.zeros(n_cells, np.float32 if len(rows) < 1 << 24 else np.float64)
    for part, one_hot in _one_hot(codes, neurons, rows, n_cells):
        total += one_hot @ np.ones(part.stop - part.start, np.float32)
    return total


def _one_hot(
    codes: Codes, neurons: slice, rows: NDArray[np.intp], n_cells: int
) -> Iterator[tuple[slice, scipy.sparse.csc_array]]:
    """One-hot matrices (n_cells, n_part) of blocks of rows; cells are (neuron, level)."""
    width = neurons.stop - neurons.start
    base = np.arange(width, dtype=np.int32) * N_LEVELS
    block = max(1, min(len(rows), _CHUNK_ENTRIES // width))
    ones = np.ones(block * width, np.float32)
    ends = np.arange(block + 1, dtype=np.int32) * np.int32(width)
    for start in range(0, len(rows), block):
        part = slice(start, min(start + block, len(rows)))
        size = part.stop - start
        entries = np.add(codes[rows[part], neurons], base, dtype=np.int32).ravel()
        yield part, scipy.sparse.csc_array((ones[: len(entries)], entries, ends[: size + 1]), shape=(n_cells, size))


def count_levels(
    codes: ArrayLike,
    labels: ArrayLike,
    split: ArrayLike,
    *,
    offset: ArrayLike | None = None,
    scale: ArrayLike | None = None,
) -> list[LevelCounts]:
    """Class-by-level counts of every feature of one shard, in one pass over its codes.

    Parameters
    ----------
    codes:
        (n_samples, n_neurons) uint8.
    labels:
        (n_samples, n_features) or (n_samples,) of +1, -1 and 0 (not labelled).
    split:
        (n_samples,) 0 train, 1 validation, 2 test.
    offset, scale:
        (n_neurons,); 0 and 1 if absent.

    Raises
    ------
    DataError
        If codes are not uint8, or shapes or label values do not fit.
    """
    table = np.asarray(codes)
    if table.ndim != 2 or table.dtype != np.uint8:
        raise DataError(
            f"Codes of type {table.dtype} and shape {table.shape}; expected (n_samples, n_neurons) uint8.",
            remedy="Quantise first: counts.quantise.",
        )
    signs, codes_of_split = check_labels(labels, split, table.shape[0])
    low, step = check_quantisation(offset, scale, table.shape[1])
    columns = label_columns(signs, codes_of_split)
    n_features, n_neurons = signs.shape[1], table.shape[1]
    out = np.zeros((n_features, len(SPLITS), 2, n_neurons, N_LEVELS), np.int64)
    for start in range(0, n_neurons, 64):
        neurons = slice(start, min(start + 64, n_neurons))
        for code, counted in enumerate(count_tables(table, columns, neurons)):
            for feature in range(n_features):
                positive = counted[..., columns.positive[feature]]
                out[feature, code, 1, neurons] = positive
                out[feature, code, 0, neurons] = counted[..., columns.labelled[feature]] - positive
    return [LevelCounts(out[feature], low, step) for feature in range(n_features)]


def quantise(values: ArrayLike, training: ArrayLike | None = None) -> tuple[Codes, Floats, Floats]:
    """Float activations to 256 uniform levels per neuron, ranges from the training rows alone.

    Values outside the training range go to its nearest end. An integer-valued neuron of range ≤ 255 is kept exactly.

    Parameters
    ----------
    values:
        (n_samples, n_neurons) finite floats.
    training:
        (n_samples,) bool; all rows if absent.

    Returns
    -------
    codes (n_samples, n_neurons) uint8, offset (n_neurons,), scale (n_neurons,) (1 for constant neurons).

    Raises
    ------
    DataError
        If a value is not finite, or a range is too wide for a float.
    """
    table = np.asarray(values)
    rows = None if training is None else np.flatnonzero(np.asarray(training, bool))
    codes = np.empty(table.shape, np.uint8)
    offset, scale = np.zeros(table.shape[1]), np.ones(table.shape[1])
    kind = np.float32 if table.dtype in (np.float16, np.float32) else np.float64
    chunk = max(1, _CHUNK_ENTRIES // max(1, len(table)))
    for start in range(0, table.shape[1], chunk):
        part: NDArray[Any] = np.array(table[:, start : start + chunk], kind)
        seen = part if rows is None else part[rows]
        low, high = seen.min(axis=0).astype(np.float64), seen.max(axis=0).astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            span = high - low
            bad = ~(np.isfinite(span) & np.isfinite(part.min(axis=0)) & np.isfinite(part.max(axis=0)))
        if bad.any():
            raise DataError(
                f"Neuron {start + int(np.argmax(bad))} has activations that are not finite.",
                remedy="Extract again in a wider dtype.",
            )
        step = span / 255.0
        step[step < np.finfo(kind).tiny] = 1.0
        for column in np.flatnonzero((span <= 255) & (low == np.rint(low)) & (high == np.rint(high))):
            if np.array_equal(part[:, column], np.rint(part[:, column])):
                step[column] = 1.0
        np.clip(part, low.astype(kind), high.astype(kind), out=part)
        part -= low.astype(kind)
        part /= step.astype(kind)
        np.rint(part, out=part)
        codes[:, start : start + chunk] = np.minimum(part, 255.0, out=part)
        offset[start : start + chunk], scale[start : start + chunk] = low, step
    return codes, offset, scale


def check_labels(labels: ArrayLike, split: ArrayLike, n_samples: int) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Labels as (n_samples, n_features) int8 and split codes as int8, or a DataError that says what is wrong."""
    signs = np.asarray(labels)
    signs = signs[:, None] if signs.ndim == 1 else signs
    codes = np.asarray(split)
    if signs.ndim != 2 or signs.shape[0] != n_samples or codes.shape != (n_samples,):
        raise DataError(
            f"{n_samples} rows of activations with labels of shape {np.shape(labels)} and split of shape {codes.shape}.",
            remedy="Give one label per feature and one split code per row.",
        )
    if not np.isin(signs, (-1, 0, 1)).all():
        strange = signs[~np.isin(signs, (-1, 0, 1))][0]
        raise DataError(f"Label {strange} found; expected +1, -1, or 0 for not labelled.")
    if not np.isin(codes, (0, 1, 2)).all():
        strange = codes[~np.isin(codes, (0, 1, 2))][0]
        raise DataError(f"Split code {strange} found; expected 0 train, 1 validation or 2 test.")
    return signs.astype(np.int8), codes.astype(np.int8)


def check_quantisation(offset: ArrayLike | None, scale: ArrayLike | None, n_neurons: int) -> tuple[Floats, Floats]:
    """Offset and scale as (n_neurons,) float64, or a DataError."""
    low = np.zeros(n_neurons) if offset is None else np.asarray(offset, np.float64)
    step = np.ones(n_neurons) if scale is None else np.asarray(scale, np.float64)
    if low.shape != (n_neurons,) or step.shape != (n_neurons,):
        raise DataError(f"{n_neurons} neurons with offset {low.shape} and scale {step.shape}; expected one each.")
    if not (np.isfinite(low).all() and np.isfinite(step).all()):
        raise DataError("A quantisation offset or scale is not finite.", remedy="Extract again in a wider dtype.")
    return low, step
