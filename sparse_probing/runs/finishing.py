"""From the parts of a run to its result tables: layers put together, q-values over all of them.

One layer at a time is in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparse_probing import schemas
from sparse_probing.probes.uncertainty import false_discoveries
from sparse_probing.store import results
from sparse_probing.store.filesystem import Location


def best_layers_of_run(root: Location, run_id: str, layers: Sequence[int], features: pa.Table) -> dict[str, int]:
    """`selecting.best_layers` of the layers' parts on disk; a few columns of one layer at a time are in memory."""
    # Not at the top: what a failed task holds is held to the end of the process, and DuckDB prints complaints then.
    from sparse_probing.warehouse import selecting

    scores = _of_layers(root, run_id, layers, "neuron_scores", selecting.SCORE_COLUMNS)
    fits = (results.read_part(root, run_id, results.layer_part(layer), "probe_fits") for layer in layers)
    return selecting.best_layers(features, scores, fits)


def _of_layers(
    root: Location, run_id: str, layers: Sequence[int], kind: str, columns: Sequence[str]
) -> Iterator[pa.Table]:
    for layer in layers:
        yield results.read_part(root, run_id, results.layer_part(layer), kind, columns=list(columns))


def finished_tables(
    root: Location, run_id: str, layers: Sequence[int], best_parts: Sequence[str]
) -> dict[str, Iterable[pa.Table]]:
    """Every kind that the parts of a run hold, scores with q-values; read one part at a time as they are asked for."""
    names = [results.layer_part(layer) for layer in layers]

    def parts(kind: str, names: Sequence[str]) -> Iterator[pa.Table]:
        return (results.read_part(root, run_id, part, kind) for part in names)

    rates = run_rates(_of_layers(root, run_id, layers, "neuron_scores", P_VALUE_COLUMNS))
    tables: dict[str, Iterable[pa.Table]] = {kind: parts(kind, [*names, *best_parts]) for kind in results.PART_KINDS}
    return tables | {"neuron_scores": (with_q_values(table, rates) for table in parts("neuron_scores", names))}


P_VALUE_COLUMNS = ("feature", "p_value")


def run_rates(layers: Iterable[pa.Table]) -> false_discoveries.FamilyRates:
    """The run's false discovery rates: one hypothesis a feature and layer, that its best neuron is better than chance.

    Parameters
    ----------
    layers:
        neuron_scores of each layer, of which `P_VALUE_COLUMNS` are read.
    """
    return false_discoveries.FamilyRates(
        [false_discoveries.smallest_p_value(p_values) for table in layers for _, p_values in _families(table)]
    )


def with_q_values(table: pa.Table, rates: false_discoveries.FamilyRates) -> pa.Table:
    """A layer's neuron_scores with its q-values filled in."""
    column = np.ones(table.num_rows, np.float32)
    for rows, p_values in _families(table):
        column[rows] = rates.q_values(p_values)
    at = schemas.NEURON_SCORES.get_field_index("q_value")
    return table.set_column(at, schemas.NEURON_SCORES.field(at), pa.array(column, pa.float32()))


def _families(table: pa.Table) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """Rows and p-values of each feature of a layer."""
    codes, p_values = _feature_codes(table), table.column("p_value").to_numpy()
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        yield rows, p_values[rows]


def _feature_codes(table: pa.Table) -> NDArray[np.int32]:
    return np.asarray(table.column("feature").combine_chunks().dictionary_encode().indices, np.int32)
