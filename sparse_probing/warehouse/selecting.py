"""Which layer is best for each feature of a run that is not finished yet: asked of the views that rank finished runs.

One rule decides, for finished runs and for the others. The parts of a run come as Arrow tables; no file is read or written here.
"""

from __future__ import annotations

from collections.abc import Iterable

import duckdb
import pyarrow as pa

from sparse_probing import schemas
from sparse_probing.warehouse import catalog

# What view ordered_neurons reads of scores.
SCORE_COLUMNS = ("run_id", "feature", "layer", "neuron", "shortlisted", "validation_mcc", "train_mcc", "train_roc_auc")
_VIEWS = ("121_ordered_neurons.sql", "130_scored_fits.sql", "131_ordered_fits.sql")


def best_layers(features: pa.Table, scores: Iterable[pa.Table], fits: Iterable[pa.Table]) -> dict[str, int]:
    """For each feature, the layer that validation finds best: where costly methods are fitted.

    Parameters
    ----------
    features:
        The run's rows of `schemas.FEATURES`.
    scores:
        neuron_scores of layers, of which `SCORE_COLUMNS` are read: the layer of the neuron that ranks first.
    fits:
        probe_fits of layers: for features without scores, whose targets are numbers, the layer of the best real probe.
    """
    with duckdb.connect() as connection:
        catalog.create_tables(connection)
        # Of the millions of scores a few columns are needed, and table neuron_scores wants all.
        few = pa.schema([schemas.NEURON_SCORES.field(name) for name in SCORE_COLUMNS])
        _insert(connection, f"create table {catalog.KEPT_SCORES} as", [few.empty_table()], few)
        _insert(connection, f"insert into {catalog.KEPT_SCORES}", _short(scores), few)
        _insert(connection, "insert into features", [features], schemas.FEATURES)
        _insert(connection, "insert into probe_fits", fits, schemas.PROBE_FITS)
        for name in _VIEWS:
            connection.execute((catalog.sql_folder() / name).read_text(encoding="utf-8"))
        found = connection.execute(
            """
            select feature, layer from ordered_neurons where rank = 1
            union all
            select feature, layer from ordered_fits
            where place = 1 and variant = 'real' and metric = 'r2' and layer is not null
            order by feature
            """
        ).fetchall()
    return {str(feature): int(layer) for feature, layer in found}


def _short(scores: Iterable[pa.Table]) -> Iterable[pa.Table]:
    return (table.filter(table.column("shortlisted")) for table in scores)


def _insert(connection: duckdb.DuckDBPyConnection, into: str, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    for table in tables:
        connection.register("part", table)
        connection.execute(f"{into} select {', '.join(schema.names)} from part")
        connection.unregister("part")
