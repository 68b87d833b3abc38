"""How results show themselves in a terminal and in a notebook: a headline and a small table, never whole arrays."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import SupportsFloat

# Rows that a result shows of itself.
N_SHOWN = 5
# Rows of a list that has no best ones.
N_ROWS = 20


def decimals(value: SupportsFloat | None) -> str:
    """A score with three decimals; empty where there is none."""
    return "" if value is None or math.isnan(float(value)) else f"{float(value):.3f}"


def digits(value: SupportsFloat | None) -> str:
    """A number with four significant digits; empty where there is none."""
    return "" if value is None or math.isnan(float(value)) else f"{float(value):.4g}"


def signed(value: SupportsFloat) -> str:
    """+1, -1 or 0."""
    return f"{int(float(value)):+d}" if float(value) else "0"


def as_text(headline: str, columns: Mapping[str, Sequence[str]], more: str = "") -> str:
    """The headline, columns aligned to the right, and what is to be said of the rest."""
    widths = {name: max(map(len, (name, *cells))) for name, cells in columns.items()}
    lines = ["  ".join(name.rjust(widths[name]) for name in columns)] if columns else []
    for row in zip(*columns.values(), strict=True):
        lines.append("  ".join(cell.rjust(width) for cell, width in zip(row, widths.values(), strict=True)))
    return "\n".join([headline, *(line.rstrip() for line in lines), *([more] if more else [])])


def as_html(headline: str, columns: Mapping[str, Sequence[str]], more: str = "") -> str:
    """The same as an HTML fragment."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in zip(*columns.values(), strict=True)
    )
    tail = f"<p>{html.escape(more)}</p>" if more else ""
    return f"<p>{html.escape(headline)}</p><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{tail}"
