"""The examples in the docstrings of the names that `sparse_probing` offers run as printed."""

from __future__ import annotations

import doctest
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sparse_probing
from sparse_probing.settings import DATA_VARIABLE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_profile: Path) -> Iterator[Path]:
    """A working folder with a small study `mine.toml`, whose results `run_study` leaves in ``mine/``."""
    place = tmp_path_factory.mktemp("examples")
    shutil.copy(tiny_profile, place / "mine.toml")
    before, data = Path.cwd(), os.environ.get(DATA_VARIABLE)
    os.chdir(place)
    os.environ[DATA_VARIABLE] = "mine"
    yield place
    os.chdir(before)
    os.environ.pop(DATA_VARIABLE)
    if data is not None:
        os.environ[DATA_VARIABLE] = data


def documented(name: str) -> Any:
    """What holds the docstring of a public name: that of a method speaks for all of `METHODS`."""
    value = getattr(sparse_probing, name)
    return value["dense_probe"].__class__ if name == "METHODS" else value


# First the study, whose results the others read.
@pytest.mark.parametrize("name", sorted(sparse_probing.__all__, key=lambda name: (name != "run_study", name)))
def test_the_example_runs(name: str, folder: Path) -> None:
    found = doctest.DocTestFinder(recurse=False).find(documented(name), name)
    assert sum(len(test.examples) for test in found) > 1, f"{name} has no example"
    if name == "connect" and not (folder / "mine" / "results.duckdb").exists():
        sparse_probing.run_study("mine.toml", data="mine")
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    for test in found:
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)


def test_the_package_lists_its_names_and_loads_them_when_used() -> None:
    assert sparse_probing.__all__ == sorted(sparse_probing.__all__)
    assert set(sparse_probing.__all__) <= set(dir(sparse_probing))
    with pytest.raises(AttributeError, match="no attribute 'score_neuron'"):
        _ = sparse_probing.score_neuron
    heavy = "{'torch', 'duckdb', 'transformers', 'numpy', 'pyarrow', 'pydantic', 'scipy'}"
    code = f"import sys, sparse_probing; dir(sparse_probing); print(sorted(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
