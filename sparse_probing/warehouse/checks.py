"""Great Expectations suites over check views, over the frames that enter the rankings, and over datasets.

The rules themselves are SQL views (`sql/9xx`); here they are executed, judged per run, and written to `check_results`.
Great Expectations cannot talk to DuckDB, so it is fed frames. Importing this module takes seconds: import it late.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, astuple, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

import duckdb
import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd
import pyarrow as pa

from sparse_probing import schemas
from sparse_probing.config import dataset_name
from sparse_probing.errors import DamageError, InputError
from sparse_probing.store.datasets import dataset_frames
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import MANIFEST_NAME, file_digest, find_manifest
from sparse_probing.warehouse import catalog
from sparse_probing.warehouse.connection import one_line, open_working
from sparse_probing.warehouse.working import is_damaged, writing

# It reports every temporary folder that it makes, and sets this level itself when it is imported.
logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)

VIEWS_SUITE = "check_views"
FRAMES_SUITE = "entering_frames"
DATASET_SUITE = "dataset"
# Raised when `check_dataset` would find something else in the same dataset.
DATASET_SUITE_VERSION = 1
CHECKED_NAME = "checked.json"
_DETAIL_CHARACTERS = 500


@dataclass(frozen=True)
class CheckResult:
    """One check on one run: a row of `schemas.CHECK_RESULTS`, fields in its order.

    Attributes
    ----------
    severity:
        ``error`` or ``warning``: the gravest of the violations, or what one would cost where there is none.
    n_violations:
        Rows that violate the check; 1 if it could not be executed.
    detail:
        The first violation as text; None if the check passed.
    """

    run_id: str
    check_name: str
    suite: str
    severity: str
    n_violations: int
    passed: bool
    detail: str | None
    checked_at: datetime


@dataclass(frozen=True)
class _Rule:
    """A named expectation and what breaking it costs."""

    name: str
    expectation: Any
    severity: str = "error"


@dataclass(frozen=True)
class _Outcome:
    """How a rule came out on a frame. `rows` are the positions that break it; None if the whole frame does."""

    passed: bool
    rows: tuple[int, ...] | None
    detail: str


def run_checks(working: Path, run_ids: Iterable[str], root: Location) -> list[CheckResult]:
    """Execute every check on the given runs and their datasets, and replace their rows in `check_results`.

    Parameters
    ----------
    working:
        The working database, results loaded.
    run_ids:
        Runs to check; one that is not in the database fails with an empty frame.
    root:
        The data folder. Of a run whose dataset is no longer there, what its suite found before is kept.

    Returns
    -------
    list of CheckResult
        One per run and check, in the order of `run_ids`, then of the suites.

    Raises
    ------
    ArtifactError
        If another process has the working database open.
    DamageError
        If the working database or a dataset is damaged.
    InputError
        If there is no such database.
    """
    wanted = list(dict.fromkeys(run_ids))
    if not working.is_file():
        raise InputError(f"No working database at {working}.", remedy="Load results before checking them.")
    if not wanted:
        return []
    now = datetime.now(UTC)
    with writing(working), closing(open_working(working)) as connection:
        results = _check_views(working, connection, wanted, now) + _check_entering_frames(connection, wanted, now)
        datasets = connection.execute(
            "select run_id, collection, dataset_digest from runs where list_contains(?, run_id)", [wanted]
        ).fetchall()
        frames: dict[str, list[str]] = {}
        for run_id, collection, digest in datasets:
            frames.setdefault(dataset_name(collection, digest), []).append(run_id)
        for name, runs in frames.items():
            folder = root / "datasets" / name
            if find_manifest(folder) is not None:
                # One look serves all runs on a dataset.
                found = check_stored_dataset(folder)
                results += [replace(result, run_id=run_id) for run_id in runs for result in found]
        order = {run_id: position for position, run_id in enumerate(wanted)}
        results.sort(key=lambda result: order[result.run_id])
        _record(connection, results)
    return results


def unchecked_runs(working: Path) -> list[str]:
    """Runs in the working database that no check was recorded of."""
    connection = open_working(working)
    try:
        found = connection.execute(
            "select run_id from runs where run_id not in (select run_id from check_results) order by run_id"
        ).fetchall()
    finally:
        connection.close()
    return [str(run_id) for (run_id,) in found]


def failed_errors(results: Iterable[CheckResult]) -> list[CheckResult]:
    """The results that make a study fail: not passed, and of severity error."""
    return [result for result in results if not result.passed and result.severity == "error"]


def check_stored_dataset(folder: Location) -> list[CheckResult]:
    """`check_dataset` of a finished dataset; what was found is kept beside it, and not looked for again.

    Raises
    ------
    ArtifactError
        If the dataset is not finished, or its folder cannot be written to.
    DamageError
        If a file of it is damaged.
    """
    of = {"manifest_sha256": file_digest(folder / MANIFEST_NAME), "version": DATASET_SUITE_VERSION}
    kept = folder / CHECKED_NAME
    try:
        found = json.loads(kept.read_bytes())
        if found["of"] == of:
            now = datetime.now(UTC)
            return [CheckResult(**{**result, "checked_at": now}) for result in found["results"]]
    except (DamageError, ValueError, KeyError, TypeError):
        pass
    results = check_dataset(*dataset_frames(folder))
    # When it was checked differs from one time to the next: equal datasets have equal files.
    rows = [{name: value for name, value in asdict(result).items() if name != "checked_at"} for result in results]
    kept.write_bytes(json.dumps({"of": of, "results": rows}, indent=1).encode())
    return results


def check_dataset(sequences: pd.DataFrame, labels: pd.DataFrame, *, run_id: str = "") -> list[CheckResult]:
    """Expectations on a feature dataset, before anything is extracted from it.

    Parameters
    ----------
    sequences:
        Columns of `schemas.SEQUENCES` (tokens may be left out).
    labels:
        Columns of `schemas.LABELS`.
    run_id:
        What the results are filed under: a run, or the dataset's digest.

    Returns
    -------
    list of CheckResult
        One per rule, suite ``dataset``.
    """
    groups = (
        sequences.groupby("group_id", sort=True)["split"].nunique().rename("n_splits").reset_index()
        if {"group_id", "split"} <= set(sequences.columns)
        else pd.DataFrame()
    )
    placed = labels
    if {"seq_id", "n_tokens"} <= set(sequences.columns) and {"seq_id", "position"} <= set(labels.columns):
        lengths = sequences.drop_duplicates("seq_id")[["seq_id", "n_tokens"]]
        placed = labels.merge(lengths, on="seq_id", how="left", validate="many_to_one")
        placed["tokens_left"] = placed["n_tokens"] - placed["position"].fillna(0)
        columns = [name for name in ("label", "target") if name in placed.columns]
        placed["answer"] = placed[columns].bfill(axis=1).iloc[:, 0] if columns else None
    sequence_rules = [
        *_complete("sequences", ("seq_id", "group_id", "source", "split", "n_tokens")),
        _Rule("sequences_unique", gxe.ExpectColumnValuesToBeUnique(column="seq_id")),
        _Rule("sequences_split_known", gxe.ExpectColumnValuesToBeInSet(column="split", value_set=list(schemas.SPLITS))),
        _Rule("sequences_have_tokens", gxe.ExpectColumnValuesToBeBetween(column="n_tokens", min_value=1)),
    ]
    label_rules = [
        *_complete("labels", ("feature", "seq_id", "answer")),
        _Rule("labels_plus_or_minus_one", gxe.ExpectColumnValuesToBeInSet(column="label", value_set=[-1, 1])),
        _Rule("labels_of_known_sequences", gxe.ExpectColumnValuesToNotBeNull(column="n_tokens")),
        _Rule("positions_not_negative", gxe.ExpectColumnValuesToBeBetween(column="position", min_value=0)),
        _Rule("positions_within_sequence", gxe.ExpectColumnValuesToBeBetween(column="tokens_left", min_value=1)),
        _Rule("labels_unique", gxe.ExpectCompoundColumnsToBeUnique(column_list=["feature", "seq_id", "where"])),
    ]
    placed = placed.assign(where=placed["position"].fillna(-1) if "position" in placed.columns else None)
    group_rules = [_Rule("groups_in_one_split", gxe.ExpectColumnValuesToBeBetween(column="n_splits", max_value=1))]
    now = datetime.now(UTC)
    results = []
    for frame, rules in (
        (sequences.drop(columns="tokens", errors="ignore"), sequence_rules),
        (placed, label_rules),
        (groups, group_rules),
    ):
        outcomes = _validate(frame, rules)
        results += [_result(run_id, DATASET_SUITE, rule, outcomes[rule.name], now) for rule in rules]
    return results


def _check_views(
    working: Path, connection: duckdb.DuckDBPyConnection, run_ids: list[str], now: datetime
) -> list[CheckResult]:
    """Every check view, counted per run; the suite asserts that no count is missing and all are zero."""
    views = catalog.check_views()
    counts: dict[str, list[float | None]] = {}
    severities: dict[tuple[str, str], str] = {}
    details: dict[tuple[str, str], str] = {}
    for view in views:
        try:
            frame = connection.execute(
                "select run_id, count(*) as n_violations, min(severity) as severity, "
                "arg_min(subject || ': found ' || found || '; expected ' || expected, (severity, subject)) as detail "
                f"from {view.name} where list_contains(?, run_id) group by run_id",
                [run_ids],
            ).df()
        except duckdb.Error as error:
            if is_damaged(working, error):
                raise
            counts[view.name] = [None] * len(run_ids)
            details |= {(view.name, run_id): f"cannot be executed: {one_line(error)}" for run_id in run_ids}
            continue
        found = dict(zip(frame["run_id"], frame["n_violations"], strict=True))
        counts[view.name] = [float(found.get(run_id, 0)) for run_id in run_ids]
        severities |= {
            (view.name, run_id): text for run_id, text in zip(frame["run_id"], frame["severity"], strict=True)
        }
        details |= {(view.name, run_id): text for run_id, text in zip(frame["run_id"], frame["detail"], strict=True)}
    wide = pd.DataFrame({"run_id": run_ids, **counts})
    rules = [
        rule
        for view in views
        for rule in (
            _Rule(f"{view.name}:executed", gxe.ExpectColumnValuesToNotBeNull(column=view.name)),
            _Rule(view.name, gxe.ExpectColumnValuesToBeBetween(column=view.name, min_value=0, max_value=0)),
        )
    ]
    outcomes = _validate(wide, rules)
    results = []
    for position, run_id in enumerate(run_ids):
        for view in views:
            executed = _holds(outcomes[f"{view.name}:executed"], position)
            passed = executed and _holds(outcomes[view.name], position)
            count = counts[view.name][position]
            results.append(
                CheckResult(
                    run_id=run_id,
                    check_name=view.name,
                    suite=VIEWS_SUITE,
                    severity=severities.get((view.name, run_id), view.severity if executed else "error"),
                    n_violations=int(count) if count is not None else 1,
                    passed=passed,
                    detail=None if passed else details.get((view.name, run_id), "")[:_DETAIL_CHARACTERS],
                    checked_at=now,
                )
            )
    return results


def _check_entering_frames(
    connection: duckdb.DuckDBPyConnection, run_ids: list[str], now: datetime
) -> list[CheckResult]:
    """The rows of runs and features that every ranking starts from."""
    runs = connection.execute("select * exclude (layers) from runs where list_contains(?, run_id)", [run_ids]).df()
    features = connection.execute("select * from features where list_contains(?, run_id)", [run_ids]).df()
    run_rules = [
        *_complete("runs", ("model", "revision", "weights_digest", "collection", "dataset_digest", "probing_digest")),
        _Rule("runs_have_rows", gxe.ExpectColumnValuesToBeBetween(column="n_rows", min_value=1)),
        _Rule("runs_have_neurons", gxe.ExpectColumnValuesToBeBetween(column="n_neurons", min_value=1)),
        _Rule(
            "runs_split_mode_known",
            gxe.ExpectColumnValuesToBeInSet(column="split_mode", value_set=["group", "reference"]),
        ),
        _Rule(
            "runs_storage_dtype_known",
            gxe.ExpectColumnValuesToBeInSet(column="storage_dtype", value_set=["uint8", "float16", "float32"]),
        ),
        _Rule(
            "runs_clipping_is_a_share",
            gxe.ExpectColumnValuesToBeBetween(column="max_clipped_fraction", min_value=0, max_value=1),
        ),
        _Rule("runs_clipping_is_a_number", gxe.ExpectColumnValuesToNotBeNull(column="max_clipped_fraction")),
    ]
    feature_rules = [
        *_complete("features", ("feature", "prevalence")),
        _Rule(
            "features_task_known",
            gxe.ExpectColumnValuesToBeInSet(column="task", value_set=["classification", "regression"]),
        ),
        *[
            _Rule(f"features_have_{split}_rows", gxe.ExpectColumnValuesToBeBetween(column=f"n_{split}", min_value=1))
            for split in ("train", "test")
        ],
        _Rule(
            "features_prevalence_is_a_share",
            gxe.ExpectColumnValuesToBeBetween(column="prevalence", min_value=0, max_value=1),
        ),
    ]
    results = []
    for frame, rules in ((runs, run_rules), (features, feature_rules)):
        outcomes = _validate(frame, rules)
        present = frame["run_id"].tolist()
        for run_id in run_ids:
            mine = {position for position, found in enumerate(present) if found == run_id}
            for rule in rules:
                outcome = outcomes[rule.name]
                if not mine:
                    outcome = _Outcome(False, None, "the run has no rows")
                elif outcome.rows is not None:
                    broken = tuple(row for row in outcome.rows if row in mine)
                    outcome = _Outcome(not broken, broken, outcome.detail)
                results.append(_result(run_id, FRAMES_SUITE, rule, outcome, now))
    return results


def _complete(prefix: str, columns: Sequence[str]) -> list[_Rule]:
    """Row count above zero and no nulls: what ToBeBetween and ToBeInSet let pass."""
    rules = [_Rule(f"{prefix}_not_empty", gxe.ExpectTableRowCountToBeBetween(min_value=1))]
    for name in columns:
        rules.append(_Rule(f"{prefix}_{name}_not_null", gxe.ExpectColumnValuesToNotBeNull(column=name)))
    return rules


def _validate(frame: pd.DataFrame, rules: Sequence[_Rule]) -> Mapping[str, _Outcome]:
    """Validate a frame against rules in an ephemeral context; outcome by the rule's name."""
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    asset = context.data_sources.add_pandas("frames").add_dataframe_asset("frame")
    batch = asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": frame.reset_index(drop=True)})
    expectations = []
    for rule in rules:
        rule.expectation.meta = {"rule": rule.name}
        expectations.append(rule.expectation)
    suite = gx.ExpectationSuite(name="rules", expectations=expectations)
    outcomes = {}
    for result in batch.validate(suite, result_format={"result_format": "COMPLETE"}).results:
        name = result.expectation_config.meta["rule"]
        found = dict(result.result or {})
        rows = found.get("unexpected_index_list")
        outcomes[name] = _Outcome(
            passed=bool(result.success),
            rows=tuple(int(row) for row in rows) if rows is not None else None,
            detail=_describe(found, result.exception_info),
        )
    return outcomes


def _describe(found: Mapping[str, Any], exception_info: Any) -> str:
    unexpected = found.get("unexpected_list")
    if unexpected:
        return f"found {unexpected[0]!r}"
    if "observed_value" in found:
        return f"found {found['observed_value']!r}"
    for part in [exception_info, *dict(exception_info or {}).values()]:
        if isinstance(part, Mapping) and part.get("exception_message"):
            return " ".join(str(part["exception_message"]).split())
    return "could not be judged"


def _holds(outcome: _Outcome, row: int) -> bool:
    return outcome.passed if outcome.rows is None else row not in outcome.rows


def _result(run_id: str, suite: str, rule: _Rule, outcome: _Outcome, now: datetime) -> CheckResult:
    detail = None
    if not outcome.passed:
        where = f"row {outcome.rows[0]}: " if outcome.rows else ""
        detail = (where + outcome.detail)[:_DETAIL_CHARACTERS]
    n_violations = 0 if outcome.passed else max(1, len(outcome.rows or ()))
    return CheckResult(run_id, rule.name, suite, rule.severity, n_violations, outcome.passed, detail, now)


def _record(connection: duckdb.DuckDBPyConnection, results: Sequence[CheckResult]) -> None:
    if not results:
        return
    names = schemas.CHECK_RESULTS.names
    rows = [dict(zip(names, astuple(result), strict=True)) for result in results]
    table = pa.Table.from_pylist(rows, schema=schemas.CHECK_RESULTS)
    columns = ", ".join(names)
    connection.begin()
    try:
        for run_id, suite in {(result.run_id, result.suite) for result in results}:
            connection.execute("delete from check_results where run_id = ? and suite = ?", [run_id, suite])
        connection.register("new_results", table)
        connection.execute(f"insert into check_results ({columns}) select {columns} from new_results")
        connection.commit()
    except BaseException:
        connection.rollback()
        raise
    finally:
        connection.unregister("new_results")
