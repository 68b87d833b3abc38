"""Users' statements: they can neither write, nor end in a traceback, nor take more memory and time than they were given."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest

from sparse_probing.errors import InputError
from sparse_probing.reports.tables import MOST_TABLE_ROWS
from sparse_probing.warehouse.asking import Limits, ask

ROOT = Path(__file__).parents[3]
N_ROWS = 500_000
ENDLESS = "select count(*) from range(100_000_000) a, range(100_000_000) b where hash(a.range + b.range) % 7 = 1"


def query(con: duckdb.DuckDBPyConnection, sql: str) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    with ask(con, sql, Limits()) as answer:
        return answer.columns, list(answer)


def test_a_query_gives_columns_and_all_rows(con: duckdb.DuckDBPyConnection) -> None:
    found = query(con, "select run_id, len(layers) as n_layers from runs order by run_id;")
    assert found == (("run_id", "n_layers"), [("a", 2), ("b", 2)])
    assert query(con, "select 1 as one")[1] == [(1,)]


@pytest.mark.parametrize(
    "sql",
    [
        "show tables",
        "describe runs",
        "summarize features",
        "from features",
        "explain select 1",
        "pivot features on feature using count(*)",
        "with r as (select run_id from runs) select run_id from r",
    ],
)
def test_all_ways_to_ask_work(con: duckdb.DuckDBPyConnection, sql: str) -> None:
    assert query(con, sql)[0]


@pytest.mark.parametrize(
    "sql",
    [
        "create table t (a int)",
        "create temp table t (a int)",
        "insert into runs select * from runs",
        "with gone as (delete from runs returning run_id) select run_id from gone",
        "drop view neuron_rankings",
        "update interest_thresholds set threshold = 0",
        "copy runs to '{folder}/stolen.csv'",
        "with c as (copy runs to '{folder}/stolen.csv') select 1",
        "explain analyze copy runs to '{folder}/stolen.csv'",
        "export database '{folder}/stolen'",
        "attach '{folder}/stolen.duckdb'",
        "select content from read_text('{folder}/secret.txt')",
        "pragma enable_profiling",
        "set enable_external_access = true",
        "install httpfs",
        "checkpoint",
    ],
)
def test_no_statement_writes_or_leaves_the_snapshot(
    con: duckdb.DuckDBPyConnection, snapshot: Path, tmp_path: Path, sql: str
) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    before = snapshot.read_bytes()
    with pytest.raises(InputError) as caught:
        query(con, sql.format(folder=tmp_path))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["secret.txt"]
    assert snapshot.read_bytes() == before


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("", "Found 0 SQL statements"),
        ("select 1; select 2", "Found 2 SQL statements"),
        ("selec 1", 'syntax error at or near "selec"'),
        ("select nothing from runs", '"nothing" not found'),
        ("select 1 from best_neurons_per_feature", 'Did you mean "best_neuron_per_feature"'),
        ("select 'text'::integer", "Could not convert string"),
    ],
)
def test_bad_statements_end_in_one_line(con: duckdb.DuckDBPyConnection, sql: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        query(con, sql)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert query(con, "select 1 as one")[1] == [(1,)]


def settings_of(con: duckdb.DuckDBPyConnection) -> tuple[Any, ...]:
    names = ("memory_limit", "max_temp_directory_size")
    return tuple(con.execute(f"select current_setting('{name}')").fetchall()[0][0] for name in names)


def test_limits_are_gone_after_the_answer(con: duckdb.DuckDBPyConnection, snapshot: Path) -> None:
    """They are those of the database, which all connections of a process share."""
    other = duckdb.connect(str(snapshot), read_only=True)
    other.execute("set memory_limit = '3GiB'")
    other.execute("set max_temp_directory_size = '7GiB'")
    with ask(con, "from range(100_000)", Limits(memory_gb=0.5)) as answer:
        assert settings_of(other) == ("238.4 MiB", "2.3 GiB")
        assert next(iter(answer)) == (0,)
    assert settings_of(other) == ("3.0 GiB", "7.0 GiB")
    with pytest.raises(InputError), ask(con, "select nothing", Limits()):
        pass
    assert settings_of(other) == ("3.0 GiB", "7.0 GiB")
    # A half-read answer is in nobody's way.
    assert con.execute("select 1").fetchall() == [(1,)]


def test_rows_are_read_as_a_stream(con: duckdb.DuckDBPyConnection) -> None:
    with ask(con, "select range from range(1_000_000_000_000)", Limits()) as answer:
        rows = iter(answer)
        assert [next(rows) for _ in range(5000)][-1] == (4999,)


@pytest.mark.parametrize("sql", [ENDLESS, "select a.range, b.range from range(100_000_000) a, range(100_000_000) b"])
def test_a_statement_without_end_is_stopped(con: duckdb.DuckDBPyConnection, sql: str) -> None:
    with pytest.raises(InputError) as caught, ask(con, sql, Limits(seconds=0.5)) as answer:
        for _ in answer:
            pass
    assert str(caught.value).startswith("The query was stopped after its 0.5 seconds. Ask for less")
    assert "--seconds" in caught.value.remedy
    assert query(con, "select 1 as one")[1] == [(1,)]


def test_whoever_reads_slowly_loses_no_time(con: duckdb.DuckDBPyConnection) -> None:
    with ask(con, "from range(10_000)", Limits(seconds=1.0)) as answer:
        n_rows = 0
        for n_rows, _ in enumerate(answer, 1):
            if n_rows % 4000 == 0:
                time.sleep(0.7)
    assert n_rows == 10_000


def test_one_function_that_does_not_hear_ends_the_process(con: duckdb.DuckDBPyConnection) -> None:
    ended: list[str] = []
    called = threading.Event()

    def end(error: InputError) -> None:
        ended.append(str(error))
        called.set()

    sql = "select levenshtein(repeat('ab', 25_000), repeat('ba', 25_000))"
    with pytest.raises(InputError), ask(con, sql, Limits(seconds=0.2), end=end) as answer:
        list(answer)
    if called.is_set():  # on a fast machine it has an end of its own
        assert ended[0].startswith("The query was stopped after its 0.2 seconds.")


@pytest.mark.parametrize(
    "sql",
    [
        "select list(range) from range(30_000_000)",
        "select * from range(30_000_000) order by hash(range)",
    ],
)
def test_what_fits_neither_memory_nor_disk_is_said(con: duckdb.DuckDBPyConnection, sql: str) -> None:
    with pytest.raises(InputError) as caught, ask(con, sql, Limits(memory_gb=0.1)) as answer:
        list(answer)
    assert str(caught.value).startswith("The query needs more memory than its 0.1 GB. Ask for less at once")
    assert "--memory-gb" in caught.value.remedy
    assert query(con, "select 1 as one")[1] == [(1,)]


@pytest.mark.parametrize(
    "limits", [{"memory_gb": 0.0}, {"memory_gb": float("nan")}, {"seconds": -1.0}, {"seconds": float("inf")}]
)
def test_limits_that_are_none(limits: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"--{next(iter(limits)).replace('_', '-')} is"):
        Limits(**limits)


def test_the_largest_limits_are_taken(snapshot: Path) -> None:
    code, out, said, _ = run(snapshot, "select 1 as a", "--memory-gb", "1e5", "--seconds", "1e9", "--format", "csv")
    assert (code, out, said) == (0, "a\n1\n", "")


SCRIPT = """
import resource, sys
from flows.cli import main
code = main(sys.argv[2:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
open(sys.argv[1], "w").write(str(peak))
sys.exit(code)
"""


def run(snapshot: Path, *arguments: str) -> tuple[int, str, str, int]:
    """Exit code, first bytes of the output with the number of its lines, errors, and the peak of memory in bytes."""
    peak = snapshot.parent / "peak.txt"
    with (snapshot.parent / "out.txt").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(peak), "--data", str(snapshot.parent), "sql", *arguments],
            stdout=out,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            timeout=600,
            check=False,
        )
    return done.returncode, (snapshot.parent / "out.txt").read_text(), done.stderr.decode(), int(peak.read_text())


@pytest.mark.parametrize("format", ["csv", "json"])
def test_the_command_line_prints_every_row_in_little_memory(snapshot: Path, format: str) -> None:
    """Thirty million rows took 7.4 GB: all were in memory as Python values, then as text."""
    code, out, said, peak = run(snapshot, f"select range as a from range({N_ROWS})", "--format", format)
    assert (code, said) == (0, "")
    if format == "csv":
        assert [row["a"] for row in csv.DictReader(out.splitlines())] == [str(i) for i in range(N_ROWS)]
    else:
        assert json.loads(out) == [{"a": i} for i in range(N_ROWS)]
    small = run(snapshot, "select 1", "--format", format)[3]
    assert peak - small < 30e6


def test_a_table_has_its_first_rows_and_says_so(snapshot: Path) -> None:
    code, out, said, _ = run(snapshot, "from range(30_000_000)")
    assert (code, said) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 2 + MOST_TABLE_ROWS + 1
    assert lines[-1] == "(the first 1,000 rows; there are more: --format csv or json has all)"
    assert run(snapshot, "from range(1000)")[1].splitlines()[-1] == "(1000 rows)"


@pytest.mark.parametrize(
    "sql",
    [
        "select list(range) from range(30_000_000)",
        "select repeat('x', 400_000_000)",
        "select list(range) from range(5_000_000)",
    ],
)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit of a process's memory is Linux's")
def test_one_row_that_is_too_large_is_said(snapshot: Path, sql: str) -> None:
    """DuckDB counts neither what its functions build nor what becomes of a row in Python."""
    code, out, said, peak = run(snapshot, sql, "--memory-gb", "0.3")
    assert (code, out) == (2, "")
    assert said.startswith("sparse-probing: The query needs more memory than its 0.3 GB.")
    assert len(said.splitlines()) == 1
    assert peak < 0.3e9 + run(snapshot, "select 1")[3]


def test_time_on_the_command_line(snapshot: Path) -> None:
    code, _, said, _ = run(snapshot, ENDLESS, "--seconds", "0.5", "--format", "csv")
    assert code == 2
    assert said.startswith("sparse-probing: The query was stopped after its 0.5 seconds.")
    assert len(said.splitlines()) == 1
