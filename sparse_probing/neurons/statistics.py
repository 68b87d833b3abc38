"""Statistics of neurons from a stream of activations, with nothing stored: they add up across batches and machines.

A mutable collector takes batches in any order; the frozen result carries the numbers. Merging the results of two halves
gives the result of the whole. Fixed memory: it grows with neurons and bins, never with rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_probing.activations.quantisation import LEVELS
from sparse_probing.errors import DataError, InputError

LEVEL_COUNT = LEVELS + 1


@dataclass(frozen=True)
class NeuronStatistics:
    """Statistics of every neuron over all rows seen; arrays are (n_layers, n_neurons) unless said otherwise.

    Attributes
    ----------
    n_rows:
        Rows seen.
    mean, sum_squares:
        Mean, and sum of squared differences from it (float64): variance = sum_squares / n_rows.
    low, high:
        Smallest and largest value.
    n_positive:
        Rows in which the neuron is above zero: sparsity = 1 − n_positive / n_rows.
    first, last:
        Range of the histogram's bins, which are equal steps.
    histogram:
        (n_layers, n_neurons, n_bins) int64 counts; what lies outside the bins is counted in the first or last one.
    """

    n_rows: int
    mean: NDArray[np.float64]
    sum_squares: NDArray[np.float64]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    n_positive: NDArray[np.int64]
    first: NDArray[np.float32]
    last: NDArray[np.float32]
    histogram: NDArray[np.int64]

    @property
    def variance(self) -> NDArray[np.float64]:
        """Population variance."""
        return self.sum_squares / max(1, self.n_rows)

    @property
    def sparsity(self) -> NDArray[np.float64]:
        """Share of rows in which the neuron is not above zero."""
        return 1 - self.n_positive / max(1, self.n_rows)

    def merge(self, other: NeuronStatistics) -> NeuronStatistics:
        """Statistics of both together (Chan, Golub and LeVeque 1983, pairwise update of mean and sum of squares).

        Raises
        ------
        InputError
            If the two have other neurons or other bins.
        """
        same = self.histogram.shape == other.histogram.shape
        if not same or (self.first != other.first).any() or (self.last != other.last).any():
            raise InputError("Statistics of other neurons or bins cannot be merged.", remedy="Use one range for all.")
        total = self.n_rows + other.n_rows
        share = other.n_rows / max(1, total)
        shift = other.mean - self.mean
        return NeuronStatistics(
            n_rows=total,
            mean=self.mean + shift * share,
            sum_squares=self.sum_squares + other.sum_squares + shift**2 * self.n_rows * share,
            low=np.minimum(self.low, other.low),
            high=np.maximum(self.high, other.high),
            n_positive=self.n_positive + other.n_positive,
            first=self.first,
            last=self.last,
            histogram=self.histogram + other.histogram,
        )


class StatisticsCollector:
    """Collects `NeuronStatistics` from batches, on the device where the batches are.

    Parameters
    ----------
    first, last:
        (n_layers, n_neurons) range of the histogram's bins, such as smallest and largest training value.
    n_bins:
        Equal bins between them.
    """

    def __init__(
        self, first: NDArray[np.floating], last: NDArray[np.floating], *, n_bins: int = 100, device: str = "cpu"
    ) -> None:
        if first.shape != last.shape or first.ndim != 2 or n_bins < 1 or (last < first).any():
            raise InputError(
                f"Bins from {first.shape} to {last.shape}, {n_bins} of them; expected two (n_layers, n_neurons) arrays, "
                "first <= last, and at least one bin.",
                remedy="Give the smallest and the largest value of each neuron.",
            )
        self._first = torch.tensor(first, dtype=torch.float32, device=device)
        self._last = torch.tensor(last, dtype=torch.float32, device=device)
        shape = tuple(first.shape)
        self._n_rows = 0
        self._mean = torch.zeros(shape, dtype=torch.float64, device=device)
        self._sum_squares = torch.zeros_like(self._mean)
        self._low = torch.full(shape, torch.inf, device=device)
        self._high = torch.full(shape, -torch.inf, device=device)
        self._n_positive = torch.zeros(shape, dtype=torch.int64, device=device)
        self._histogram = torch.zeros((*shape, n_bins), dtype=torch.int64, device=device)

    @torch.inference_mode()
    def update(self, values: torch.Tensor) -> None:
        """Take in (n_layers, n_rows, n_neurons) activations, as an `ActivationBatch` holds them.

        Raises
        ------
        DataError
            If the shape is another, or a value is not a finite number.
        """
        n_layers, n_neurons, n_bins = self._histogram.shape
        if values.ndim != 3 or values.shape[0] != n_layers or values.shape[2] != n_neurons:
            raise DataError(f"Activations of shape {tuple(values.shape)}; expected ({n_layers}, n_rows, {n_neurons}).")
        if not values.shape[1]:
            return
        exact = values.float()
        mean = exact.mean(dim=1, dtype=torch.float64)
        if not torch.isfinite(mean).all():
            raise DataError("Activations hold values that are not finite.", remedy="Run the model in another dtype.")
        n_rows = values.shape[1]
        squares = (exact.double() - mean[:, None]).square_().sum(dim=1)
        shift, share = mean - self._mean, n_rows / (self._n_rows + n_rows)
        self._sum_squares += squares + shift.square() * (self._n_rows * share)
        self._mean += shift * share
        self._n_rows += n_rows
        torch.minimum(self._low, exact.amin(dim=1), out=self._low)
        torch.maximum(self._high, exact.amax(dim=1), out=self._high)
        self._n_positive += (exact > 0).sum(dim=1)
        width = ((self._last - self._first) / n_bins).clamp_min(torch.finfo(torch.float32).tiny)
        bins = ((exact - self._first[:, None]) / width[:, None]).floor_().clamp_(0, n_bins - 1).long().transpose(1, 2)
        self._histogram.scatter_add_(2, bins, torch.ones_like(bins))

    def result(self) -> NeuronStatistics:
        """The statistics of everything taken in so far."""
        arrays = {
            name: getattr(self, f"_{name}").cpu().numpy().copy()
            for name in ("mean", "sum_squares", "low", "high", "n_positive", "first", "last", "histogram")
        }
        return NeuronStatistics(n_rows=self._n_rows, **arrays)


def count_levels(levels: NDArray[np.uint8], labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """How often each neuron has each level in each class: what one-neuron probes need, and no more.

    Counts of disjoint rows add up.

    Parameters
    ----------
    levels:
        (n_rows, n_neurons) uint8.
    labels:
        (n_rows,) of +1 and −1.

    Returns
    -------
    NDArray
        (2, n_neurons, 256) int64: negatives first.

    Raises
    ------
    DataError
        If there are not as many labels as rows, or one is neither +1 nor −1.
    """
    if len(levels) != len(labels) or not np.isin(labels, (-1, 1)).all():
        raise DataError(f"{len(levels)} rows and {len(labels)} labels; expected one label of +1 or -1 a row.")
    n_neurons = levels.shape[1]
    places = np.arange(n_neurons, dtype=np.int64) * LEVEL_COUNT
    counts = np.zeros((2, n_neurons * LEVEL_COUNT), dtype=np.int64)
    # Blocks of rows keep the index array small.
    for index, label in enumerate((-1, 1)):
        chosen = levels[labels == label]
        for first in range(0, len(chosen), 1024):
            flat = (chosen[first : first + 1024] + places).reshape(-1)
            counts[index] += np.bincount(flat, minlength=n_neurons * LEVEL_COUNT)
    return counts.reshape(2, n_neurons, LEVEL_COUNT)
