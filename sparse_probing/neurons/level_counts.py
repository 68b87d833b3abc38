"""Class-by-level counts from a stream of activations: all that one-neuron probes need; no activation is stored.

Levels are those that an extraction with the same ranges stores, so the scores of these counts equal, to the last bit,
those of the stored activations. Nothing is fitted here: `LevelTables.of` gives the arguments of `probes.single.counts.LevelCounts`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_probing.activations.quantisation import LEVELS, Ranges, encode
from sparse_probing.errors import DataError, InputError
from sparse_probing.schemas import SPLITS

N_LEVELS = LEVELS + 1
# Cells counted at once: the memory of their indices is eight bytes each.
_CELLS = {"cpu": 1 << 20, "cuda": 1 << 25}


@dataclass(frozen=True, eq=False)
class LevelTables:
    """How often each level of each neuron occurs, by split, for the rows that each of several columns marks.

    A column marks the labelled rows of a feature, or its positive ones. Columns that mark the same rows are kept once: in
    a one-against-rest collection every row is labelled for every feature.

    Attributes
    ----------
    features:
        Names of the features.
    labelled, positive:
        Each feature's columns.
    tables:
        (n_layers, 3, n_columns, n_neurons, 256) counts: split, column, neuron, level.
    offset, scale:
        (n_layers, n_neurons) float32; activation = offset + scale · level.
    n_rows:
        Rows seen, labelled or not.
    n_clipped:
        (n_layers, n_neurons) int64: labelled rows outside of the ranges, counted at the nearest end.
    """

    features: tuple[str, ...]
    labelled: tuple[int, ...]
    positive: tuple[int, ...]
    tables: NDArray[np.integer[Any]]
    offset: NDArray[np.float32]
    scale: NDArray[np.float32]
    n_rows: int
    n_clipped: NDArray[np.int64]

    def of(self, feature: str, layer: int) -> dict[str, NDArray[Any]]:
        """Counts of one feature in one layer: the arguments of `probes.single.counts.LevelCounts`.

        Parameters
        ----------
        layer:
            Index of the layer among those collected.

        Returns
        -------
        dict
            ``counts`` (3, 2, n_neurons, 256) int64: split, class (0 negative, 1 positive), neuron, level; ``offset`` and
            ``scale`` (n_neurons,).

        Raises
        ------
        InputError
            If the feature or layer was not collected.
        """
        if feature not in self.features or not 0 <= layer < len(self.tables):
            raise InputError(
                f"Counts of feature {feature!r} in layer {layer} asked for; there are {', '.join(self.features)} in layers "
                f"0–{len(self.tables) - 1}."
            )
        which = self.features.index(feature)
        labelled, positive = (
            self.tables[layer, :, columns[which]].astype(np.int64) for columns in (self.labelled, self.positive)
        )
        counts = np.stack([labelled - positive, positive], axis=1)
        return {"counts": counts, "offset": self.offset[layer], "scale": self.scale[layer]}

    def merge(self, other: LevelTables) -> LevelTables:
        """Counts of disjoint rows together.

        Raises
        ------
        InputError
            If the two have other features, neurons or ranges: their levels would mean different activations.
        """
        same = self.features == other.features and self.offset.shape == other.offset.shape
        if not (same and np.array_equal(self.offset, other.offset) and np.array_equal(self.scale, other.scale)):
            raise InputError(
                "Level counts of other features, neurons or quantisation ranges cannot be merged.",
                remedy="Collect all parts with the same features and ranges.",
            )
        one, two = self, other
        if (one.labelled, one.positive) != (two.labelled, two.positive):
            one, two = one._spread(), two._spread()
        total = one.n_rows + two.n_rows
        kind = np.int32 if total < 1 << 31 else np.int64
        return replace(
            one,
            tables=np.add(one.tables, two.tables, dtype=kind),
            n_rows=total,
            n_clipped=one.n_clipped + two.n_clipped,
        )

    def _spread(self) -> LevelTables:
        """Two columns for every feature, whether they mark the same rows or not."""
        n_features = len(self.features)
        return replace(
            self,
            tables=self.tables[:, :, [*self.labelled, *self.positive]],
            labelled=tuple(range(n_features)),
            positive=tuple(range(n_features, 2 * n_features)),
        )


class LevelCollector:
    """Collects `LevelTables` from batches, on the device where the batches are.

    Parameters
    ----------
    ranges:
        Quantisation of every neuron, from training rows.
    labels:
        (n_rows, n_features) of +1, −1 and 0 (not labelled), for all rows there will be.
    split:
        (n_rows,) 0 train, 1 validation, 2 test.
    """

    def __init__(
        self,
        ranges: Ranges,
        features: tuple[str, ...],
        labels: NDArray[np.int8],
        split: NDArray[np.int8],
        *,
        device: str = "cpu",
    ) -> None:
        if labels.shape != (len(split), len(features)) or not features:
            raise DataError(
                f"Labels of shape {labels.shape} for {len(features)} features and {len(split)} split codes.",
                remedy="Give one label per row and feature, of one feature at least.",
            )
        if not np.isin(labels, (-1, 0, 1)).all() or not np.isin(split, range(len(SPLITS))).all():
            raise DataError("Labels or split codes are strange; expected +1, -1, 0 and 0 train, 1 validation, 2 test.")
        # Columns in the order in which their feature first needs them.
        marks = np.concatenate([labels != 0, labels > 0], axis=1)
        distinct: dict[bytes, int] = {}
        columns = [distinct.setdefault(np.packbits(mark).tobytes(), len(distinct)) for mark in marks.T]
        self._marks = marks[:, [columns.index(column) for column in range(len(distinct))]]
        self._features, self._split = features, split
        self._labelled, self._positive = tuple(columns[: len(features)]), tuple(columns[len(features) :])
        self._ranges = ranges
        place = torch.device(device)
        offset, scale, inverse, origin = ranges.tensors(place)
        # Levels themselves, not bytes that count from the origin.
        self._parts = (offset, scale, inverse, torch.zeros_like(origin))
        n_layers, n_neurons = ranges.scale.shape
        shape = (n_layers, len(SPLITS), len(distinct), n_neurons, N_LEVELS)
        try:
            self._tables = torch.zeros(shape, dtype=torch.int32, device=place)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            raise InputError(
                f"Level counts of {len(features)} features in {n_layers} layers take {4 * np.prod(shape) / 1e9:.1f} GB; "
                f"{device} has no room for them.",
                remedy="Collect fewer features or extraction.layers at a time.",
            ) from error
        self._n_clipped = torch.zeros((n_layers, n_neurons), dtype=torch.int64, device=place)
        self._n_rows = 0
        self._is_finished = False

    @torch.inference_mode()
    def update(self, values: torch.Tensor, rows: NDArray[np.int64]) -> None:
        """Take in a batch; rows without a label count for nothing.

        Parameters
        ----------
        values:
            (n_layers, n_rows, n_neurons) activations.
        rows:
            (n_rows,) rows of `labels`, each given once in all.

        Raises
        ------
        DataError
            If the shape is another, or an activation of a labelled row is not a number.
        InputError
            If the collector is finished.
        """
        if self._is_finished:
            raise InputError(
                "A batch came after the counts were finished.", remedy="Make another collector, and merge."
            )
        n_layers, n_neurons = self._n_clipped.shape
        if tuple(values.shape) != (n_layers, len(rows), n_neurons):
            raise DataError(
                f"Activations of shape {tuple(values.shape)}; expected ({n_layers}, {len(rows)}, {n_neurons})."
            )
        self._n_rows += len(rows)
        marks = self._marks[rows]
        wanted = np.flatnonzero(marks.any(axis=1))
        if not len(wanted):
            return
        device, n_columns = self._tables.device, marks.shape[1]
        row, column = np.nonzero(marks[wanted])
        # Where each marked (row, column) is counted: its table, of all splits and columns.
        cells = self._split[rows[wanted]][row].astype(np.int64) * n_columns + column
        row_at, cell_at = torch.from_numpy(row).to(device), torch.from_numpy(cells * (n_neurons * N_LEVELS)).to(device)
        wanted_at = torch.from_numpy(wanted).to(device)
        neuron_at = torch.arange(n_neurons, device=device) * N_LEVELS
        block = max(1, _CELLS[device.type] // n_neurons)
        ones = torch.ones(min(block, len(row)) * n_neurons, dtype=torch.int32, device=device)
        for layer in range(n_layers):
            encoded = encode(values[layer].index_select(0, wanted_at), *(part[layer] for part in self._parts))
            if torch.isnan(encoded.max_error).any():
                raise DataError(
                    "Activations hold values that are not numbers.", remedy="Run the model in another dtype."
                )
            self._n_clipped[layer] += encoded.n_clipped
            levels = encoded.codes.long() + neuron_at
            table = self._tables[layer].view(-1)
            for first in range(0, len(row), block):
                part = slice(first, first + block)
                index = (levels[row_at[part]] + cell_at[part, None]).view(-1)
                table.scatter_add_(0, index, ones[: len(index)])

    def finish(self) -> LevelTables:
        """The counts of everything taken in. Tables are large, so theirs is not copied: no batch can follow."""
        self._is_finished = True
        return LevelTables(
            features=self._features,
            labelled=self._labelled,
            positive=self._positive,
            tables=self._tables.cpu().numpy(),
            offset=self._ranges.offset,
            scale=self._ranges.scale,
            n_rows=self._n_rows,
            n_clipped=self._n_clipped.cpu().numpy(),
        )
