"""Results as text: a table for the terminal, and rows as table, CSV or JSON.

Only layout lives here; every number comes from `warehouse.reads`.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from decimal import Decimal
from itertools import groupby, islice
from typing import IO, Any, Literal

from rich.markup import escape
from rich.table import Table

from sparse_probing.errors import InputError
from sparse_probing.warehouse.reads import BestNeuron, BestTargetProbe

Format = Literal["table", "csv", "json", "markdown"]
FORMATS: tuple[Format, ...] = ("table", "csv", "json", "markdown")
MISSING = "–"
MOST_TABLE_ROWS = 1000
BEST_CAPTION = (
    "MCC, chosen on validation, reported on test. sign −: falls with the feature. tied: not shown to be worse on test"
)


def best_neurons_table(neurons: Sequence[BestNeuron], *, title: str = "Best neuron of each feature") -> Table:
    """A terminal table, one section per model, revision, collection and hook; rows in the order given.

    Test MCC comes with its 95 % interval. A neuron that is not shown to beat others of the shortlist on test says how many.
    """
    table = Table(title=title, title_justify="left", caption=BEST_CAPTION)
    for heading in ("feature", "layer", "neuron", "sign", "validation", "test MCC [95 %]", "tied", "q"):
        table.add_column(heading, justify="left" if heading == "feature" else "right", no_wrap=True)
    n_hooks = len({row.hook for row in neurons})
    for (model, revision, collection, hook, _), group in groupby(
        neurons, key=lambda row: (row.model, row.revision, row.collection, row.hook, row.run_id)
    ):
        where = f"{model}@{revision}" + (f" {hook}" if n_hooks > 1 else "")
        table.add_row(f"[bold]{escape(collection)}[/bold] [dim]{escape(where)}[/dim]")
        for row in group:
            table.add_row(
                escape(row.feature),
                str(row.layer),
                str(row.neuron),
                {1: "+", -1: "−"}.get(row.direction, MISSING),
                score(row.validation_mcc),
                interval(row.test_mcc, row.test_mcc_low, row.test_mcc_high),
                MISSING if row.ties is None else str(row.ties - 1),
                q_value(row.q_value, row.p_value_is_bound),
            )
        table.add_section()
    return table


def best_targets_table(probes: Sequence[BestTargetProbe]) -> Table:
    """A terminal table of features whose targets are numbers, one section per run; rows in the order given."""
    table = Table(
        title="Best sparse probe of each target", title_justify="left", caption="chosen on validation, reported on test"
    )
    for heading in ("feature", "layer", "k", "validation R²", "test R² [95 %]", "dense, test R²"):
        table.add_column(heading, justify="left" if heading == "feature" else "right", no_wrap=True)
    for (model, revision, collection, hook, _), group in groupby(
        probes, key=lambda row: (row.model, row.revision, row.collection, row.hook, row.run_id)
    ):
        table.add_row(f"[bold]{escape(collection)}[/bold] [dim]{escape(f'{model}@{revision} {hook}')}[/dim]")
        for row in group:
            table.add_row(
                escape(row.feature),
                MISSING if row.layer is None else str(row.layer),
                str(row.k),
                score(row.validation_r2),
                interval(row.test_r2, row.test_r2_low, row.test_r2_high),
                score(row.dense_test_r2),
            )
        table.add_section()
    return table


def format_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]], format: str = "table") -> str:
    """Columns and rows as text, without a final line break.

    Parameters
    ----------
    format:
        ``table`` (aligned text), ``csv`` (null is empty), ``json`` (a list of objects; what is not a finite number
        is null), or ``markdown``.

    Raises
    ------
    InputError
        If the format is unknown.
    """
    if format in ("csv", "json"):
        stream = io.StringIO()
        write_rows(stream, columns, rows, format=format)
        return stream.getvalue().rstrip("\n")
    if format == "markdown":
        cells = [columns, ["---"] * len(columns), *rows]
        return "\n".join(
            f"| {' | '.join('' if cell is None else str(cell).replace('|', '/') for cell in row)} |" for row in cells
        )
    if format != "table":
        raise InputError(f"Format {format!r} unknown; expected {', '.join(FORMATS)}.", remedy="Choose one of them.")
    return _aligned(columns, rows)


def write_rows(
    stream: IO[str], columns: Sequence[str], rows: Iterable[Sequence[Any]], *, format: str = "table"
) -> None:
    """Write rows as `format_rows` formats them, CSV and JSON one by one, however many there are.

    A table has the width of its widest value, so only its first `MOST_TABLE_ROWS` rows are read and shown; its last line
    says so where there are more.

    Raises
    ------
    InputError
        If the format is unknown.
    """
    if format == "csv":
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow(["" if value is None else value for value in row])
    elif format == "json":
        keys = [_encoded(name) for name in _distinct(columns)]
        before = "[\n "
        for row in rows:
            fields = ",\n".join([f"  {key}: {_json(value)}" for key, value in zip(keys, row, strict=True)])
            stream.write(f"{before}{{\n{fields}\n }}")
            before = ",\n "
        stream.write("[]\n" if before.startswith("[") else "\n]\n")
    else:
        left = iter(rows)
        shown = list(islice(left, MOST_TABLE_ROWS))
        text = format_rows(columns, shown, format=format)
        if next(left, None) is not None:
            count = f"(the first {len(shown):,} rows; there are more: --format csv or json has all)"
            text = f"{text.rpartition(chr(10))[0]}\n{count}"
        stream.write(f"{text}\n")


def score(value: float | None) -> str:
    """A score with three decimals."""
    return MISSING if value is None or math.isnan(value) else f"{value:.3f}"


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """A score with its interval, if it has one."""
    if low is None or high is None:
        return score(value)
    return f"{score(value)} [{score(low)}, {score(high)}]"


def direction_word(direction: int) -> str:
    """How a neuron responds to its feature."""
    return {1: "rises", -1: "falls"}.get(direction, MISSING)


def activation(value: float | None) -> str:
    """An activation with three significant digits."""
    return MISSING if value is None or math.isnan(value) else f"{value:.3g}"


def q_value(value: float | None, is_bound: bool | None = False) -> str:
    """A q-value: three decimals, no false zero, and ``≤`` where no permutation reached the neuron."""
    if value is None or math.isnan(value):
        return MISSING
    if value < 0.001:
        return "<0.001"
    # Rounded up: at most 0.00498 is not at most 0.004.
    return f"≤{math.ceil(value * 1000 - 1e-6) / 1000:.3f}" if is_bound else f"{value:.3f}"


def _aligned(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    texts = [[_text(value) for value in row] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(columns, *texts, strict=True)]
    numeric = [
        bool(rows) and all(row[i] is None or (isinstance(row[i], int | float | Decimal)) for row in rows)
        for i in range(len(columns))
    ]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        ]
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    count = f"({len(rows)} row{'' if len(rows) == 1 else 's'})"
    return "\n".join([line(columns), rule, *map(line, texts), count])


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(str(value).split())


_encoded = json.JSONEncoder(ensure_ascii=False).encode
_encoded_on_lines = json.JSONEncoder(ensure_ascii=False, indent=1).encode


def _json(value: Any) -> str:
    """A value of a record as JSON, where the record is one of a list: two steps from the margin."""
    plain = _plain(value)
    if isinstance(plain, list | dict):
        return _encoded_on_lines(plain).replace("\n", "\n  ")
    return _encoded(plain)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)


def _distinct(columns: Sequence[str]) -> list[str]:
    """Column names as keys of one object: a repeated name gets a number."""
    names: list[str] = []
    for name in columns:
        candidate, number = name, 2
        while candidate in names:
            candidate, number = f"{name}_{number}", number + 1
        names.append(candidate)
    return names
