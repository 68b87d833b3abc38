"""Rows of the result tables for tests: a plausible default for every column, and what the test is about written out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa

from sparse_probing import schemas
from sparse_probing.store import results
from sparse_probing.store.filesystem import Location
from sparse_probing.warehouse import catalog

Row = Mapping[str, Any]

DEFAULTS: dict[str, dict[str, Any]] = {
    "runs": {
        "run_id": "r1",
        "study": "demo",
        "model": "tiny",
        "revision": "main",
        "collection": "text_features",
        "hook": "mlp.hook_post",
        "pooling": "none",
        "layers": [0, 1],
        "n_neurons": 2,
        "n_rows": 1000,
        "n_sequences": 50,
        "n_tokens": 5000,
        "storage_dtype": "uint8",
        "model_dtype": "float32",
        "attention": "sdpa",
        "split_mode": "group",
        "seed": 42,
        "max_clipped_fraction": 0.001,
        "max_quantisation_error": 0.01,
        "quantisation_error_bound": 0.02,
        "spec": "{}",
        "package_versions": '{"torch":"2.13.0"}',
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
    },
    "features": {
        "run_id": "r1",
        "feature": "digit",
        "task": "classification",
        "level": "token",
        "prevalence": 0.2,
        "n_shared_groups": 0,
        **{f"n_{split}": n for split, n in (("train", 600), ("validation", 200), ("test", 200))},
        **{f"n_{split}_positive": n for split, n in (("train", 120), ("validation", 40), ("test", 40))},
        **{f"n_{split}_groups": 20 for split in schemas.SPLITS},
        **{f"n_{split}_groups_positive": 15 for split in schemas.SPLITS},
    },
    "neuron_scores": {
        "run_id": "r1",
        "feature": "digit",
        "layer": 0,
        "neuron": 0,
        "converged": True,
        "best_direction": 1,
        "p_value": 0.01,
        "q_value": 0.02,
        "layer_rank": 1,
        "shortlisted": True,
        "validation_mcc_low": 0.0,
        "validation_mcc_high": 1.0,
        "test_mcc_low": 0.0,
        "test_mcc_high": 1.0,
    },
    "probe_fits": {
        "run_id": "r1",
        "fit_id": "f1",
        "feature": "digit",
        "layer": 0,
        "method": "heuristic_sparsity_sweep",
        "variant": "real",
        "k": 1,
        "n_candidates": 2,
        "step": 0,
        "status": "ok",
        "converged": True,
        "fit_seconds": 0.1,
    },
    "probe_supports": {
        "run_id": "r1",
        "fit_id": "f1",
        "layer": 0,
        "neuron": 0,
        "position_in_support": 0,
        "coef": 1.0,
    },
    "test_labels": {"run_id": "r1", "feature": "digit", "n_rows": 8, "truth": b"\x0f", "group_code": bytes(range(32))},
    "test_predictions": {"run_id": "r1", "feature": "digit", "probe_id": "0/0", "predicted": b"\x0f"},
    "comparisons": {
        "run_id": "r1",
        "feature": "digit",
        "metric": "mcc",
        "probe_id": "0/0",
        "other_run_id": "r1",
        "other_probe_id": "0/1",
        "difference_low": -0.25,
        "difference_high": 0.25,
    },
    "check_results": {
        "run_id": "r1",
        "check_name": "check_row_counts",
        "suite": "check_views",
        "severity": "error",
        "n_violations": 0,
        "passed": True,
        "checked_at": datetime(2026, 1, 1, tzinfo=UTC),
    },
}


_SOME_VALUE: tuple[tuple[Callable[[pa.DataType], bool], Any], ...] = (
    (pa.types.is_string, "digest"),
    (pa.types.is_floating, 0.5),
    (pa.types.is_integer, 0),
    (pa.types.is_boolean, False),
    (pa.types.is_list, []),
    (pa.types.is_binary, b""),
    (pa.types.is_timestamp, datetime(2026, 1, 1, tzinfo=UTC)),
)


def complete(kind: str, row: Row) -> dict[str, Any]:
    """The row with every column of its table; what has no default is null, or some value of its type."""
    full: dict[str, Any] = {}
    defaults = {"run_id": "r1"} | DEFAULTS.get(kind, {})
    if kind == "runs":
        # Each a question of its own.
        row = {"spec": json.dumps({"run": row.get("run_id", "r1")}), **row}
    for field in schemas.TABLES[kind]:
        if field.name in row or field.name in defaults:
            full[field.name] = row.get(field.name, defaults.get(field.name))
        elif field.nullable:
            full[field.name] = None
        else:
            full[field.name] = next(value for is_of, value in _SOME_VALUE if is_of(field.type))
    unknown = set(row) - set(full)
    if unknown:
        raise KeyError(f"{kind} has no {unknown}")
    return full


def table(kind: str, rows: Sequence[Row]) -> pa.Table:
    return pa.Table.from_pylist([complete(kind, row) for row in rows], schema=schemas.TABLES[kind])


def database(**tables: Sequence[Row]) -> duckdb.DuckDBPyConnection:
    """An in-memory database with all tables and views of sql/, and the given rows."""
    con = duckdb.connect()
    catalog.create_tables(con)
    catalog.create_views(con)
    for kind, rows in tables.items():
        insert(con, kind, rows)
    return con


def insert(con: duckdb.DuckDBPyConnection, kind: str, rows: Sequence[Row]) -> None:
    """Add rows to a table."""
    con.register("new_rows", table(kind, rows))
    con.execute(f"insert into {kind} select * from new_rows")
    con.unregister("new_rows")


def write_fragment(root: Location, kind: str, run_id: str, rows: Sequence[Row], n_files: int = 1) -> Location:
    """A finished result fragment, as a task writes it."""
    everything = table(kind, [{**row, "run_id": run_id} for row in rows])
    size = -(-everything.num_rows // n_files)
    pieces = (everything.slice(i * size, size) for i in range(n_files))
    results.write_fragment(root, kind, run_id, pieces, spec={}, digest=f"{kind}-{run_id}")
    return results.run_folder(root, kind, run_id)


def write_run(root: Location, run_id: str, *, test_mcc: float = 0.5, features: Sequence[str] = ("digit",)) -> None:
    """Fragments of every kind of a small run in which all checks pass: two layers of two neurons."""
    places = [(feature, layer) for feature in features for layer in (0, 1)]
    write_fragment(root, "runs", run_id, [{}])
    write_fragment(root, "features", run_id, [{"feature": feature} for feature in features])
    write_fragment(
        root,
        "neuron_scores",
        run_id,
        [
            {"feature": feature, "layer": layer, "neuron": neuron, "test_mcc": test_mcc, "shortlisted": neuron == 0}
            for feature, layer in places
            for neuron in (0, 1)
        ],
        n_files=2,
    )
    scores = {f"{split}_mcc": test_mcc for split in schemas.SPLITS}
    write_fragment(
        root,
        "probe_fits",
        run_id,
        [{"fit_id": f"{feature}-{layer}", "feature": feature, "layer": layer, **scores} for feature, layer in places],
    )
    write_fragment(
        root,
        "probe_supports",
        run_id,
        [{"fit_id": f"{feature}-{layer}", "layer": layer} for feature, layer in places],
    )
    write_fragment(root, "test_labels", run_id, [{"feature": feature} for feature in features])
    write_fragment(
        root,
        "test_predictions",
        run_id,
        [
            {"feature": feature, "probe_id": probe_id}
            for feature, layer in places
            for probe_id in (f"{layer}/0", f"{feature}-{layer}")
        ],
    )
    for kind in schemas.RESULT_KINDS:
        if kind not in DEFAULTS:
            write_fragment(root, kind, run_id, [])
