"""How often each level of each neuron occurs in each class and split: the sufficient statistic of one-neuron probes.

Stored activations have at most 256 levels a neuron. `count_levels` makes one pass over them for all features together;
`LevelCounts` of shards add up exactly. Fitting and metrics are in `scoring`.

The pass is a sparse product: row i of the codes has one entry per neuron, at (neuron, level), and summing the rows of that
one-hot matrix that a label column marks gives the column's counts. SciPy runs it at about half a nanosecond per entry,
without the interpreter's lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from sparse_probing.errors import DataError
from sparse_probing.probes.data import check_labels, check_quantisation
from sparse_probing.probes.labelling import Labels
from sparse_probing.probes.workspace import Workspace
from sparse_probing.schemas import SPLITS

N_LEVELS = 256
# Floats quantised at once.
_CHUNK_ENTRIES = 1 << 20
# Neurons counted at once: measured from 64 to 2,048, most gain from their counts staying in the cache up to here.
_CHUNK_NEURONS = 512
# Entries of a one-hot matrix: more are slower by a third, since their memory is had anew from the system each time.
_COUNT_ENTRIES = 1 << 18

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
    """The distinct sets of rows behind several features' labels, by split.

    The positives and the labelled rows of every feature are such sets, called columns; equal ones (a one-against-rest
    collection is labelled throughout) are kept once. `positive[f]` and `labelled[f]` are the columns of feature f.
    `rows[s]` are the rows of split s that some column needs, and `members[s][column]` says which of those belong to it.
    """

    rows: tuple[NDArray[np.intp], ...]
    members: tuple[tuple[slice | NDArray[np.intp], ...], ...]
    positive: tuple[int, ...]
    labelled: tuple[int, ...]

    @property
    def n_columns(self) -> int:
        """Number of distinct columns."""
        return len(self.members[0])


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
    # Rows of equal membership side by side make most columns one stretch of rows, which needs no copy.
    packed = np.packbits(table, axis=1)
    pattern = np.unique(packed.view(f"V{packed.shape[1]}").ravel(), return_inverse=True)[1]
    rows, members = [], []
    for code in range(len(SPLITS)):
        index = np.flatnonzero((split == code) & needed)
        index = index[np.argsort(pattern[index], kind="stable")]
        rows.append(index)
        members.append(tuple(_stretch(np.flatnonzero(column)) for column in table[index].T))
    return LabelColumns(tuple(rows), tuple(members), positive, labelled)


def _stretch(index: NDArray[np.intp]) -> slice | NDArray[np.intp]:
    """The same rows as a slice where they are consecutive."""
    if len(index) == 0:
        return slice(0, 0)
    first, last = int(index[0]), int(index[-1])
    return slice(first, last + 1) if last - first + 1 == len(index) else index


def count_tables(
    codes: Codes, columns: LabelColumns, neurons: slice, workspace: Workspace | None = None
) -> list[NDArray[np.int32]]:
    """Count a chunk of neurons: one (n_columns, n_chunk, 256) table per split, in arrays of `workspace`."""
    workspace = workspace or Workspace()
    tables = []
    for code, (rows, members) in enumerate(zip(columns.rows, columns.members, strict=True)):
        shape = (len(members), neurons.stop - neurons.start, N_LEVELS)
        total: NDArray[np.int32] = workspace.array(f"counts {code}", shape, np.int32)  # type: ignore[assignment]
        total.fill(0)
        _count(codes, neurons, rows, members, total, workspace)
        tables.append(total)
    return tables


def _count(
    codes: Codes,
    neurons: slice,
    rows: NDArray[np.intp],
    members: tuple[slice | NDArray[np.intp], ...],
    total: NDArray[np.int32],
    workspace: Workspace,
) -> None:
    # Few neurons at a time, so that their table stays in the processor's cache; a block of rows bounds the memory.
    width = min(_CHUNK_NEURONS, total.shape[1])
    block = max(1, min(len(rows), _COUNT_ENTRIES // width))
    base = np.arange(width, dtype=np.int32) * N_LEVELS
    ones = np.ones(block * width, np.int32)
    for start in range(0, total.shape[1], width):
        stop = min(start + width, total.shape[1])
        ends = np.arange(block + 1, dtype=np.int32) * np.int32(stop - start)
        for top in range(0, len(rows), block):
            some = rows[top : top + block]
            chosen = codes[some, neurons.start + start : neurons.start + stop]
            entries = np.add(chosen, base[: stop - start], out=workspace.array("entries", chosen.shape, np.int32))
            for column, index in enumerate(members):
                cells = entries[_within(index, top, len(some))]
                if not len(cells):
                    continue
                one_hot = scipy.sparse.csc_array(
                    (ones[: cells.size], cells.ravel(), ends[: len(cells) + 1]),
                    shape=((stop - start) * N_LEVELS, len(cells)),
                )
                counted = (one_hot @ ones[: len(cells)]).reshape(-1, N_LEVELS)
                total[column, start:stop] += counted


def _within(index: slice | NDArray[np.intp], top: int, size: int) -> slice | NDArray[np.intp]:
    """The part of sorted rows that lies in a block of `size` rows from `top`, counted from there."""
    if isinstance(index, slice):
        return slice(max(index.start - top, 0), max(min(index.stop - top, size), 0))
    return index[np.searchsorted(index, top) : np.searchsorted(index, top + size)] - top


def count_levels(
    codes: ArrayLike,
    labels: Labels,
    split: ArrayLike,
    *,
    labelled: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    scale: ArrayLike | None = None,
) -> list[LevelCounts]:
    """Class-by-level counts of every feature of one shard, in one pass over its codes.

    Parameters
    ----------
    codes:
        (n_samples, n_neurons) uint8.
    labels:
        (n_samples, n_features) or (n_samples,), as in `single.score_neurons`. Shards of a stored label matrix are passed
        as `SignedLabels`: a shard alone may hold only 0 and +1.
    split:
        (n_samples,) 0 train, 1 validation, 2 test.
    labelled:
        (n_samples,) or the labels' shape, bool: which labels count.
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
    signs, codes_of_split = check_labels(labels, split, table.shape[0], labelled)
    low, step = check_quantisation(offset, scale, table.shape[1])
    columns = label_columns(signs, codes_of_split)
    n_features, n_neurons = signs.shape[1], table.shape[1]
    out = np.zeros((n_features, len(SPLITS), 2, n_neurons, N_LEVELS), np.int64)
    for start in range(0, n_neurons, _CHUNK_NEURONS):
        neurons = slice(start, min(start + _CHUNK_NEURONS, n_neurons))
        for code, counted in enumerate(count_tables(table, columns, neurons)):
            for feature in range(n_features):
                positive = counted[columns.positive[feature]]
                out[feature, code, 1, neurons] = positive
                out[feature, code, 0, neurons] = counted[columns.labelled[feature]] - positive
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
        # Near the largest float the quotient may round up, and its multiples would overflow.
        with np.errstate(over="ignore"):
            step = np.where(np.isfinite(step * 255.0), step, np.nextafter(step, 0.0))
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
