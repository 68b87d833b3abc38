"""From the parts of a run to its result tables: layers put together, q-values over all of them.

One layer at a time is in memory, beside a summary of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparse_probing import schemas
from sparse_probing.probes.uncertainty import false_discoveries
from sparse_probing.store import results
from sparse_probing.store.filesystem import Location


@dataclass(frozen=True, eq=False)
class LayerSummary:
    """What of a layer's results decides on other layers: a few rows instead of one for every neuron.

    Attributes
    ----------
    scores:
        The shortlisted rows of neuron_scores, columns `warehouse.selecting.SCORE_COLUMNS`.
    fits:
        The layer's probe_fits.
    smallest_p_values:
        Of the layer's neurons, for each feature.
    """

    scores: pa.Table
    fits: pa.Table
    smallest_p_values: tuple[float, ...]


def summarise(scores: pa.Table, fits: pa.Table) -> LayerSummary:
    """A layer's summary, from its neuron_scores (the columns that `read_summary` reads, at least) and probe_fits."""
    # Not at the top: what a failed task holds is held to the end of the process, and DuckDB prints complaints then.
    from sparse_probing.warehouse import selecting

    smallest = [false_discoveries.smallest_p_value(p_values) for _, p_values in _families(scores)]
    short = scores.select(list(selecting.SCORE_COLUMNS)).filter(scores.column("shortlisted"))
    return LayerSummary(short, fits, tuple(smallest))


def read_summary(root: Location, run_id: str, layer: int) -> LayerSummary:
    """The summary of a layer whose part is on disk."""
    from sparse_probing.warehouse import selecting

    part, columns = results.layer_part(layer), [*selecting.SCORE_COLUMNS, "p_value"]
    scores = results.read_part(root, run_id, part, "neuron_scores", columns=columns)
    return summarise(scores, results.read_part(root, run_id, part, "probe_fits"))


def best_layers_of_run(features: pa.Table, summaries: Iterable[LayerSummary]) -> dict[str, int]:
    """`selecting.best_layers` of a run's layers."""
    from sparse_probing.warehouse import selecting

    layers = list(summaries)
    return selecting.best_layers(features, (one.scores for one in layers), (one.fits for one in layers))


def finished_tables(
    root: Location, run_id: str, layers: Sequence[int], best_parts: Sequence[str], summaries: Iterable[LayerSummary]
) -> dict[str, Iterable[pa.Table]]:
    """Every kind that the parts of a run hold, scores with q-values; read one part at a time as they are asked for.

    Parameters
    ----------
    summaries:
        Of the layers, in their order.
    """
    names = [results.layer_part(layer) for layer in layers]

    def parts(kind: str, names: Sequence[str]) -> Iterator[pa.Table]:
        return (results.read_part(root, run_id, part, kind) for part in names)

    rates = run_rates(summaries)
    tables: dict[str, Iterable[pa.Table]] = {kind: parts(kind, [*names, *best_parts]) for kind in results.PART_KINDS}
    return tables | {"neuron_scores": (with_q_values(table, rates) for table in parts("neuron_scores", names))}


def run_rates(summaries: Iterable[LayerSummary]) -> false_discoveries.FamilyRates:
    """The run's false discovery rates: one hypothesis a feature and layer, that its best neuron is better than chance."""
    return false_discoveries.FamilyRates([value for one in summaries for value in one.smallest_p_values])


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
