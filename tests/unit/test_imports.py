"""The rules of docs/architecture.md, read off the source: who imports whom, where heavy packages live, how long modules are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Every package and module at the top of `sparse_probing` is in one of these three tables.
# Specs, settings, errors, schemas: they import only each other.
BASE = {"config", "settings", "errors", "credentials", "schemas", "mistakes", "showing"}
# Rooms side by side: beside BASE and itself, a room may use these others of the table.
ROOMS = {
    "datasets": {"store"},
    "models": {"store"},
    "activations": {"models", "store"},
    "neurons": {"activations", "models", "store"},
    "probes": set(),
    "runs": {"probes", "store", "warehouse"},
    "store": set(),
    "warehouse": {"store"},
    "reports": {"warehouse"},
}
# Modules above the rooms, which look into several: beside BASE, a module may use these. No room may use them.
ABOVE = {
    "scanning": {"models", "planning", "store"},
    "preflight": {"activations", "datasets", "models", "probes", "store"},
    "profile_keys": {"datasets", "models", "probes"},
    "studying": {"activations", "datasets", "models", "planning", "preflight", "reports", "runs", "store", "warehouse"},
    "planning": {"activations", "datasets", "models", "probes", "runs", "store", "warehouse"},
}
# Modules of flows that print: they ask the library for what they show.
COMMANDS = {"cli", "commands", "services", "studies"}
HEAVY_ROOMS = {
    "torch": {"models", "activations", "neurons", "probes"},
    "transformers": {"models", "activations"},
    "gurobipy": {"probes/optimal/integer_model.py"},
    "duckdb": {"warehouse"},
    "great_expectations": {"warehouse"},
    "prefect": set(),
}
MAX_LINES = 400


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
    if room == "__init__":
        return  # it names what it offers, for type checkers; a test below sees that nothing is loaded
    roots = {name.split(".")[0] for name in names}
    assert not roots & {"prefect", "tasks", "flows"}, f"{relative} imports an orchestrator"
    for heavy, rooms in HEAVY_ROOMS.items():
        if heavy in roots:
            assert room in rooms or relative.as_posix() in rooms, f"{relative} may not import {heavy}"
    used = {name.split(".")[1] for name in names if name.startswith("sparse_probing.")} - {"__version__"}
    may_use = BASE | ({room} | ROOMS[room] if room in ROOMS else ABOVE.get(room, set()))
    assert used <= may_use, f"{relative} may not import {', '.join(sorted(used - may_use))}"


def rooms_of_the_library() -> list[str]:
    """Packages and modules at the top of the library that Python files make up."""
    top = ROOT / "sparse_probing"
    return sorted({path.relative_to(top).parts[0].removesuffix(".py") for path in top.rglob("*.py")} - {"__init__"})


@pytest.mark.parametrize("room", rooms_of_the_library())
def test_every_room_has_a_place(room: str) -> None:
    assert room in BASE or room in ROOMS or room in ABOVE, (
        f"sparse_probing/{room} is in no table of this test. Add it to BASE if only specs, settings and errors may be "
        "imported by it; to ROOMS, with the rooms that it may use, if it stands beside datasets, models and probes; to ABOVE, "
        "with the rooms that it looks into, if none of them may import it. Then say in docs/architecture.md what it holds."
    )


@pytest.mark.parametrize("path", modules("sparse_probing"), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_long_module_says_why(path: Path) -> None:
    """Past 400 lines, the module's docstring has a sentence that begins with "Long because" and ends in a full stop."""
    text = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text)) or ""
    reason = re.search(r"(?:^|(?<=[.\n]))\s*Long because [^.]{20,}\.", docstring)
    assert len(text.splitlines()) <= MAX_LINES or reason, (
        f"{path.relative_to(ROOT)} has {len(text.splitlines())} lines. Split it, or add a sentence to its docstring that "
        'begins with "Long because" and says why one module is better.'
    )


def test_the_architecture_says_the_same() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| ")
    ]
    places = {**ROOMS, **ABOVE}
    told = {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[-1])) for row in rows if row[0].strip("`") in places}
    assert told == {name: places[name] for name in told}
    assert set(told) == set(places), "a room without a row"
    homes = {package.strip(): set(re.findall(r"`([^`]+)`", row[1])) for row in rows for package in row[0].split(",")}
    assert {package: homes.get(package) for package in HEAVY_ROOMS} == HEAVY_ROOMS
    base = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert base >= BASE


@pytest.mark.parametrize("path", modules("tasks"), ids=lambda path: path.name)
def test_tasks_do_not_import_flows(path: Path) -> None:
    assert "flows" not in {name.split(".")[0] for name in imported_names(path)}


@pytest.mark.parametrize("path", modules("flows"), ids=lambda path: path.name)
def test_flows_hold_order_only(path: Path) -> None:
    names = imported_names(path)
    assert not {name.split(".")[0] for name in names} & {"numpy", "torch", "duckdb", "pandas", "pyarrow"}
    if path.stem not in COMMANDS:
        used = {name.split(".")[1] for name in names if name.startswith("sparse_probing.")}
        assert used <= {"config", "settings", "errors", "credentials", "planning"}, f"{path.name} imports {used}"


def test_importing_the_library_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'duckdb', 'gurobipy', 'great_expectations', 'prefect', 'transformers'}"
    code = f"import sys, sparse_probing; print(sorted(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
