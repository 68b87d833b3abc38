"""The plan on paper: the page shows what the program prints, and the program's sums are those of a hand calculation."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import plan_scale
from benchmarks.plan_scale import FIGURES, Collection, Model, plan

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "scale.md"


@pytest.mark.parametrize("table", ["collection_table", "figure_table", "plan_table"])
def test_the_page_shows_what_the_program_prints(table: str) -> None:
    assert getattr(plan_scale, table)() in PAGE.read_text(encoding="utf-8"), (
        "docs/scale.md differs from what python -m benchmarks.plan_scale prints: copy its tables"
    )


def test_every_figure_names_a_benchmark_that_there_is() -> None:
    for figure in FIGURES.values():
        module = figure.command.split("-m ")[1].split()[0]
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), figure.command


def test_a_plan_is_the_sum_over_its_parts() -> None:
    model = Model("small", n_layers=2, n_neurons=100, parameters=1e6, weight_bytes=2e6)
    words, texts = Collection("words", 1000, 5000, 3), Collection("texts", 50, 20000, 7)
    found = plan("small", (model,), (words, texts))
    assert found.neurons == 200
    assert found.pairs == 200 * 10
    assert found.activation_bytes == pytest.approx(200 * 1050 * 0.72)
    assert found.gpu_hours == pytest.approx(2e6 * 25000 / 100e12 / 0.88 / 3600)
    value = {name: figure.value for name, figure in FIGURES.items()}
    per_row = value["counting"] + value["null"] + value["fits"]
    basis = 2 * 1050 * 100**2 * value["rotating"] + 2 * 100**3 * value["basis"]
    scores = 200 * 10 * value["scores"] + 200 * (1000 * 3 + 50 * 7) * per_row
    assert found.core_hours * 3600 == pytest.approx(scores + basis)
    assert found.basis_hours * 3600 == pytest.approx(basis)
    # Checkpoints cost as often what one costs, and no more memory.
    series = plan("series", (model,), (words, texts), times=10)
    assert (series.pairs, series.layer_gib) == (found.pairs * 10, found.layer_gib)
    assert series.core_hours == pytest.approx(found.core_hours * 10)


def test_the_pythias_have_the_papers_neurons() -> None:
    assert sum(model.all_neurons for model in plan_scale.PYTHIAS) == 1_327_104
    assert 99 < plan_scale.LARGE.weight_bytes / plan_scale.PYTHIAS[2].weight_bytes < 105
