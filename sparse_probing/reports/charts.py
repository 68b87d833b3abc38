"""Numbers to geometry for the HTML report: heat-map cells and sparsity-curve paths. No markup, no queries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sparse_probing.reports.tables import interval, score

N_SHADES = 10
# Layers side by side; more of them go below one another.
MAX_LAYERS = 32
_WIDTH, _HEIGHT = 250, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 30, 8, 8, 20
_MAX_K_TICKS = 6


@dataclass(frozen=True)
class Cell:
    """One feature and layer of a heat map; `shade` is 0–10, or None where there is no neuron; `falls`: by falling."""

    text: str
    shade: int | None
    title: str
    is_best: bool
    falls: bool


@dataclass(frozen=True)
class HeatMap:
    """Feature × layer, some of the layers; `rows` pairs a feature with its cells in the order of `layers`."""

    layers: tuple[int, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True)
class Point:
    """A marker with its hover text."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Curve:
    """One method or baseline over k; `style` is its colour class."""

    label: str
    style: str
    test_path: str
    validation_path: str
    band_path: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Tick:
    """A label on an axis, at a place along it."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """One small multiple: a feature's curves in a box of `width` × `height`."""

    feature: str
    tested: str
    metric: str
    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    curves: tuple[Curve, ...]
    dense_y: float | None
    dense_title: str


def heat_maps(profiles: pd.DataFrame, order: Sequence[str], tested: Mapping[str, str]) -> tuple[HeatMap, ...]:
    """Validation MCC of the best neuron of every layer, in bands of layers that fit a page.

    Parameters
    ----------
    profiles:
        Columns of `layer_profiles`.
    order:
        Features from top to bottom.
    tested:
        What a feature's test scores rest on, in words.
    """
    layers = tuple(int(layer) for layer in sorted(profiles["layer"].unique()))
    by_place = {(row["feature"], int(row["layer"])): row for row in profiles.to_dict("records")}
    n_bands = -(-len(layers) // MAX_LAYERS)
    width = -(-len(layers) // n_bands) if n_bands else 1
    maps = []
    for start in range(0, len(layers), width):
        band = layers[start : start + width]
        rows = []
        for feature in order:
            row_of = [(layer, by_place.get((feature, layer))) for layer in band]
            cells = tuple(_cell(feature, layer, row, tested.get(feature, "")) for layer, row in row_of)
            rows.append((feature, cells))
        maps.append(HeatMap(band, tuple(rows)))
    return tuple(maps)


def sparsity_charts(
    curves: pd.DataFrame, order: Sequence[str], styles: dict[str, str], tested: Mapping[str, str]
) -> list[Chart]:
    """One chart per feature that has sparse probes; columns of `sparsity_curves`, `styles` by label of a curve."""
    charts = []
    for feature in order:
        mine = curves[curves["feature"] == feature]
        if len(mine):
            charts.append(_chart(feature, mine, styles, tested.get(feature, "")))
    return charts


def curve_label(row: dict[str, Any]) -> str:
    """What a curve is called in the legend: its method, with its ranking; a baseline by its name."""
    if row["variant"] != "real":
        return str(row["variant"]).replace("_", " ")
    ranking = row["ranking"]
    return str(row["method"]) + (f" ({ranking})" if isinstance(ranking, str) and ranking else "")


def _cell(feature: str, layer: int, row: dict[Any, Any] | None, tested: str) -> Cell:
    value = number(row["validation_mcc"]) if row is not None else None
    if row is None or value is None:
        return Cell("", None, f"{feature}, layer {layer}: no neuron", False, False)
    test = interval(number(row["test_mcc"]), number(row["test_mcc_low"]), number(row["test_mcc_high"]))
    falls = int(row["direction"]) < 0
    title = (
        f"{feature}, layer {layer}, neuron {int(row['neuron'])} ({'falls' if falls else 'rises'}): "
        f"validation MCC {value:.3f}, test MCC {test}" + (f" on {tested}" if tested else "")
    )
    text = f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:.1f}"
    return Cell(text, min(N_SHADES, max(0, round(value * N_SHADES))), title, bool(row["is_best_layer"]), falls)


def _chart(feature: str, rows: pd.DataFrame, styles: dict[str, str], tested: str) -> Chart:
    records = rows.to_dict("records")
    ks = sorted({int(row["k"]) for row in records})
    scores = [judged(row, split)[0] for row in records for split in ("validation", "test")]
    dense = judged(records[0], "dense_test")[0]
    lowest = min([value for value in [*scores, dense] if value is not None] + [0.0])
    bottom = 0.0 if lowest >= 0 else max(-1.0, math.floor(lowest * 4) / 4)
    low_x, high_x = math.log2(max(ks[0], 1)), math.log2(max(ks[-1], 1))

    def x(k: float) -> float:
        share = 0.5 if high_x == low_x else (math.log2(max(k, 1)) - low_x) / (high_x - low_x)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(value: float) -> float:
        share = (min(1.0, max(bottom, value)) - bottom) / (1 - bottom)
        return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)

    groups: dict[str, list[dict[Any, Any]]] = {}
    for row in records:
        groups.setdefault(curve_label(row), []).append(row)
    curves = []
    for label, points in groups.items():
        points.sort(key=lambda row: int(row["k"]))
        test = [(row, value) for row in points if (value := judged(row, "test")[0]) is not None]
        validation = [(row, value) for row in points if (value := judged(row, "validation")[0]) is not None]
        banded = [
            (row, low, high)
            for row in points
            if (low := judged(row, "test")[1]) is not None and (high := judged(row, "test")[2]) is not None
        ]
        outline = [f"{x(row['k'])},{y(high)}" for row, _, high in banded]
        outline += [f"{x(row['k'])},{y(low)}" for row, low, _ in reversed(banded)]
        curves.append(
            Curve(
                label=label,
                style=styles.get(label, "c0"),
                test_path=" ".join(f"{x(row['k'])},{y(value)}" for row, value in test),
                validation_path=" ".join(f"{x(row['k'])},{y(value)}" for row, value in validation),
                band_path=" ".join(outline) if len(banded) > 1 else "",
                points=tuple(Point(x(row["k"]), y(value), _point_title(label, row, value)) for row, value in test),
            )
        )
    step = max(1, -(-len(ks) // _MAX_K_TICKS))
    marks = [bottom, 0.0, 0.5, 1.0] if bottom < 0 else [0.0, 0.5, 1.0]
    return Chart(
        feature=feature,
        tested=tested,
        metric=str(records[0]["metric"]),
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=_WIDTH - _RIGHT,
        top=_TOP,
        bottom=_HEIGHT - _BOTTOM,
        x_ticks=tuple(Tick(x(k), str(k)) for k in ks[::step]),
        y_ticks=tuple(Tick(y(mark), f"{mark:g}") for mark in marks),
        curves=tuple(curves),
        dense_y=None if dense is None else y(dense),
        dense_title=f"dense probe: test {score(dense)}",
    )


def _point_title(label: str, row: dict[Any, Any], value: float) -> str:
    layer = number(row["layer"])
    where = "all layers" if layer is None else f"layer {int(layer)}"
    test = interval(value, judged(row, "test")[1], judged(row, "test")[2])
    return f"{label}, k = {int(row['k'])}, {where}: test {test}, validation {score(judged(row, 'validation')[0])}"


def judged(row: dict[Any, Any], split: str) -> tuple[float | None, float | None, float | None]:
    """The score that a row's fit is judged by (column metric) on a split, with its interval: of views of fits."""
    ends = [number(row.get(f"{split}_{row['metric']}_{end}")) for end in ("low", "high")]
    return number(row[f"{split}_{row['metric']}"]), ends[0], ends[1]


def number(value: Any) -> float | None:
    """A float, or None for whatever a frame holds in place of a missing value."""
    return None if value is None or pd.isna(value) else float(value)
