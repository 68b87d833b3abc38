"""No test asserts how long something took: a slow machine is no defect. Ratios are measured in ``benchmarks/``."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
CLOCKS = {"perf_counter", "monotonic", "process_time", "thread_time"}


def asserted_clocks(tree: ast.AST) -> list[int]:
    """Lines of assertions that read a clock, directly or through a name that was given a clock's difference."""
    timed = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and _reads_clock(node.value) and isinstance(node.value, ast.BinOp)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
        and (_reads_clock(node.test) or timed & {one.id for one in ast.walk(node.test) if isinstance(one, ast.Name)})
    ]


def _reads_clock(node: ast.AST) -> bool:
    calls = (one.func for one in ast.walk(node) if isinstance(one, ast.Call))
    return any(getattr(one, "attr", getattr(one, "id", "")) in CLOCKS for one in calls)


@pytest.mark.parametrize("path", sorted(TESTS.rglob("test_*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_assertion_on_a_clock(path: Path) -> None:
    assert asserted_clocks(ast.parse(path.read_text(encoding="utf-8"))) == []


def test_the_search_finds_what_it_is_for() -> None:
    direct = "started = time.monotonic()\nassert time.monotonic() - started < 5"
    named = "took = time.perf_counter() - started\nassert took < 1"
    deadline = "deadline = time.monotonic() + 9\nwhile time.monotonic() < deadline: pass\nassert state == 'done'"
    assert [asserted_clocks(ast.parse(code)) for code in (direct, named)] == [[2], [2]]
    assert asserted_clocks(ast.parse(deadline)) == []
