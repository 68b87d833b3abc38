"""Statistics of neurons from a stream of activations, none of them stored; statistics of batches and machines add up.

A mutable collector takes batches in any order; the frozen result carries the numbers. Merging the results of two halves
gives the result of the whole. Fixed memory: it grows with neurons and bins, never with rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_probing.errors import DataError, InputError


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
        n_layers, n_neurons, _ = self._histogram.shape
        if values.ndim != 3 or values.shape[0] != n_layers or values.shape[2] != n_neurons:
            raise DataError(f"Activations of shape {tuple(values.shape)}; expected ({n_layers}, n_rows, {n_neurons}).")
        if not values.shape[1]:
            return
        check_finite(values)
        for layer in range(n_layers):
            self._update_layer(layer, values[layer].float())
        self._n_rows += values.shape[1]

    def _update_layer(self, layer: int, exact: torch.Tensor) -> None:
        """Take in (n_rows, n_neurons) of one layer: in float64 and as bins a batch of all layers is large."""
        n_rows, n_bins = len(exact), self._histogram.shape[-1]
        mean = exact.mean(dim=0, dtype=torch.float64)
        squares = (exact.double() - mean).square_().sum(dim=0)
        shift, share = mean - self._mean[layer], n_rows / (self._n_rows + n_rows)
        self._sum_squares[layer] += squares + shift.square() * (self._n_rows * share)
        self._mean[layer] += shift * share
        torch.minimum(self._low[layer], exact.amin(dim=0), out=self._low[layer])
        torch.maximum(self._high[layer], exact.amax(dim=0), out=self._high[layer])
        self._n_positive[layer] += (exact > 0).sum(dim=0)
        first = self._first[layer]
        width = ((self._last[layer] - first) / n_bins).clamp_min(torch.finfo(torch.float32).tiny)
        bins = ((exact - first) / width).floor_().clamp_(0, n_bins - 1).long().T
        self._histogram[layer].scatter_add_(1, bins, torch.ones_like(bins))

    def result(self) -> NeuronStatistics:
        """The statistics of everything taken in so far."""
        arrays = {
            name: getattr(self, f"_{name}").cpu().numpy().copy()
            for name in ("mean", "sum_squares", "low", "high", "n_positive", "first", "last", "histogram")
        }
        return NeuronStatistics(n_rows=self._n_rows, **arrays)


def check_finite(values: torch.Tensor) -> None:
    """Raise a DataError if an activation is not a finite number."""
    if not torch.isfinite(values).all():
        raise DataError("Activations hold values that are not finite.", remedy="Run the model in another dtype.")
