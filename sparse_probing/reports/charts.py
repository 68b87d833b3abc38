"""Numbers to geometry for the HTML report: heat-map cells, small multiples, sparsity curves. No markup, no queries.

Series of checkpoints are drawn in `checkpoints`, in the same box.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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
    """A marker with its hover text; `is_open`: drawn as a ring."""

    x: float
    y: float
    title: str
    is_open: bool = False


@dataclass(frozen=True)
class Curve:
    """One line of a chart; `style` is its colour class. Paths may be empty."""

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
    """One small multiple: a feature's curves in a box of `width` × `height`; `label` says what it shows."""

    feature: str
    label: str
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


def across(share: float) -> float:
    """Where a share of the horizontal axis, 0 to 1, lies in the box of a chart."""
    return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)


def upward(value: float, lowest: float) -> float:
    """Where a score lies in the box of a chart whose vertical axis goes from `lowest` to 1."""
    share = (min(1.0, max(lowest, value)) - lowest) / (1 - lowest)
    return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)


def lowest_shown(scores: Iterable[float | None]) -> float:
    """Where the vertical axis of a chart of these scores begins: 0, or a quarter below."""
    lowest = min([value for value in scores if value is not None] + [0.0])
    return 0.0 if lowest >= 0 else max(-1.0, math.floor(lowest * 4) / 4)


def boxed(
    feature: str,
    curves: Iterable[Curve],
    x_ticks: Iterable[Tick],
    lowest: float,
    *,
    label: str,
    tested: str,
    metric: str = "mcc",
    dense: float | None = None,
) -> Chart:
    """Curves in the box that all charts share; `dense` is the dense probe's test score."""
    marks = [lowest, 0.0, 0.5, 1.0] if lowest < 0 else [0.0, 0.5, 1.0]
    return Chart(
        feature=feature,
        label=label,
        tested=tested,
        metric=metric,
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=_WIDTH - _RIGHT,
        top=_TOP,
        bottom=_HEIGHT - _BOTTOM,
        x_ticks=tuple(x_ticks),
        y_ticks=tuple(Tick(upward(mark, lowest), f"{mark:g}") for mark in marks),
        curves=tuple(curves),
        dense_y=None if dense is None else upward(dense, lowest),
        dense_title=f"dense probe: test {score(dense)}",
    )


def band(places: Sequence[tuple[float, float, float]]) -> str:
    """The outline of intervals (x, y of the lower end, y of the upper end) from left to right; empty for fewer than two."""
    outline = [f"{x},{high}" for x, _, high in places] + [f"{x},{low}" for x, low, _ in reversed(places)]
    return " ".join(outline) if len(places) > 1 else ""


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
    lowest = lowest_shown([*scores, dense])
    low_x, high_x = math.log2(max(ks[0], 1)), math.log2(max(ks[-1], 1))

    def x(k: float) -> float:
        return across(0.5 if high_x == low_x else (math.log2(max(k, 1)) - low_x) / (high_x - low_x))

    def y(value: float) -> float:
        return upward(value, lowest)

    groups: dict[str, list[dict[Any, Any]]] = {}
    for row in records:
        groups.setdefault(curve_label(row), []).append(row)
    curves = []
    for label, points in groups.items():
        points.sort(key=lambda row: int(row["k"]))
        test = [(row, value) for row in points if (value := judged(row, "test")[0]) is not None]
        validation = [(row, value) for row in points if (value := judged(row, "validation")[0]) is not None]
        banded = [
            (x(row["k"]), y(low), y(high))
            for row in points
            if (low := judged(row, "test")[1]) is not None and (high := judged(row, "test")[2]) is not None
        ]
        curves.append(
            Curve(
                label=label,
                style=styles.get(label, "c0"),
                test_path=" ".join(f"{x(row['k'])},{y(value)}" for row, value in test),
                validation_path=" ".join(f"{x(row['k'])},{y(value)}" for row, value in validation),
                band_path=band(banded),
                points=tuple(Point(x(row["k"]), y(value), _point_title(label, row, value)) for row, value in test),
            )
        )
    step = max(1, -(-len(ks) // _MAX_K_TICKS))
    return boxed(
        feature,
        curves,
        [Tick(x(k), str(k)) for k in ks[::step]],
        lowest,
        label=f"Score over k for {feature}",
        tested=tested,
        metric=str(records[0]["metric"]),
        dense=dense,
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
