"""Charts of series of checkpoints: places on the axis, lines, rings and limits."""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd

from sparse_probing.reports import checkpoints
from sparse_probing.reports.charts import across, upward
from sparse_probing.reports.checkpoints import all_series

TESTED = {("r2", "digit"): "200 rows"}


def frames(
    steps: list[int | None], best: list[tuple[int, int]], *, feature: str = "digit", series_id: str = "s"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A series whose best neurons are given; a neuron's test MCC is a hundredth of its number times the position."""
    base = {"series_id": series_id, "feature": feature, "model": "tiny", "collection": "text_features", "hook": "post"}
    base |= {"direction": -1, "validation_mcc": 0.5}

    def row(position: int, place: tuple[int, int]) -> dict[str, Any]:
        layer, neuron = place
        value = neuron * position / 100
        ends = {"test_mcc": value, "test_mcc_low": value - 0.125, "test_mcc_high": value + 0.125}
        step = steps[position - 1]
        named = {
            "revision": "main" if step is None else f"step{step}",
            "training_step": step,
            "run_id": f"r{position - 1}",
        }
        return {**base, **ends, **named, "position_in_series": position, "layer": layer, "neuron": neuron}

    positions = range(1, len(steps) + 1)
    trajectories = pd.DataFrame([row(position, best[position - 1]) for position in positions])
    followed = pd.DataFrame(
        [
            {**row(position, place), "is_best": best[position - 1] == place}
            for place in sorted(set(best))
            for position in positions
        ]
    )
    return trajectories, followed


def test_step_0_has_a_place_and_a_new_neuron_a_ring() -> None:
    (series,) = all_series(*frames([0, 1, 3, 7], [(0, 10), (0, 10), (1, 20), (1, 20)]), TESTED)
    (chart,) = series.charts
    assert (series.n_checkpoints, series.first, series.last, series.n_more) == (4, "step0", "step7", 0)
    *_, best = chart.curves
    # log2(step + 1) is 0, 1, 2, 3.
    assert [point.x for point in best.points] == [across(share / 3) for share in range(4)]
    lowest = -0.25
    assert [point.y for point in best.points] == [upward(value, lowest) for value in (0.1, 0.2, 0.6, 0.8)]
    assert [point.is_open for point in best.points] == [False, False, True, False]
    assert best.points[2].title == (
        "step3, layer 1, neuron 20 (falls): test MCC 0.600 [0.475, 0.725], validation 0.500, another neuron than before"
    )
    assert best.band_path.count(",") == 8
    assert [tick.text for tick in chart.x_ticks] == ["0", "1", "3", "7"]
    assert chart.y_ticks[0].text == "-0.25"
    assert chart.label == "Test MCC over training steps for digit"


def test_the_same_neurons_have_a_point_at_every_checkpoint() -> None:
    (series,) = all_series(*frames([0, 1, 3], [(0, 10), (0, 10), (1, 20)]), TESTED)
    (chart,) = series.charts
    one, last, best = chart.curves
    assert (one.style, one.label) == ("faint", "layer 0, neuron 10: the best at 2 of 3 checkpoints")
    assert (last.style, last.label) == ("last", "layer 1, neuron 20: the best at 1 of 3 checkpoints")
    assert one.test_path == " ".join(
        f"{point.x},{upward(value, -0.25)}" for point, value in zip(best.points, (0.1, 0.2, 0.3), strict=True)
    )
    assert chart.tested == "200 rows"


def test_the_last_best_neuron_is_drawn_however_many_there_are() -> None:
    places = [(0, number) for number in range(1, 9) for _ in range(2)] + [(1, 1)]
    (series,) = all_series(*frames(list(range(17)), places), {})
    (chart,) = series.charts
    *others, last, _ = chart.curves
    assert len(others) == checkpoints.MAX_FOLLOWED - 1
    assert last.label.startswith("layer 1, neuron 1:")
    # Of those that are best as often as others, the latest.
    assert [curve.label.split(":")[0][-1] for curve in others] == ["4", "5", "6", "7", "8"]


def test_revisions_without_a_step_come_last() -> None:
    (series,) = all_series(*frames([1, 3, None], [(0, 10)] * 3), {})
    (chart,) = series.charts
    assert [tick.text for tick in chart.x_ticks] == ["1", "3", "main"]
    assert [tick.at for tick in chart.x_ticks] == [across(0), across(0.5), across(1)]
    (series,) = all_series(*frames([None, None], [(0, 10)] * 2), {})
    assert [tick.at for tick in series.charts[0].x_ticks] == [across(0), across(1)]


def test_labels_of_the_axis_do_not_touch() -> None:
    steps = [0, *(2**power for power in range(10)), *range(1000, 144_000, 1000)]
    (series,) = all_series(*frames(list(steps), [(0, 10)] * len(steps)), {})
    ticks = series.charts[0].x_ticks
    assert (ticks[0].text, ticks[-1].text) == ("0", "143k")
    assert min(after.at - before.at for before, after in itertools.pairwise(ticks)) >= 26


def test_what_has_no_room_is_counted() -> None:
    parts = [frames([0, 1], [(0, number), (0, number)], feature=f"f{number:02d}") for number in range(30)]
    best, followed = (pd.concat(one) for one in zip(*parts, strict=True))
    best["validation_mcc"] = best["neuron"] / 100
    (series,) = all_series(best, followed, {})
    assert series.n_more == 6
    assert [chart.feature for chart in series.charts] == [f"f{number:02d}" for number in range(29, 5, -1)]


def test_there_is_no_series_without_checkpoints() -> None:
    best, followed = frames([0, 1], [(0, 1), (0, 1)])
    assert all_series(best[:0], followed[:0], {}) == ()
