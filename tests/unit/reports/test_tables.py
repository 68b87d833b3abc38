"""Terminal tables and rows as text."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from rich.console import Console

from sparse_probing.errors import InputError
from sparse_probing.reports.tables import best_neurons_table, format_rows, write_rows
from sparse_probing.warehouse.reads import BestNeuron

NEURON = BestNeuron(
    run_id="r1",
    model="tiny",
    revision="main",
    collection="text_features",
    hook="mlp.hook_post",
    feature="contains_digit",
    layer=3,
    neuron=421,
    ties=1,
    validation_mcc=0.91234,
    validation_mcc_low=0.9,
    validation_mcc_high=0.95,
    test_mcc=0.9,
    test_mcc_low=0.85,
    test_mcc_high=0.94,
    prevalence=0.2,
    q_value=0.0001,
    n_test=200,
    n_test_positive=40,
    n_test_negative=160,
    n_test_groups=20,
    n_test_groups_positive=15,
    direction=1,
    threshold=0.5,
    p_value_is_bound=False,
)


def rendered(*neurons: BestNeuron) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=120).print(best_neurons_table(neurons))
    return stream.getvalue().splitlines()


def test_a_row_has_everything_about_a_neuron() -> None:
    line = next(line for line in rendered(NEURON) if "contains_digit" in line)
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells == ["contains_digit", "3", "421", "+", "0.912", "0.900 [0.850, 0.940]", "0", "<0.001"]


def test_a_q_value_that_is_a_bound_says_so() -> None:
    assert "≤0.005 │" in rendered(replace(NEURON, q_value=0.004975, p_value_is_bound=True))[5]
    assert "0.005 │" in rendered(replace(NEURON, q_value=0.004975))[5]


def test_rows_are_grouped_by_collection_and_ties_are_told() -> None:
    other = replace(
        NEURON, run_id="r2", collection="ewt", feature="noun", ties=4, direction=-1, test_mcc_low=None, q_value=0.05
    )
    lines = rendered(NEURON, replace(NEURON, feature="[red]capital"), other)
    heads = [i for i, line in enumerate(lines) if "tiny@main" in line]
    assert len(heads) == 2
    assert "text_features" in lines[heads[0]]
    assert "[red]capital" in lines[heads[0] + 2]
    assert "ewt" in lines[heads[1]]
    assert "− │" in lines[heads[1] + 1]
    assert "0.912 │" in lines[heads[1] + 1]
    assert "│    3 │" in lines[heads[1] + 1]
    assert "0.050" in lines[heads[1] + 1]


def test_hooks_are_told_apart_where_there_are_several() -> None:
    assert not any("hook_post" in line for line in rendered(NEURON))
    lines = rendered(NEURON, replace(NEURON, run_id="r2", hook="hook_resid_post"))
    heads = [line for line in lines if "tiny@main" in line]
    assert ["mlp.hook_post" in line for line in heads] == [True, False]
    assert ["hook_resid_post" in line for line in heads] == [False, True]


COLUMNS = ("name", "score", "layers", "name")
ROWS = [("a,b", 0.5, [1, 2], None), ('line\n"two"', math.nan, None, datetime(2026, 1, 1, tzinfo=UTC))]


def test_csv_survives_a_reader() -> None:
    found = list(csv.reader(io.StringIO(format_rows(COLUMNS, ROWS, format="csv"))))
    assert found == [
        list(COLUMNS),
        ["a,b", "0.5", "[1, 2]", ""],
        ['line\n"two"', "nan", "", "2026-01-01 00:00:00+00:00"],
    ]


def test_json_is_strict_and_keeps_repeated_names() -> None:
    def refuse(text: str) -> None:
        raise AssertionError(text)

    found = json.loads(format_rows(COLUMNS, ROWS, format="json"), parse_constant=refuse)
    assert found == [
        {"name": "a,b", "score": 0.5, "layers": [1, 2], "name_2": None},
        {"name": 'line\n"two"', "score": None, "layers": None, "name_2": "2026-01-01T00:00:00+00:00"},
    ]
    assert json.loads(format_rows(["a", "b"], [(Decimal("1.5"), {"x": (1, b"q")})], "json")) == [
        {"a": 1.5, "b": {"x": [1, "b'q'"]}}
    ]


def test_tables_are_aligned_numbers_to_the_right() -> None:
    text = format_rows(["feature", "mcc"], [("digit", 0.25), ("leading_capital", 0.123456789), ("x", None)])
    assert text.splitlines() == [
        "feature               mcc",
        "---------------  --------",
        "digit                0.25",
        "leading_capital  0.123457",
        "x",
        "(3 rows)",
    ]
    assert format_rows(["a"], []).splitlines() == ["a", "-", "(0 rows)"]
    assert format_rows(["a"], [], "json") == "[]"
    assert format_rows(["a"], [], "csv") == "a"


def test_an_unknown_format_is_an_input_error() -> None:
    with pytest.raises(InputError, match="expected table, csv, json"):
        format_rows(["a"], [], format="xml")


def test_markdown_is_a_table_whose_cells_hold_no_bar() -> None:
    text = format_rows(["hook", "layers"], [("post", "0–2"), ("a|b", None)], "markdown")
    assert text.splitlines() == ["| hook | layers |", "| --- | --- |", "| post | 0–2 |", "| a/b |  |"]


def test_json_that_is_written_row_by_row_is_that_of_the_whole_list() -> None:
    columns = ("a", "b", "a")
    rows = [(1, 'x\n\u2028ü"', [1, [2.5, {"k": [1]}]]), (None, float("nan"), {}), (True, [], {"x": {}, "y": [1]})]
    stream = io.StringIO()
    write_rows(stream, columns, rows, format="json")
    records = [
        {"a": 1, "b": 'x\n\u2028ü"', "a_2": [1, [2.5, {"k": [1]}]]},
        {"a": None, "b": None, "a_2": {}},
        {"a": True, "b": [], "a_2": {"x": {}, "y": [1]}},
    ]
    assert stream.getvalue() == json.dumps(records, ensure_ascii=False, indent=1) + "\n"
    assert format_rows(columns, [], format="json") == "[]"
