"""Fill table `comparisons`: for every pair that view `pairs_to_compare` lists, from predictions on the same test rows.

Which pairs are compared is a matter of `sql/`; how their difference gets its interval, of who calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparse_probing.schemas import COMPARISONS
from sparse_probing.store.predictions import unpack, unpack_groups
from sparse_probing.warehouse.working import open_usable, writing

# As listed by `pairs_to_compare`, as keyed in `comparisons`.
_KEY = "run_id, feature, metric, probe_id, other_run_id, other_probe_id"


class _Pair(NamedTuple):
    run_id: str
    feature: str
    metric: str
    probe_id: str
    other_run_id: str
    other_probe_id: str


@dataclass(frozen=True, eq=False)
class SharedRows:
    """One probe beside others on the same test rows.

    Attributes
    ----------
    metric:
        ``mcc`` or ``r2``.
    truth, groups, predicted:
        (n_rows,) each: what the rows are judged by, their groups, and what the probe predicts.
    others, other_truths:
        The same of each other probe; None where the truth is the same.
    n_draws:
        How many the run asked for.
    """

    metric: str
    truth: NDArray[Any]
    groups: NDArray[np.int32]
    predicted: NDArray[Any]
    others: Sequence[NDArray[Any]]
    other_truths: Sequence[NDArray[Any] | None]
    n_draws: int


# Limits of the probe's score less that of each other, (n_others,) both; NaN where there is no interval.
Intervals = Callable[[SharedRows], tuple[NDArray[np.float64], NDArray[np.float64]]]


def compare(working: Path, intervals: Intervals) -> int:
    """Fill `comparisons` for the pairs that it lacks, and forget those that no view lists; returns how many were added.

    Pairs without predictions (runs of earlier versions), without shared rows, or of runs that asked for no intervals are
    left out. The same pairs have the same intervals, whenever they are computed.

    Raises
    ------
    ArtifactError, DamageError
        As `loading.load_results`.
    """
    with writing(working):
        connection, _ = open_usable(working)
        try:
            # Listing them asks every view of rankings and checkpoints: once.
            connection.execute(f"create temp table listed_pairs as select {_KEY} from pairs_to_compare")
            pairs = _wanted(connection)
            rows: list[tuple[Any, ...]] = []
            for _, block in groupby(pairs, key=lambda pair: (pair.run_id, pair.feature, pair.metric, pair.probe_id)):
                rows += _compared(connection, list(block), intervals)
            table = pa.Table.from_pylist(
                [dict(zip(COMPARISONS.names, row, strict=True)) for row in rows], schema=COMPARISONS
            )
            connection.register("compared", table)
            connection.begin()
            try:
                connection.execute(f"delete from comparisons where ({_KEY}) not in (select {_KEY} from listed_pairs)")
                connection.execute(f"insert into comparisons select {', '.join(COMPARISONS.names)} from compared")
                connection.commit()
            except BaseException:
                connection.rollback()
                raise
            return len(rows)
        finally:
            connection.close()


def _wanted(connection: duckdb.DuckDBPyConnection) -> list[_Pair]:
    """Pairs that are listed, not compared yet, and have predictions."""
    found = connection.execute(
        f"""
        select {_KEY} from listed_pairs as pairs
        where ({_KEY}) not in (select {_KEY} from comparisons)
            and (run_id, feature, probe_id) in (select run_id, feature, probe_id from test_predictions)
            and (other_run_id, feature, other_probe_id) in (select run_id, feature, probe_id from test_predictions)
        order by {_KEY}
        """
    ).fetchall()
    return [_Pair(*row) for row in found]


def _compared(
    connection: duckdb.DuckDBPyConnection, pairs: Sequence[_Pair], intervals: Intervals
) -> list[tuple[Any, ...]]:
    """Rows of `comparisons` for the pairs of one probe_id."""
    first = pairs[0]
    own = _labels(connection, first, first.run_id)
    alike = {first.run_id}
    for run_id in {pair.other_run_id for pair in pairs} - alike:
        other = _labels(connection, first, run_id)
        if np.array_equal(own[0], other[0]) and np.array_equal(own[1], other[1]):
            alike.add(run_id)
    kept = [pair for pair in pairs if pair.other_run_id in alike]
    found = _predictions(connection, first, alike, len(own[0]))
    predicted, _ = found[first.run_id, first.probe_id]
    others = [found[pair.other_run_id, pair.other_probe_id] for pair in kept]
    shared = SharedRows(
        metric=first.metric,
        truth=own[0],
        groups=own[1],
        predicted=predicted,
        others=[values for values, _ in others],
        other_truths=[truth for _, truth in others],
        n_draws=_draws(connection, first.run_id),
    )
    low, high = intervals(shared)
    limits = zip(kept, low.tolist(), high.tolist(), strict=True)
    return [(*pair, *bounds) for pair, *bounds in limits if np.isfinite(bounds).all()]


def _draws(connection: duckdb.DuckDBPyConnection, run_id: str) -> int:
    """How many draws the run asked for; none where its spec does not tell."""
    found = connection.execute(
        "select try_cast(spec ->> '$.probing.n_bootstrap' as bigint) from runs where run_id = ?", [run_id]
    ).fetchall()
    return int(found[0][0] or 0)


def _labels(connection: duckdb.DuckDBPyConnection, pair: _Pair, run_id: str) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """(n_rows,) what a feature's test rows are judged by, and their groups."""
    ((n_rows, truth, codes),) = connection.execute(
        "select n_rows, truth, group_code from test_labels where run_id = ? and feature = ?", [run_id, pair.feature]
    ).fetchall()
    return unpack(truth, n_rows, numbers=pair.metric == "r2"), unpack_groups(codes)


def _predictions(
    connection: duckdb.DuckDBPyConnection, pair: _Pair, run_ids: Iterable[str], n_rows: int
) -> dict[tuple[str, str], tuple[NDArray[Any], NDArray[Any] | None]]:
    """By run and probe, (n_rows,) what it predicts, and what it is judged by where that is not the feature's own."""
    numbers = pair.metric == "r2"

    def unpacked(packed: bytes) -> NDArray[Any]:
        return unpack(packed, n_rows, numbers=numbers)

    found = connection.execute(
        "select run_id, probe_id, predicted, truth from test_predictions "
        "where list_contains(?, run_id) and feature = ?",
        [sorted(run_ids), pair.feature],
    ).fetchall()
    return {
        (run_id, probe_id): (unpacked(predicted), None if truth is None else unpacked(truth))
        for run_id, probe_id, predicted, truth in found
    }
