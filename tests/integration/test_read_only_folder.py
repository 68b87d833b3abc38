"""A data folder that may be read but not written: published results are answered, and what writes says so in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparse_probing.store.filesystem import Location
from sparse_probing.warehouse.loading import load_results, publish
from tests.integration.conftest import Cli, mount
from tests.sql.rows import write_run


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with published results, mounted for reading: permissions alone do not bind whoever is root."""
    if not sys.platform.startswith("linux"):
        pytest.skip("tmpfs is Linux's")
    folder = tmp_path / "disk"
    folder.mkdir()
    if refusal := mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)):
        pytest.skip(f"a disk cannot be mounted here: {refusal}")
    try:
        write_run(Location.open(folder), "a")
        load_results(folder / "working.duckdb", Location.open(folder))
        publish(folder / "working.duckdb", folder / "results.duckdb")
        assert mount("-o", "remount,ro", str(folder)) == ""
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("command", ["check", "report"])
def test_what_writes_is_refused_in_one_line(read_only: Path, cli: Cli, command: str) -> None:
    done = cli(command, data=read_only)
    assert done.returncode == 2
    assert done.stderr == (
        f"sparse-probing: Data folder {read_only} cannot be written to: Read-only file system. "
        "Pass --data FOLDER, or set SPARSE_PROBING_DATA to a folder of yours.\n"
    )


def test_what_reads_works(read_only: Path, cli: Cli, tmp_path: Path) -> None:
    done = cli("sql", "select count(*) as n from runs", "--format", "csv", data=read_only)
    assert (done.returncode, done.stdout) == (0, "n\n1\n")
    done = cli("neurons", "export", str(tmp_path / "lists"), data=read_only)
    assert done.returncode == 0, done.stderr
