"""Great Expectations suites over check views, over the frames that enter the rankings, and over datasets.

The rules themselves are SQL views (`sql/9xx`); here they are executed, judged per run (`expectations`), and written to
`check_results`. Importing this module takes seconds: import it late.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, astuple, replace
from datetime import UTC, datetime
from pathlib import Path

import duckdb
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
from sparse_probing.warehouse.expectations import (
    DETAIL_CHARACTERS,
    Outcome,
    Rule,
    as_result,
    complete,
    gxe,
    holds,
    validate,
)
from sparse_probing.warehouse.expectations import CheckResult as CheckResult
from sparse_probing.warehouse.working import is_damaged, writing

VIEWS_SUITE = "check_views"
FRAMES_SUITE = "entering_frames"
DATASET_SUITE = "dataset"
# Raised when `check_dataset` would find something else in the same dataset.
DATASET_SUITE_VERSION = 1
CHECKED_NAME = "checked.json"


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
        *complete("sequences", ("seq_id", "group_id", "source", "split", "n_tokens")),
        Rule("sequences_unique", gxe.ExpectColumnValuesToBeUnique(column="seq_id")),
        Rule("sequences_split_known", gxe.ExpectColumnValuesToBeInSet(column="split", value_set=list(schemas.SPLITS))),
        Rule("sequences_have_tokens", gxe.ExpectColumnValuesToBeBetween(column="n_tokens", min_value=1)),
    ]
    label_rules = [
        *complete("labels", ("feature", "seq_id", "answer")),
        Rule("labels_plus_or_minus_one", gxe.ExpectColumnValuesToBeInSet(column="label", value_set=[-1, 1])),
        Rule("labels_of_known_sequences", gxe.ExpectColumnValuesToNotBeNull(column="n_tokens")),
        Rule("positions_not_negative", gxe.ExpectColumnValuesToBeBetween(column="position", min_value=0)),
        Rule("positions_within_sequence", gxe.ExpectColumnValuesToBeBetween(column="tokens_left", min_value=1)),
        Rule("labels_unique", gxe.ExpectCompoundColumnsToBeUnique(column_list=["feature", "seq_id", "where"])),
    ]
    placed = placed.assign(where=placed["position"].fillna(-1) if "position" in placed.columns else None)
    group_rules = [Rule("groups_in_one_split", gxe.ExpectColumnValuesToBeBetween(column="n_splits", max_value=1))]
    now = datetime.now(UTC)
    results = []
    for frame, rules in (
        (sequences.drop(columns="tokens", errors="ignore"), sequence_rules),
        (placed, label_rules),
        (groups, group_rules),
    ):
        outcomes = validate(frame, rules)
        results += [as_result(run_id, DATASET_SUITE, rule, outcomes[rule.name], now) for rule in rules]
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
            Rule(f"{view.name}:executed", gxe.ExpectColumnValuesToNotBeNull(column=view.name)),
            Rule(view.name, gxe.ExpectColumnValuesToBeBetween(column=view.name, min_value=0, max_value=0)),
        )
    ]
    outcomes = validate(wide, rules)
    results = []
    for position, run_id in enumerate(run_ids):
        for view in views:
            executed = holds(outcomes[f"{view.name}:executed"], position)
            passed = executed and holds(outcomes[view.name], position)
            count = counts[view.name][position]
            results.append(
                CheckResult(
                    run_id=run_id,
                    check_name=view.name,
                    suite=VIEWS_SUITE,
                    severity=severities.get((view.name, run_id), view.severity if executed else "error"),
                    n_violations=int(count) if count is not None else 1,
                    passed=passed,
                    detail=None if passed else details.get((view.name, run_id), "")[:DETAIL_CHARACTERS],
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
        *complete("runs", ("model", "revision", "weights_digest", "collection", "dataset_digest", "probing_digest")),
        Rule("runs_have_rows", gxe.ExpectColumnValuesToBeBetween(column="n_rows", min_value=1)),
        Rule("runs_have_neurons", gxe.ExpectColumnValuesToBeBetween(column="n_neurons", min_value=1)),
        Rule(
            "runs_split_mode_known",
            gxe.ExpectColumnValuesToBeInSet(column="split_mode", value_set=["group", "reference"]),
        ),
        Rule(
            "runs_storage_dtype_known",
            gxe.ExpectColumnValuesToBeInSet(column="storage_dtype", value_set=["uint8", "float16", "float32"]),
        ),
        Rule(
            "runs_clipping_is_a_share",
            gxe.ExpectColumnValuesToBeBetween(column="max_clipped_fraction", min_value=0, max_value=1),
        ),
        Rule("runs_clipping_is_a_number", gxe.ExpectColumnValuesToNotBeNull(column="max_clipped_fraction")),
    ]
    feature_rules = [
        *complete("features", ("feature", "prevalence")),
        Rule(
            "features_task_known",
            gxe.ExpectColumnValuesToBeInSet(column="task", value_set=["classification", "regression"]),
        ),
        *[
            Rule(f"features_have_{split}_rows", gxe.ExpectColumnValuesToBeBetween(column=f"n_{split}", min_value=1))
            for split in ("train", "test")
        ],
        Rule(
            "features_prevalence_is_a_share",
            gxe.ExpectColumnValuesToBeBetween(column="prevalence", min_value=0, max_value=1),
        ),
    ]
    results = []
    for frame, rules in ((runs, run_rules), (features, feature_rules)):
        outcomes = validate(frame, rules)
        present = frame["run_id"].tolist()
        for run_id in run_ids:
            mine = {position for position, found in enumerate(present) if found == run_id}
            for rule in rules:
                outcome = outcomes[rule.name]
                if not mine:
                    outcome = Outcome(False, None, "the run has no rows")
                elif outcome.rows is not None:
                    broken = tuple(row for row in outcome.rows if row in mine)
                    outcome = Outcome(not broken, broken, outcome.detail)
                results.append(as_result(run_id, FRAMES_SUITE, rule, outcome, now))
    return results


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
