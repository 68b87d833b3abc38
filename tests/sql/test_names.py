"""One name for one quantity: what the columns of all views are called, and that none carries another's values."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from sparse_probing import schemas
from sparse_probing.warehouse import catalog
from tests.sql.rows import DEFAULTS, database

# Beside the columns of the tables, which keep their names, and those that a view's header introduces (-- column NAME: …).
# Each entry is a quantity that no other name may have.
GLOSSARY = {
    "model_id": "what the profile names as the model",
    "training_step": "step of training, given or named by the revision",
    "requested_revision": "what the study asked for",
    "resolved_revision": "what that was when the run was made",
    "superseded_by": "newer run that answers the same question",
    "series_id": "checkpoints of one model that can be compared",
    "position_in_series": "place of a checkpoint in the order of training",
    "threshold": "activation at which a neuron's logistic regression is undecided",
    "direction": "+1 rises with the feature, -1 falls",
    "n_test_negative": "labelled test rows that are not positive",
    "earlier_direction": "direction of the earlier best neuron",
    "later_direction": "direction of the later best neuron",
    "place": "place among the fits of the feature and variant, by validation",
    "smallest_p_value": "what so many permutations can give at the least",
    "p_value_is_bound": "whether no permutation reached the neuron",
    "rank": "place among the feature's shortlisted neurons of the model, by validation",
    "ties": "shortlisted neurons that the first is not shown to beat",
    "selection_metric": "what the rank is by",
    "is_best_layer": "whether the layer holds the feature's best neuron",
    "metric": "what a fit is judged by",
    "is_dense": "whether a fit may use every neuron",
    "is_rotated": "whether a fit's neurons are directions of a random basis",
    "n_layers": "layers that were fitted at this k",
    "dense_layer": "layer of the feature's dense probe",
    "smallest_k": "fewest neurons that reach the target",
    "largest_k_tried": "most neurons of a sparse probe",
    "n_features": "features that a neuron responds to",
    "features": "their names",
    "directions": "their directions",
    "validation_mccs": "their validation MCCs",
    "method_a": "first method of a pair",
    "method_b": "second method of a pair",
    "ranking_a": "ranking of the first",
    "ranking_b": "ranking of the second",
    "n_candidates_a": "neurons that the first could choose from",
    "n_candidates_b": "neurons that the second could choose from",
    "n_shared": "neurons of both supports",
    "n_union": "neurons of either support",
    "jaccard": "n_shared over n_union",
    "certified": "whether the optimum was proved",
    "same_neuron": "whether the best neuron stayed the same",
    "changed": "whether an interval of a change does not hold 0",
    "probe_is_better": "whether the interval of a difference lies above 0",
    "list": "which published list a neuron belongs to",
    "dataset": "collection, tokenizer, context length and sequences, as the published lists write them",
    "name": "name of a check",
    "violations": "rows of a check",
    "subject": "what violates a check",
    "found": "what was found there",
    "expected": "what was expected there",
    "severity": "error or warning",
}
INTRODUCED = catalog.new_columns()
KNOWN = set(GLOSSARY)
GLOSSARY |= dict(INTRODUCED)
ROLES = ("dense_", "target_", "earlier_neuron_", "earlier_", "later_")
SCORE = re.compile(
    rf"({'|'.join(ROLES)})?((train|validation|test)_)?(best_)?"
    rf"({'|'.join(schemas.CLASSIFICATION_METRICS + schemas.REGRESSION_METRICS)})(_low|_high|_change|s)?"
)
TABLE_COLUMNS = {name for schema in schemas.TABLES.values() for name in schema.names}
# Names that were, or might be, second ones.
SYNONYMS = re.compile(r"(.*_)?(score|scores|sign|cutoff|cut|model_name|n_pos|n_neg|matthews|auc|low|high)")


def view_columns(con: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    return con.execute(
        "select columns.table_name, columns.column_name from duckdb_columns() as columns "
        "inner join duckdb_views() as views on columns.table_name = views.view_name and not views.internal "
        "where not columns.internal order by all"
    ).fetchall()


def base_name(column: str) -> str:
    return next((column.removeprefix(role) for role in ROLES if column.startswith(role)), column)


def test_every_column_of_every_view_has_a_name_of_the_glossary() -> None:
    columns = view_columns(database())
    assert len({view for view, _ in columns}) > 30
    unknown = [
        f"{view}.{column}"
        for view, column in columns
        if column not in TABLE_COLUMNS | set(GLOSSARY)
        and base_name(column) not in TABLE_COLUMNS
        and not SCORE.fullmatch(column)
    ]
    assert not unknown, (
        "name the quantity as it is named elsewhere, or introduce it in the view's header: -- column NAME: what it is"
    )
    names = [name for name, _ in INTRODUCED]
    assert len(set(names)) == len(names), "two views introduce one name"
    assert not set(names) & (KNOWN | TABLE_COLUMNS), "introduced in a header, and known already"
    assert len(set(GLOSSARY.values())) == len(GLOSSARY)
    unused = set(GLOSSARY) - {column for _, column in columns}
    assert not unused


def test_no_view_uses_a_second_name() -> None:
    scores = {column for _, column in view_columns(database()) if SCORE.fullmatch(column)}
    synonyms = {column for _, column in view_columns(database()) if SYNONYMS.fullmatch(column)}
    synonyms -= scores | {"difference_low", "difference_high"}
    assert not synonyms
    # A metric is always on a split.
    assert {name for name in scores if not re.search("train|validation|test|target", name)} == set()


@pytest.mark.parametrize("name", ["validation_score", "test_low", "dense_test_score", "model_rank", "mcc_validation"])
def test_the_names_that_were_second_ones_would_be_found(name: str) -> None:
    known = name in TABLE_COLUMNS | set(GLOSSARY) or base_name(name) in TABLE_COLUMNS or SCORE.fullmatch(name)
    assert not known or SYNONYMS.fullmatch(name)


def unlike_any_other(kind: str, numbers: Iterator[int], **fixed: Any) -> dict[str, Any]:
    """A row whose every value occurs nowhere else; `fixed` and what decides what a row is keep theirs."""
    row: dict[str, Any] = {}
    for field in schemas.TABLES[kind]:
        number = next(numbers)
        if field.name in fixed:
            row[field.name] = fixed[field.name]
        elif pa.types.is_string(field.type):
            row[field.name] = f"{kind} {number}"
        elif pa.types.is_floating(field.type):
            row[field.name] = number / 4096
        elif pa.types.is_integer(field.type) and field.name not in ("best_direction", "layer", "neuron", "k", "step"):
            row[field.name] = 1000 + number
        elif pa.types.is_timestamp(field.type):
            row[field.name] = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number)
        elif field.name in DEFAULTS[kind]:
            row[field.name] = DEFAULTS[kind][field.name]
    return row


def test_no_column_carries_the_values_of_another_s_name() -> None:
    numbers = itertools.count(1)
    runs: list[dict[str, Any]] = []
    features: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    fits: list[dict[str, Any]] = []
    checks: list[dict[str, Any]] = []
    same = {
        "model": "one model", "spec": "{}", "layers": [0], "collection": "one collection", "dataset_digest": "one dataset",
        "hook": "one hook", "pooling": "one pooling", "probing_digest": "one probing", "storage_dtype": "one storage",
        "model_dtype": "one dtype", "attention": "one attention",
    }  # fmt: skip
    for run_id in ("run one", "run two"):
        runs.append(unlike_any_other("runs", numbers, run_id=run_id, **same))
        for feature, task in (("a", "classification"), ("b", "regression")):
            of = {"run_id": run_id, "feature": feature}
            features.append(unlike_any_other("features", numbers, task=task, level="token", **of))
            if task == "classification":
                scores.append(
                    unlike_any_other(
                        "neuron_scores", numbers, layer=0, neuron=0, shortlisted=True, converged=True, **of
                    )
                )
            for variant in ("real", "dense", "shuffled_labels"):
                known = {"variant": variant, "layer": 0, "k": 1, "step": 0, "converged": True, "status": "optimal"}
                fits.append(unlike_any_other("probe_fits", numbers, **known, **of))
        checks.append(unlike_any_other("check_results", numbers, run_id=run_id, severity="error", passed=True))
    con = database(runs=runs, features=features, neuron_scores=scores, probe_fits=fits, check_results=checks)
    written = [
        (value, name)
        for row in (*runs, *features, *scores, *fits, *checks)
        for name, value in row.items()
        if isinstance(value, float | datetime) or (isinstance(value, int) and value > 1000) or " " in str(value)
    ]
    names: dict[object, set[str]] = {}
    for value, name in written:
        names.setdefault(value, set()).add(name)
    renamed = {
        "name": "check_name",
        "violations": "n_violations",
        "model_id": "model",
        "requested_revision": "revision",
        "resolved_revision": "revision",
        "probe_id": "fit_id",
        "other_probe_id": "fit_id",
        "other_run_id": "run_id",
    }  # model_id: where no spec has one
    wrong, seen = set(), set()
    for view in dict.fromkeys(view for view, _ in view_columns(con)):
        cursor = con.execute(f"select * from {view}")
        columns = [column[0] for column in cursor.description or ()]
        for row in cursor.fetchall():
            for column, value in zip(columns, row, strict=True):
                if isinstance(value, float | int | str | datetime) and value in names:
                    seen.add(view)
                    if not {column, base_name(column), renamed.get(column, column)} & names[value]:
                        wrong.add(f"{view}.{column} carries {' or '.join(sorted(names[value]))}")
    assert not wrong
    assert seen >= {
        "best_neuron_per_feature",
        "baselines",
        "sparsity_curves",
        "checkpoint_changes",
        "best_target_probes",
    }
    assert seen >= {"optimal_certificates", "validation_checks", "named_runs", "feature_sparsity", "layer_profiles"}
