"""Flows wait for tasks in one way, which tells what failed first."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

FLOWS = sorted(path for path in (Path(__file__).parents[2] / "flows").glob("*.py") if path.stem != "futures")


def waits(tree: ast.AST) -> list[int]:
    """Lines that have Prefect wait for a task, or ask a future for its result."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (
            any(keyword.arg == "wait_for" for keyword in node.keywords) or getattr(node.func, "attr", None) == "result"
        )
    ]


@pytest.mark.parametrize("path", FLOWS, ids=lambda path: path.name)
def test_only_results_of_waits_for_tasks(path: Path) -> None:
    assert waits(ast.parse(path.read_text(encoding="utf-8"))) == []


def test_the_search_finds_what_it_is_for() -> None:
    assert waits(ast.parse("a = f.submit(1)\nb = g.submit(wait_for=[a])\nc = b.result()")) == [2, 3]
