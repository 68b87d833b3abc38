"""Opening the snapshot: read-only, lazily imported, and clear where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

import sparse_probing.warehouse
from sparse_probing.errors import ArtifactError, InputError
from sparse_probing.warehouse import catalog, connect

REPOSITORY = Path(__file__).parents[3]


def test_importing_the_package_loads_neither_duckdb_nor_great_expectations() -> None:
    code = (
        "import sys, sparse_probing.warehouse as w; print({'duckdb', 'great_expectations', 'pandas'} & set(sys.modules));"
        "w.connect; print('duckdb' in sys.modules, 'great_expectations' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.split("\n")[:2] == ["set()", "True False"]


def test_unknown_attributes_are_still_errors() -> None:
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = sparse_probing.warehouse.nothing_here


def test_no_snapshot_is_an_input_error_with_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_PROBING_DATA", str(tmp_path))
    with pytest.raises(InputError, match="No published results") as caught:
        connect()
    assert "sparse-probing demo" in caught.value.remedy


def test_a_file_that_is_no_database_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "results.duckdb").write_bytes(b"text" * 5000)
    with pytest.raises(InputError, match="Cannot open"):
        connect(tmp_path / "results.duckdb")


def test_the_default_path_is_opened_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with duckdb.connect(str(tmp_path / "results.duckdb")) as con:
        con.execute("create table t as select 1 as one")
    monkeypatch.setenv("SPARSE_PROBING_DATA", str(tmp_path))
    with connect() as con:
        assert con.execute("select one from t").fetchall() == [(1,)]
        with pytest.raises(duckdb.Error, match="read-only"):
            con.execute("create table u as select 1 as one")
        for setting in ("autoinstall_known_extensions", "autoload_known_extensions"):
            assert con.execute(f"select current_setting('{setting}')").fetchall() == [(False,)]


def test_sql_lies_at_the_repository_top_or_inside_the_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert catalog.sql_folder() == REPOSITORY / "sql"
    installed = tmp_path / "site-packages" / "sparse_probing"
    monkeypatch.setattr(catalog, "__file__", str(installed / "warehouse" / "catalog.py"))
    with pytest.raises(ArtifactError, match="No SQL files"):
        catalog.sql_folder()
    (installed / "sql").mkdir(parents=True)
    (installed / "sql" / "001_runs.sql").touch()
    assert catalog.sql_folder() == installed / "sql"
