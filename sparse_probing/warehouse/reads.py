"""Typed reads of the snapshot for the command line and the reports: frozen rows out, or a pandas frame.

The questions themselves are views in `sql/`; here they are asked, filtered by run, and given types. Statements of a
user's own are answered in `asking`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import duckdb
import pyarrow as pa

from sparse_probing.errors import InputError
from sparse_probing.warehouse.connection import one_line

if TYPE_CHECKING:
    import pandas as pd

_Row = TypeVar("_Row")
_BEST_ORDER = "model, revision, collection, run_id, validation_mcc desc nulls last, feature"


@dataclass(frozen=True)
class Run:
    """One row of view `named_runs`: a run and its provenance, under names that no other weights have."""

    run_id: str
    study: str
    model: str
    model_id: str
    revision: str
    collection: str
    hook: str
    pooling: str
    layers: tuple[int, ...]
    n_neurons: int
    n_rows: int
    n_sequences: int
    n_tokens: int
    storage_dtype: str
    model_dtype: str
    attention: str
    split_mode: str
    seed: int
    weights_digest: str
    tokenizer_digest: str
    dataset_digest: str
    activations_digest: str
    probing_digest: str
    max_clipped_fraction: float
    max_quantisation_error: float | None
    quantisation_error_bound: float | None
    spec: str
    package_versions: str
    created_at: datetime
    superseded_by: str | None


@dataclass(frozen=True)
class BestNeuron:
    """One row of view `best_neuron_per_feature`: chosen on validation, reported on test."""

    run_id: str
    model: str
    revision: str
    collection: str
    hook: str
    feature: str
    layer: int
    neuron: int
    ties: int | None
    validation_mcc: float | None
    validation_mcc_low: float | None
    validation_mcc_high: float | None
    test_mcc: float | None
    test_mcc_low: float | None
    test_mcc_high: float | None
    prevalence: float
    q_value: float
    p_value_is_bound: bool | None
    direction: int
    threshold: float | None
    n_test: int
    n_test_positive: int
    n_test_negative: int
    n_test_groups: int
    n_test_groups_positive: int


@dataclass(frozen=True)
class ProbedFeature:
    """What a feature's test scores rest on, from view `probed_features`. A feature with targets has no positive rows."""

    run_id: str
    feature: str
    task: str
    n_test: int
    n_test_positive: int
    n_test_groups: int
    n_test_groups_positive: int


@dataclass(frozen=True)
class BestTargetProbe:
    """One row of view `best_target_probes`: the best sparse probe of a feature whose targets are numbers."""

    run_id: str
    model: str
    revision: str
    collection: str
    hook: str
    feature: str
    method: str
    k: int
    layer: int | None
    validation_r2: float | None
    test_r2: float | None
    test_r2_low: float | None
    test_r2_high: float | None
    dense_test_r2: float | None
    n_test: int
    n_test_groups: int


@dataclass(frozen=True)
class Check:
    """One row of view `validation_checks`."""

    run_id: str
    model: str | None
    collection: str | None
    suite: str
    name: str
    severity: str
    violations: int
    passed: bool
    detail: str | None


@dataclass(frozen=True)
class ArtifactCost:
    """What the artifacts of one kind cost that runs were made from, from view `lineage`; each counts once.

    Attributes
    ----------
    kind:
        ``dataset``, ``activations`` or ``run``.
    n_artifacts, n_timed:
        How many there are, and of how many it is known how long they took.
    bytes, seconds:
        Sums over those of which they are known; None where they are known of none.
    """

    kind: str
    n_artifacts: int
    n_timed: int
    bytes: int | None
    seconds: float | None


def runs(con: duckdb.DuckDBPyConnection, run_ids: Iterable[str] | None = None) -> list[Run]:
    """All runs that none supersedes, or of the given ones, by model, revision, collection and age."""
    found = _rows(con, Run, "named_runs", run_ids, "model, revision, collection, created_at, run_id")
    return [run for run in found if run.superseded_by is None]


def superseded_runs(con: duckdb.DuckDBPyConnection) -> list[Run]:
    """Runs that a newer run took the place of; rankings leave them out."""
    found = _rows(con, Run, "named_runs", None, "model, revision, collection, created_at, run_id")
    return [run for run in found if run.superseded_by is not None]


def best_neurons(con: duckdb.DuckDBPyConnection, run_ids: Iterable[str] | None = None) -> list[BestNeuron]:
    """The best neuron of every feature, best first within its model, revision and collection."""
    return _rows(con, BestNeuron, "best_neuron_per_feature", run_ids, _BEST_ORDER)


def best_neurons_table(con: duckdb.DuckDBPyConnection, run_ids: Iterable[str] | None = None) -> pa.Table:
    """View `best_neuron_per_feature` with all its columns, in the order of `best_neurons`, as an Arrow table."""
    return _select(con, "*", "best_neuron_per_feature", run_ids, _BEST_ORDER).to_arrow_table()


def probed_features(con: duckdb.DuckDBPyConnection, run_ids: Iterable[str] | None = None) -> list[ProbedFeature]:
    """Every feature of every run, with the rows and groups that its test scores rest on."""
    return _rows(con, ProbedFeature, "probed_features", run_ids, "run_id, feature")


def best_target_probes(con: duckdb.DuckDBPyConnection, run_ids: Iterable[str] | None = None) -> list[BestTargetProbe]:
    """The best sparse probe of every feature whose targets are numbers, best first within its run."""
    order = "model, revision, collection, run_id, validation_r2 desc nulls last, feature"
    return _rows(con, BestTargetProbe, "best_target_probes", run_ids, order)


def checks(con: duckdb.DuckDBPyConnection, run_ids: Iterable[str] | None = None) -> list[Check]:
    """Every check of every run: failed ones first, errors before warnings."""
    order = "passed, severity, run_id, suite desc, name"
    return _rows(con, Check, "validation_checks", run_ids, order)


def artifact_costs(con: duckdb.DuckDBPyConnection, run_ids: Iterable[str] | None = None) -> list[ArtifactCost]:
    """Bytes and seconds of everything that runs were made from, by kind, in the order of the work."""
    found = _select(con, "distinct kind, path, bytes, seconds", "lineage", run_ids, "kind, path").fetchall()
    costs = []
    for kind in ("dataset", "activations", "run"):
        of_kind = [row for row in found if row[0] == kind]
        sizes = [size for _, _, size, _ in of_kind if size is not None]
        seconds = [taken for *_, taken in of_kind if taken is not None]
        total = sum(seconds) if seconds else None
        costs.append(ArtifactCost(kind, len(of_kind), len(seconds), sum(sizes) if sizes else None, total))
    return costs


def sparsity_curves(con: duckdb.DuckDBPyConnection, run_ids: Iterable[str] | None = None) -> pd.DataFrame:
    """View `sparsity_curves`, ordered so that each curve's points follow one another."""
    order = "run_id, feature, variant, method, ranking, step, k"
    return _frame(con, "sparsity_curves", run_ids, order)


def layer_heatmap(con: duckdb.DuckDBPyConnection, run_ids: Iterable[str] | None = None) -> pd.DataFrame:
    """View `layer_profiles`: the best neuron of every feature in every layer."""
    return _frame(con, "layer_profiles", run_ids, "run_id, feature, layer")


def baselines(con: duckdb.DuckDBPyConnection, run_ids: Iterable[str] | None = None) -> pd.DataFrame:
    """View `baselines`: the best real fit of every feature beside each baseline."""
    return _frame(con, "baselines", run_ids, "run_id, feature, variant")


def checkpoint_trajectories(con: duckdb.DuckDBPyConnection, run_ids: Iterable[str] | None = None) -> pd.DataFrame:
    """View `checkpoint_trajectories`: best neurons from revision to revision."""
    return _frame(con, "checkpoint_trajectories", run_ids, "series_id, feature, position_in_series")


def checkpoint_neurons(con: duckdb.DuckDBPyConnection, run_ids: Iterable[str] | None = None) -> pd.DataFrame:
    """View `checkpoint_neurons`: the neurons that are best at some checkpoint, at every checkpoint."""
    return _frame(con, "checkpoint_neurons", run_ids, "series_id, feature, layer, neuron, position_in_series")


def neuron_lists(con: duckdb.DuckDBPyConnection) -> pd.DataFrame:
    """View `neuron_lists`: one row per list, run, feature and neuron, best first within a feature."""
    return _frame(con, "neuron_lists", None, "list, model, revision, hook, dataset, feature, rank, layer, neuron")


def _rows(
    con: duckdb.DuckDBPyConnection, kind: type[_Row], source: str, run_ids: Iterable[str] | None, order: str
) -> list[_Row]:
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    found = _select(con, ", ".join(names), source, run_ids, order).fetchall()
    return [kind(*(tuple(value) if isinstance(value, list) else value for value in row)) for row in found]


def _frame(con: duckdb.DuckDBPyConnection, source: str, run_ids: Iterable[str] | None, order: str) -> pd.DataFrame:
    return _select(con, "*", source, run_ids, order).df()


def _select(
    con: duckdb.DuckDBPyConnection, columns: str, source: str, run_ids: Iterable[str] | None, order: str
) -> duckdb.DuckDBPyRelation:
    parameters: Sequence[Any] = [] if run_ids is None else [list(run_ids)]
    condition = "" if run_ids is None else "where list_contains(?, run_id)"
    try:
        return con.sql(f"select {columns} from {source} {condition} order by {order}", params=parameters)
    except (duckdb.CatalogException, duckdb.BinderException, duckdb.InvalidInputException) as error:
        # The second: a column is missing. The third: the name is a Python variable's in scope, where DuckDB looks after
        # the catalog.
        raise InputError(
            f"The snapshot lacks {source} as it is read here: {one_line(error)}.",
            remedy="It was published by another version. Publish it again: sparse-probing repair",
        ) from error
