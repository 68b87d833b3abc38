"""Series of checkpoints as small multiples over the training step, for the HTML report.

What a series is, and which neurons are followed through it, is decided by the views; here are places, paths and hover texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sparse_probing.reports.charts import Chart, Curve, Point, Tick, across, band, boxed, lowest_shown, number, upward
from sparse_probing.reports.tables import direction_word, interval, score

# What a page has room for; a line says how many more there are.
MAX_SERIES = 8
MAX_FEATURES = 24
MAX_FOLLOWED = 6
# Between the labels of an axis, in units of the chart's box.
_TICK_DISTANCE = 26
_THOUSAND = 1000


@dataclass(frozen=True)
class Series:
    """Checkpoints of one model on one collection; `n_more` features have no chart of their own."""

    model: str
    collection: str
    hook: str
    n_checkpoints: int
    first: str
    last: str
    charts: tuple[Chart, ...]
    n_more: int


@dataclass(frozen=True)
class _Axis:
    """Where each run of a series lies, and what the axis says there."""

    places: Mapping[str, float]
    ticks: tuple[Tick, ...]


def all_series(
    trajectories: pd.DataFrame, followed: pd.DataFrame, tested: Mapping[tuple[str, str], str]
) -> tuple[Series, ...]:
    """Every series with its charts, by model, collection and hook; features by validation MCC at the last checkpoint.

    Parameters
    ----------
    trajectories, followed:
        Columns of `checkpoint_trajectories` and `checkpoint_neurons`.
    tested:
        What the test scores of a run and feature rest on, in words.
    """
    found = [
        (rows, followed[followed["series_id"] == series_id]) for series_id, rows in trajectories.groupby("series_id")
    ]
    found.sort(key=lambda pair: tuple(pair[0].iloc[0][["model", "collection", "hook", "series_id"]]))
    return tuple(_series(rows, neurons, tested) for rows, neurons in found)


def _series(rows: pd.DataFrame, followed: pd.DataFrame, tested: Mapping[tuple[str, str], str]) -> Series:
    axis = _axis(rows)
    ends = ("test_mcc", "test_mcc_low")
    lowest = lowest_shown(number(value) for end in ends for value in [*rows[end], *followed[end]])
    last = rows.sort_values("position_in_series").groupby("feature").tail(1)
    last = last.sort_values(["validation_mcc", "feature"], ascending=[False, True], na_position="last")
    features = list(last["feature"])
    ordered = rows.sort_values("position_in_series")
    first = ordered.iloc[0]
    return Series(
        model=str(first["model"]),
        collection=str(first["collection"]),
        hook=str(first["hook"]),
        n_checkpoints=rows["run_id"].nunique(),
        first=str(first["revision"]),
        last=str(ordered.iloc[-1]["revision"]),
        charts=tuple(
            _chart(
                feature,
                rows[rows["feature"] == feature].sort_values("position_in_series").to_dict("records"),
                followed[followed["feature"] == feature],
                axis,
                lowest,
                tested,
            )
            for feature in features[:MAX_FEATURES]
        ),
        n_more=max(0, len(features) - MAX_FEATURES),
    )


def _axis(rows: pd.DataFrame) -> _Axis:
    """Runs by the logarithm of step + 1, which gives step 0 a place; those without a step follow at even distances."""
    runs = rows.sort_values("position_in_series").drop_duplicates("run_id").to_dict("records")
    logs = {row["run_id"]: math.log2(step + 1) for row in runs if (step := number(row["training_step"])) is not None}
    reached = max(logs.values(), default=0.0)
    distance = (reached - min(logs.values(), default=0.0)) / max(1, len(set(logs.values())) - 1) or 1.0
    for count, run in enumerate((row for row in runs if row["run_id"] not in logs), 1):
        logs[run["run_id"]] = reached + count * distance
    low, high = min(logs.values()), max(logs.values())
    places = {run_id: across(0.5 if high == low else (value - low) / (high - low)) for run_id, value in logs.items()}
    labels = [(places[row["run_id"]], _step_label(row)) for row in runs]
    return _Axis(places, _spaced(sorted(labels)))


def _step_label(row: Mapping[Any, Any]) -> str:
    step = number(row["training_step"])
    if step is None:
        return str(row["revision"])[:12]
    return f"{step / _THOUSAND:g}k" if step >= 10 * _THOUSAND else f"{step:.0f}"


def _spaced(labels: Sequence[tuple[float, str]]) -> tuple[Tick, ...]:
    """The first and the last label, and those between that do not touch others, from the last one backwards."""
    kept = [labels[-1]]
    for at, text in labels[-2:0:-1]:
        if min(kept[-1][0] - at, at - labels[0][0]) >= _TICK_DISTANCE:
            kept.append((at, text))
    if labels[0][0] < kept[-1][0]:
        kept.append(labels[0])
    return tuple(Tick(at, text) for at, text in reversed(kept))


def _chart(
    feature: str,
    best: Sequence[Mapping[Any, Any]],
    followed: pd.DataFrame,
    axis: _Axis,
    lowest: float,
    tested: Mapping[tuple[str, str], str],
) -> Chart:
    scored = [(row, value) for row in best if (value := number(row["test_mcc"])) is not None]
    bounds = [(row, number(row["test_mcc_low"]), number(row["test_mcc_high"])) for row in best]
    before: list[Mapping[Any, Any] | None] = [None, *best]
    is_new = {
        row["run_id"]: earlier is not None and _place(row) != _place(earlier)
        for row, earlier in zip(best, before, strict=False)
    }
    curve = Curve(
        label="best neuron of each checkpoint",
        style="c0",
        test_path=_path(scored, axis, lowest),
        validation_path="",
        band_path=band(
            [
                (axis.places[row["run_id"]], upward(low, lowest), upward(high, lowest))
                for row, low, high in bounds
                if low is not None and high is not None
            ]
        ),
        points=tuple(
            Point(
                axis.places[row["run_id"]],
                upward(value, lowest),
                _point_title(row, value, is_new[row["run_id"]]),
                is_open=is_new[row["run_id"]],
            )
            for row, value in scored
        ),
    )
    last = best[-1]
    return boxed(
        feature,
        [*_same_neurons(followed, axis, lowest), curve],
        axis.ticks,
        lowest,
        label=f"Test MCC over training steps for {feature}",
        tested=tested.get((last["run_id"], feature), ""),
    )


def _same_neurons(followed: pd.DataFrame, axis: _Axis, lowest: float) -> list[Curve]:
    """A line for each of some neurons: the last checkpoint's best, drawn last, and those that are best most often."""
    curves = []
    for (layer, neuron), rows in followed.sort_values("position_in_series").groupby(["layer", "neuron"]):
        records = rows.to_dict("records")
        best_at = [int(row["position_in_series"]) for row in records if row["is_best"]]
        is_last = max(best_at) == int(records[-1]["position_in_series"])
        scored = [(row, value) for row in records if (value := number(row["test_mcc"])) is not None]
        label = f"layer {layer}, neuron {neuron}: the best at {len(best_at)} of {len(records)} checkpoints"
        curve = Curve(label, "last" if is_last else "faint", _path(scored, axis, lowest), "", "", ())
        curves.append(((is_last, len(best_at), max(best_at)), curve))
    curves.sort(key=lambda entry: entry[0])
    return [curve for _, curve in curves[-MAX_FOLLOWED:]]


def _path(scored: Sequence[tuple[Mapping[Any, Any], float]], axis: _Axis, lowest: float) -> str:
    return " ".join(f"{axis.places[row['run_id']]},{upward(value, lowest)}" for row, value in scored)


def _place(row: Mapping[Any, Any]) -> tuple[int, int]:
    return int(row["layer"]), int(row["neuron"])


def _point_title(row: Mapping[Any, Any], value: float, is_new: bool) -> str:
    test = interval(value, number(row["test_mcc_low"]), number(row["test_mcc_high"]))
    layer, neuron = _place(row)
    return (
        f"{row['revision']}, layer {layer}, neuron {neuron} ({direction_word(int(row['direction']))}): test MCC {test}, "
        f"validation {score(number(row['validation_mcc']))}" + (", another neuron than before" if is_new else "")
    )
