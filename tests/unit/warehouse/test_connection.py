"""Opening the snapshot: read-only, lazily imported, and clear where there is none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

import sparse_probing.warehouse
from sparse_probing.errors import ArtifactError, InputError
from sparse_probing.warehouse import catalog, connect
from sparse_probing.warehouse.connection import wait_until_free

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


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    with duckdb.connect(str(tmp_path / "results.duckdb")) as con:
        con.execute("create table t as select 1 as one; create view v as select one from t")
    return tmp_path / "results.duckdb"


WRITER = """
import sys, duckdb
con = duckdb.connect(sys.argv[1])
con.execute("create table mine as select 1 as one")
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def writer(snapshot: Path) -> Iterator[subprocess.Popen[str]]:
    """A person's own process that has written to the snapshot and has it open still."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(snapshot)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def test_a_log_of_another_snapshot_is_named_and_removing_it_helps(
    snapshot: Path, writer: subprocess.Popen[str], tmp_path: Path
) -> None:
    """A process that wrote to the snapshot was killed and left results.duckdb.wal; then another file took its place.

    The remedy was to load the results again; the message named no file to remove.
    """
    writer.kill()
    writer.communicate()
    log = tmp_path / "results.duckdb.wal"
    assert log.is_file()
    with duckdb.connect(str(tmp_path / "other.duckdb")) as con:
        con.execute("create table t as select 2 as one")
    shutil.move(tmp_path / "other.duckdb", snapshot)
    with pytest.raises(InputError, match="WAL does not match") as caught:
        connect(snapshot)
    assert f"delete {log}" in caught.value.remedy
    log.unlink()
    with connect(snapshot) as con:
        assert con.execute("select one from t").fetchall() == [(2,)]


def test_a_locked_snapshot_names_the_process_to_close(snapshot: Path, writer: subprocess.Popen[str]) -> None:
    """The remedy of a file that another process had open for writing was to load the results again."""
    with pytest.raises(InputError, match="Could not set lock") as caught:
        connect(snapshot)
    assert "\n" not in str(caught.value)
    assert f"process {writer.pid}" in caught.value.remedy
    if Path("/proc/self/comm").is_file():
        command = Path(f"/proc/{writer.pid}/comm").read_text().strip()
        assert f"({command})" in caught.value.remedy
    writer.communicate("\n")
    with connect(snapshot) as con:
        assert con.execute("select one from v").fetchall() == [(1,)]


def test_a_notebook_that_reads_the_snapshot_by_itself_is_no_obstacle(snapshot: Path) -> None:
    """duckdb.connect(path, read_only=True) came first; `connect` was refused for its "different configuration"."""
    with duckdb.connect(str(snapshot), read_only=True) as notebook:
        with connect(snapshot) as con:
            assert con.execute("select one from v").fetchall() == [(1,)]
            assert con.cursor().execute("select one from v").fetchall() == [(1,)]
        assert notebook.execute("select one from v").fetchall() == [(1,)]
    with connect(snapshot) as con, duckdb.connect(str(snapshot), read_only=True) as notebook:
        assert notebook.execute("select one from v").fetchall() == con.execute("select one from v").fetchall()


def test_a_notebook_that_can_write_is_told_what_to_close(snapshot: Path) -> None:
    """duckdb.connect(path) came first in this process; the remedy was to load the results again."""
    notebook = duckdb.connect(str(snapshot))
    with pytest.raises(InputError, match="this process has it open") as caught:
        connect(snapshot)
    assert "read_only=True" in caught.value.remedy
    notebook.close()
    with duckdb.connect() as notebook:
        notebook.execute(f"attach '{snapshot}' as mine")
        with pytest.raises(InputError, match="this process has it open"):
            connect(snapshot)
    with connect(snapshot) as con, duckdb.connect(str(snapshot), read_only=True):
        assert con.execute("select one from v").fetchall() == [(1,)]


def holding(working: Path) -> subprocess.Popen[str]:
    """Another process that has a new database open until its input ends."""
    code = "import duckdb, sys; con = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(working)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    return holder


def test_a_program_that_has_the_working_database_open_is_waited_for(tmp_path: Path) -> None:
    """A study used to fail after twelve seconds when somebody looked into the working database."""
    working = tmp_path / "working.duckdb"
    holder = holding(working)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        holder.communicate()

    wait_until_free(working, say=say)
    (line,) = said
    assert line.startswith(f"Waiting for {working} (0 s so far): ")
    assert f"Close it in process {holder.pid}" in line
    wait_until_free(tmp_path / "none.duckdb", say=pytest.fail)


def test_who_never_closes_it_is_named(tmp_path: Path) -> None:
    working = tmp_path / "working.duckdb"
    holder = holding(working)
    with pytest.raises(ArtifactError, match=f"process {holder.pid}"):
        wait_until_free(working, say=lambda line: None, most_seconds=0.1)
    holder.communicate()
