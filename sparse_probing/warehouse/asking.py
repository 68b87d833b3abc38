"""A user's own statement to the snapshot: it cannot write, reach other files, or take more than it was given.

The answer is read as a stream, so that what is printed need not fit in memory. Typed questions of this project's own
are in `reads`.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import duckdb

from sparse_probing.errors import InputError
from sparse_probing.warehouse import catalog
from sparse_probing.warehouse.connection import one_line

BATCH_ROWS = 2048
# What does not fit in memory is put on disk beside the snapshot, up to so many times the memory.
DISK_PER_MEMORY = 5
# DuckDB's part of the memory; Python's values of the rows being printed take the rest.
_DUCKDB_SHARE = 0.5
# A single function that is at work does not hear of an interruption; it is given so long.
GRACE_SECONDS = 5.0
# What the system says, wherever it is short of memory.
_NO_MEMORY = ("Out of Memory", "bad_alloc", "bad allocation", "max_temp_directory_size")


@dataclass(frozen=True)
class Limits:
    """What one statement may take.

    Attributes
    ----------
    memory_gb:
        Memory of the database and of the rows being read, in 10^9 bytes.
    seconds:
        Time in the database; time that the reader of the rows takes in between does not count.
    """

    memory_gb: float = 2.0
    seconds: float = 300.0

    def __post_init__(self) -> None:
        for name, least, most in (("memory_gb", 0.1, 1e5), ("seconds", 0.0, 1e9)):
            value = getattr(self, name)
            if not least <= value <= most:
                option = f"--{name.replace('_', '-')}"
                raise InputError(
                    f"{option} is {value}; expected a number from {least:g} to {most:,.0f}.", remedy=f"Change {option}."
                )


class Answer:
    """Column names, and rows as Python values, read as they are asked for."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, watch: _Watch) -> None:
        self.columns = tuple(str(column[0]) for column in cursor.description or ())
        self._cursor, self._watch = cursor, watch

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        with self._watch.running():
            rows = self._cursor.fetchmany(BATCH_ROWS)
        while rows:
            yield from rows
            with self._watch.running():
                rows = self._cursor.fetchmany(BATCH_ROWS)


@contextmanager
def ask(
    con: duckdb.DuckDBPyConnection,
    sql: str,
    limits: Limits | None = None,
    *,
    end: Callable[[InputError], None] | None = None,
) -> Iterator[Answer]:
    """Answer one statement of a user's, which can neither write nor reach files beside the snapshot.

    For good, this closes the database behind `con` to all other files, because a COPY can hide inside a SELECT. The
    limit of its memory is for all connections of this process to that database; it is as before once the answer is
    read. Ask one thing at a time.

    Parameters
    ----------
    limits:
        What the statement may take; none if absent.
    end:
        Called with the error where a statement goes on for five seconds after it was told to stop. It has to end the
        process: nothing else can.

    Raises
    ------
    InputError
        If there is not exactly one statement, it is no query, DuckDB refuses it, or it needs more than it may take: one
        line. The last may come after rows were read.
    """
    statement = _only_query(con, sql)
    # Of its own, so that a half-read answer blocks nothing; what is set for one connection does not carry over.
    cursor = con.cursor()
    watch = _Watch(cursor, limits, end)
    try:
        with _memory(con, limits), _told(limits, watch):
            if _open_score_files(cursor):
                _refuse_copies(cursor, statement)
            for setting in ("timezone = 'UTC'", "python_enable_replacements = false", "enable_external_access = false"):
                cursor.execute(f"set {setting}")
            with watch.running():
                cursor.execute(statement)
            yield Answer(cursor, watch)
    finally:
        cursor.close()


@contextmanager
def bounded_process(limits: Limits) -> Iterator[None]:
    """Keep this process from taking more memory than a statement may, where Linux can: DuckDB does not count all it takes.

    For a process that does nothing else. An attempt to allocate more raises MemoryError, or DuckDB's error.
    """
    taken = _private_bytes()
    if taken is None:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = taken + int(limits.memory_gb * 1e9)
    known = [one for one in (soft, hard) if one != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([most, *known]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


class _Watch:
    """Counts the seconds that a statement runs, and interrupts it when they are over."""

    def __init__(
        self, cursor: duckdb.DuckDBPyConnection, limits: Limits | None, end: Callable[[InputError], None] | None
    ) -> None:
        self.is_over = False
        self._cursor, self._limits, self._end = cursor, limits, end
        self._left_seconds = limits.seconds if limits else float("inf")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Whatever happens within counts."""
        if self._limits is None:
            yield
            return
        done = threading.Event()
        began = time.monotonic()
        threading.Thread(target=self._wait, args=(done, self._left_seconds), name="time-limit", daemon=True).start()
        try:
            yield
        finally:
            done.set()
            self._left_seconds = max(0.0, self._left_seconds - (time.monotonic() - began))

    def _wait(self, done: threading.Event, seconds: float) -> None:
        if done.wait(min(seconds, threading.TIMEOUT_MAX)):
            return
        self.is_over = True
        self._cursor.interrupt()
        if not done.wait(GRACE_SECONDS) and self._end is not None and self._limits is not None:
            self._end(_too_long(self._limits))


@contextmanager
def _memory(con: duckdb.DuckDBPyConnection, limits: Limits | None) -> Iterator[None]:
    """Limit the memory of the database, and give it back what it had."""
    if limits is None:
        yield
        return
    memory_bytes = limits.memory_gb * 1e9
    wanted = {
        "memory_limit": f"{int(memory_bytes * _DUCKDB_SHARE)} bytes",
        "max_temp_directory_size": f"{int(memory_bytes * DISK_PER_MEMORY)} bytes",
    }
    control = con.cursor()
    try:
        before = {name: str(control.execute(f"select current_setting('{name}')").fetchall()[0][0]) for name in wanted}
        try:
            for name, value in wanted.items():
                control.execute(f"set {name} = '{value}'")
            yield
        finally:
            for name, value in before.items():
                control.execute(f"set {name} = '{value}'")
    finally:
        control.close()


@contextmanager
def _told(limits: Limits | None, watch: _Watch) -> Iterator[None]:
    """Errors of the database and of a lack of memory, in one line."""
    try:
        yield
    except (duckdb.Error, MemoryError) as error:
        if limits is not None and watch.is_over:
            raise _too_long(limits) from error
        text = str(error)
        if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
            raise _too_large(limits) from error
        if isinstance(error, duckdb.IOException) and "No files found" in text:
            raise InputError(
                "The files of neuron_scores are not where the database looks for them: the data folder was moved, or they were deleted.",
                remedy="Publish the results again: sparse-probing repair",
            ) from error
        if isinstance(error, duckdb.IOException):
            raise InputError(
                f"The query cannot put on disk what does not fit in memory: {one_line(error)}.",
                remedy="Free space there, or raise --memory-gb.",
            ) from error
        raise refused(error) from error


def _too_long(limits: Limits) -> InputError:
    return InputError(
        f"The query was stopped after its {limits.seconds:g} seconds.",
        remedy="Ask for less (a condition, a limit, no join of everything with everything), or raise --seconds.",
    )


def _too_large(limits: Limits | None) -> InputError:
    given = f" than its {limits.memory_gb:g} GB" if limits else " than there is"
    return InputError(
        f"The query needs more memory{given}.",
        remedy="Ask for less at once (a condition, fewer columns, no lists of everything), or raise --memory-gb.",
    )


def _only_query(con: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    try:
        statements = con.extract_statements(sql)
    except duckdb.Error as error:
        raise refused(error) from error
    if len(statements) != 1:
        raise InputError(f"Found {len(statements)} SQL statements; expected one.", remedy="Ask one query at a time.")
    kind = statements[0].type.name
    if kind not in ("SELECT", "EXPLAIN", "MULTI"):
        raise InputError(
            f"Found a statement of type {kind}; the published results are read-only.",
            remedy="Ask with select, from, describe, summarize, pivot or explain.",
        )
    return statements[0]


def _open_score_files(cursor: duckdb.DuckDBPyConnection) -> bool:
    """Leave the folder of scores that are read from their fragments open, as the rest is closed; whether there is one."""
    known = cursor.execute(
        "select 1 from duckdb_tables() where table_name = 'score_files' and not internal and not temporary"
    ).fetchall()
    found = cursor.execute("select path from score_files").fetchall() if known else []
    if found and cursor.execute("select current_setting('enable_external_access')").fetchall()[0][0]:
        folders = sorted({str(PurePath(path).parents[1]) for (path,) in found})
        cursor.execute(f"set allowed_directories = [{', '.join(map(catalog.quoted, folders))}]")
    return bool(found)


def _refuse_copies(cursor: duckdb.DuckDBPyConnection, statement: duckdb.Statement) -> None:
    """Refuse what would write to the folder that is open: DuckDB knows no folder that is open for reading alone."""
    if re.search(r"\b(copy|export)\b", statement.query, re.IGNORECASE) is None:
        return
    # The words may be part of a text or a name; of other kinds of statements a part runs when they are explained.
    if statement.type.name == "SELECT":
        ((_, plan),) = cursor.execute(f"explain (format json) {statement.query}").fetchall()
        if not any("COPY" in name or "EXPORT" in name for name in re.findall(r'"name": "(\w+)"', plan)):
            return
    raise InputError(
        "Found a copy to a file; the published results are read-only.", remedy="Ask without copy and export."
    )


def refused(error: duckdb.Error) -> InputError:
    """What DuckDB says of a statement, in one line."""
    return InputError(f"{one_line(error)}.", remedy="`show tables` lists tables and views, `describe NAME` columns.")


def _private_bytes() -> int | None:
    """Memory that this process has to itself, as the limit counts it; None where it cannot be known."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
    except (OSError, StopIteration, ValueError):
        return None
