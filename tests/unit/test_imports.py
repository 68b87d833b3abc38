"""The import rules of the architecture, read off the source: a breach fails here before it costs start-up time."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SIDE_BY_SIDE = {"datasets", "models", "activations", "store", "probes", "neurons", "warehouse", "runs"}
BASE = {"config", "settings", "errors", "credentials", "schemas", "mistakes", "showing"}
MAY_USE = {
    "datasets": {"store"},
    "models": {"store"},
    "activations": {"models", "store"},
    "neurons": {"activations", "models", "store"},
    "warehouse": {"store"},
    "store": set(),
    "probes": set(),
    "runs": {"probes", "store", "warehouse"},
}
HEAVY_ROOMS = {
    "torch": {"models", "activations", "neurons", "probes"},
    "transformers": {"models", "activations"},
    "gurobipy": {"probes/optimal/integer_model.py"},
    "duckdb": {"warehouse"},
    "great_expectations": {"warehouse"},
    "prefect": set(),
}


def imported_names(path: Path) -> set[str]:
    """Dotted names a module imports anywhere, inside functions too, type-checking imports included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", modules("sparse_probing"), ids=lambda path: str(path.relative_to(ROOT)))
def test_library_module_keeps_the_rules(path: Path) -> None:
    names = imported_names(path)
    relative = path.relative_to(ROOT / "sparse_probing")
    room = relative.parts[0].removesuffix(".py")
    roots = {name.split(".")[0] for name in names}
    assert not roots & {"prefect", "tasks", "flows"}, f"{relative} imports an orchestrator"
    for heavy, rooms in HEAVY_ROOMS.items():
        if heavy in roots:
            assert room in rooms or relative.as_posix() in rooms, f"{relative} may not import {heavy}"
    used = {name.split(".")[1] for name in names if name.startswith("sparse_probing.")} - {"__version__"}
    if room in BASE:
        assert used <= BASE, f"{relative} imports {used - BASE}"
    elif room == "reports":
        assert used <= BASE | {"warehouse", "reports"}, f"{relative} imports {used}"
    elif room in SIDE_BY_SIDE:
        assert used & SIDE_BY_SIDE <= MAY_USE[room] | {room}, f"{relative} imports {used}"


@pytest.mark.parametrize("path", modules("tasks"), ids=lambda path: path.name)
def test_tasks_do_not_import_flows(path: Path) -> None:
    assert "flows" not in {name.split(".")[0] for name in imported_names(path)}


@pytest.mark.parametrize("path", modules("flows"), ids=lambda path: path.name)
def test_flows_hold_order_only(path: Path) -> None:
    names = imported_names(path)
    assert not {name.split(".")[0] for name in names} & {"numpy", "torch", "duckdb", "pandas", "pyarrow"}
    if path.stem != "cli":
        used = {name.split(".")[1] for name in names if name.startswith("sparse_probing.")}
        assert used <= {"config", "settings", "errors", "credentials"}, f"{path.name} imports {used}"


def test_importing_the_library_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'duckdb', 'gurobipy', 'great_expectations', 'prefect', 'transformers'}"
    code = f"import sys, sparse_probing; print(sorted(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
