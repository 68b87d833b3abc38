"""Nothing is imported by several threads at once: what tasks import late is imported before they run side by side."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparse_probing.probes import METHODS
from sparse_probing.runs import imports as stages
from tasks import imports

ROOT = Path(__file__).parents[3]
# Code that tasks on several threads run.
SHARED = [
    *(
        path
        for room in ("datasets", "models", "probes", "runs", "store")
        for path in (ROOT / "sparse_probing" / room).rglob("*.py")
    ),
    *(ROOT / "tasks" / f"{name}.py" for name in ("datasets", "models", "policies", "probes", "progress")),
]
# Imported inside of functions that one task at a time calls.
ALONE = {
    "gguf": "a model is converted before datasets are built",
    "sparse_probing.models.fits": "resolve-model",
    "sparse_probing.warehouse": "check-dataset",
    "sparse_probing.warehouse.checks": "check-dataset",
}
BEFORE_THREADS = """
import sys
import flows.study
from sparse_probing.runs import imports as stages
from tasks import imports
imports.import_for_datasets()
stages.import_for_stages()
print(*sys.modules)
"""
FOUR_THREADS = """
import sys, threading
from pathlib import Path
from types import SimpleNamespace

model = SimpleNamespace(folder=Path(sys.argv[1]), short_name="tiny")
together, failures = threading.Barrier(4), []

def load():
    together.wait()
    try:
        from sparse_probing.models import loading
        loading.load_tokenizer(model)
        loading.without_weights(model.folder)
    except BaseException as error:
        failures.append(repr(error))

threads = [threading.Thread(target=load) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(failures)
"""


@pytest.fixture(scope="module")
def early() -> set[str]:
    """Modules that are loaded before several threads begin."""
    done = subprocess.run([sys.executable, "-c", BEFORE_THREADS], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stdout.split())


def late_imports(tree: ast.Module) -> Iterator[str]:
    """Modules that are imported inside of functions."""
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module
                inside = (f"{node.module}.{alias.name}" for alias in node.names)
                yield from (name for name in inside if _is_module(name))


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def unforeseen(tree: ast.Module, early: set[str]) -> set[str]:
    """Late imports that several threads may be the first to make."""
    late = {name for name in late_imports(tree) if name.split(".")[0] not in sys.stdlib_module_names}
    # Each name of transformers is loaded when it is asked for: it is imported at the top of modules alone.
    return {name for name in late if name.split(".")[0] == "transformers" or name not in early} - set(ALONE)


@pytest.mark.parametrize("path", SHARED, ids=lambda path: str(path.relative_to(ROOT)))
def test_late_imports_are_made_before_threads_begin(path: Path, early: set[str]) -> None:
    assert unforeseen(ast.parse(path.read_text(encoding="utf-8")), early) == set()


def test_the_search_finds_what_it_is_for(early: set[str]) -> None:
    late = "def f():\n    from transformers import AutoTokenizer\n    import sklearn.cluster\n    import json\n"
    assert unforeseen(ast.parse(late), early) == {"transformers", "sklearn.cluster"}
    assert unforeseen(ast.parse("def f():\n    from sklearn.svm import LinearSVC\n"), early) == set()
    assert unforeseen(ast.parse("def f():\n    from sklearn import cluster\n"), early) == {"sklearn.cluster"}


def test_every_method_is_among_what_is_imported_early() -> None:
    homes = {f"sparse_probing.probes.experiments.{method.function.partition(':')[0]}" for method in METHODS.values()}
    assert homes <= set(stages.LATE_IMPORTS)


def test_what_is_listed_can_be_imported() -> None:
    imports.import_for_datasets()
    stages.import_for_stages()
    assert {*imports.FOR_DATASETS, *stages.LATE_IMPORTS} - stages.OPTIONAL <= set(sys.modules)


def test_several_threads_load_tokenizers_at_once(tiny_model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FOUR_THREADS, str(tiny_model)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
