"""Which neurons of which layers an artifact holds, and where each layer's values lie in a row.

Decided from a spec and a model's hook points, before anything runs; no activation and no file here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import nn

from sparse_probing import schemas
from sparse_probing.activations.chosen_neurons import check_neurons
from sparse_probing.config import ExtractionSpec
from sparse_probing.models.hooks import HookPoint, canonical_hook, check_layers, find_points


@dataclass(frozen=True)
class Columns:
    """The neurons of each layer, in the order of the columns in which they are stored.

    Values of all layers of a row are handled as one array of `shape`: (n_layers, width) if every layer is held whole,
    else one long row, layer after layer. `at` says where a layer lies in it.

    Attributes
    ----------
    layers:
        Layers held, ascending.
    neurons:
        (n_neurons,) ids for each layer, ascending.
    width:
        Neurons of a layer of the model, held or not.
    is_whole:
        Whether every layer is held from its first neuron to its last.
    """

    layers: tuple[int, ...]
    neurons: tuple[NDArray[np.int32], ...]
    width: int
    is_whole: bool

    @property
    def counts(self) -> tuple[int, ...]:
        """Neurons held of each layer."""
        return tuple(len(ids) for ids in self.neurons)

    @property
    def n_values(self) -> int:
        """Values in a row, over all layers."""
        return sum(self.counts)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of a row's values."""
        return (len(self.layers), self.width) if self.is_whole else (1, self.n_values)

    def at(self, index: int) -> tuple[int, slice]:
        """Where the values of the index-th layer lie in an array of `shape`."""
        if self.is_whole:
            return index, slice(None)
        first = sum(self.counts[:index])
        return 0, slice(first, first + self.counts[index])

    def axes(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(n_values,) layer and neuron of every value."""
        return np.repeat(np.array(self.layers, np.int32), self.counts), np.concatenate(self.neurons)

    def table(self) -> pa.Table:
        """One row a value (schema `NEURONS`)."""
        layer, neuron = self.axes()
        column = np.concatenate([np.arange(n, dtype=np.int32) for n in self.counts])
        return pa.table({"layer": layer, "neuron": neuron, "column": column}, schema=schemas.NEURONS)


def choose_columns(model: nn.Module, spec: ExtractionSpec) -> tuple[list[HookPoint], Columns]:
    """The hook points that a spec needs of a model, in order of layer, and the neurons that it keeps of them.

    Raises
    ------
    InputError
        If the hook, a layer or a neuron is not there.
    """
    hook = canonical_hook(spec.hook)
    wanted = spec.neurons_by_layer()
    if wanted is None:
        points = find_points(model, hook, spec.layers)
        width = points[0].width
        ids = np.arange(width, dtype=np.int32)
        return points, Columns(tuple(point.layer for point in points), (ids,) * len(points), width, True)
    check_neurons(spec, type(model).__name__, n_layers=check_layers(model, hook)[-1] + 1)
    points = find_points(model, hook, tuple(wanted))
    for point in points:
        check_neurons(spec, type(model).__name__, width=point.width, layer=point.layer)
    neurons = tuple(np.array(wanted[point.layer], dtype=np.int32) for point in points)
    return points, Columns(tuple(wanted), neurons, points[0].width, False)
