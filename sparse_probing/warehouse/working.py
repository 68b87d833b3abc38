"""The working database as a file: opened, found damaged, moved aside, made anew from what is known, and copied.

What is in its tables comes from `loading` and `checks`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from sparse_probing import schemas
from sparse_probing.errors import ArtifactError, DamageError
from sparse_probing.store.filesystem import make_folder, sync
from sparse_probing.warehouse import catalog
from sparse_probing.warehouse.connection import log_path, one_line, open_working

TEMPORARY_PREFIX = ".tmp-publish-"
# Nobody copies a database for so long: what is left of a killed process goes.
_LEFTOVER_SECONDS = 86_400.0
# The system's words, in DuckDB's error when a write finds no room.
_DISK_FULL = os.strerror(errno.ENOSPC)
# Tables that fragments and checks fill, and those that say what was loaded and what a user decided.
_CARRIED = (*schemas.TABLES, "loaded_fragments", "artifacts", "interest_thresholds", "score_files")
# Errors of a file; a checksum that differs is of no type of its own.
_OF_FILES = (
    duckdb.IOException,
    duckdb.FatalException,
    duckdb.InternalException,
    duckdb.SerializationException,
)


@contextlib.contextmanager
def writing(working: Path) -> Iterator[None]:
    """DuckDB's errors as ones that say what to do.

    Raises
    ------
    DamageError
        If the file is to blame, with `path` the working database: `move_aside` makes room for a new one.
    ArtifactError
        If the disk is full, or what else keeps the file from being used is not its own fault.
    """
    try:
        yield
    except (duckdb.Error, OSError) as error:
        if _is_full_disk(error):
            raise ArtifactError(
                f"Cannot write {working}: {_DISK_FULL}.",
                remedy="Free space or choose another data folder, then run again.",
            ) from error
        if is_damaged(working, error):
            raise DamageError(
                f"{working} is damaged: {one_line(error)}.",
                path=str(working),
                remedy="Run the study again: the database is set aside and built anew.",
            ) from error
        if isinstance(error, OSError | duckdb.IOException | duckdb.OutOfMemoryException):
            raise ArtifactError(
                f"Cannot use {working}: {one_line(error)}. It was left as it is.",
                remedy="See to the folder's permissions, space and memory, then run again.",
            ) from error
        raise


def open_usable(working: Path, snapshot: Path | None = None) -> tuple[duckdb.DuckDBPyConnection, Path | None]:
    """The working database with today's tables and views; and where a predecessor was moved to that could not be used.

    A database of another version is moved aside, and its rows are taken over. One that is damaged is moved aside, and
    what was published is taken over. What neither has is loaded from the fragments, by the caller, within `writing`.
    """
    moved: Path | None = None
    if working.is_file():
        try:
            connection = _opened(working)
            if connection is not None:
                return connection, None
        except duckdb.Error as error:
            if _is_full_disk(error) or not is_damaged(working, error):
                raise
        moved = move_aside(working)
    for source in (moved, snapshot):
        if source is not None and source.is_file() and (connection := _taken_over(working, source)) is not None:
            return connection, moved
    connection = open_working(working)
    try:
        catalog.create_tables(connection)
        catalog.create_views(connection)
        differences = catalog.table_differences(connection)
        if differences:
            raise ArtifactError(
                f"sql/ and the Arrow schemas disagree: {'; '.join(differences)}.", remedy="Reinstall sparse-probing."
            )
    except BaseException:
        connection.close()
        raise
    return connection, moved


def _opened(working: Path) -> duckdb.DuckDBPyConnection | None:
    """The database, if its tables are of this version; None if they are of another."""
    connection = open_working(working)
    try:
        catalog.create_tables(connection)
        if not catalog.table_differences(connection):
            catalog.create_views(connection)
            return connection
        connection.close()
        return None
    except BaseException:
        connection.close()
        raise


def _taken_over(working: Path, source: Path) -> duckdb.DuckDBPyConnection | None:
    """A new working database with the rows of another file; None, and no database, if that cannot be read."""
    connection = open_working(working)
    try:
        catalog.create_tables(connection)
        catalog.create_views(connection)
        connection.execute(f"attach {catalog.quoted(str(source))} as earlier (read_only)")
        connection.begin()
        if catalog.stored_name(connection, catalog.SCORES, "earlier") != catalog.SCORES:
            connection.execute(f"drop view {catalog.KEPT_SCORES}")
            catalog.create_kept_scores(connection)
            connection.execute(f"drop table {catalog.SCORES}")
        for table in _CARRIED:
            _take_over(connection, catalog.stored_name(connection, table))
        connection.commit()
        connection.execute("detach earlier")
        catalog.create_views(connection)
        return connection
    except (duckdb.Error, _OtherTablesError) as error:
        with contextlib.suppress(duckdb.Error):
            connection.close()
        if _is_full_disk(error):
            raise
        discard(working)
        return None
    except BaseException:
        connection.close()
        raise


class _OtherTablesError(Exception):
    """A table lacks a column that cannot be empty."""


def _take_over(connection: duckdb.DuckDBPyConnection, table: str) -> None:
    """The rows of an earlier table; columns that it lacks are null, columns that are no longer known are left out."""
    found, today = (
        {
            str(name): bool(nullable)
            for name, nullable in connection.execute(
                "select column_name, is_nullable from duckdb_columns() "
                "where table_name = ? and database_name = (case when ? then 'earlier' else current_database() end)",
                [table, earlier],
            ).fetchall()
        }
        for earlier in (True, False)
    )
    if any(name not in found and not nullable for name, nullable in today.items()):
        if table in ("interest_thresholds", "score_files") or not found:
            return
        raise _OtherTablesError(table)
    columns = ", ".join(name for name in today if name in found)
    if table == "interest_thresholds":
        connection.execute("delete from interest_thresholds")
    connection.execute(f"insert into {table} ({columns}) select {columns} from earlier.{table}")


def move_aside(working: Path) -> Path:
    """Move a database and its log out of the way; returns where the database lies now."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    moved = working.with_name(f"{working.name}.unusable-{stamp}")
    for old, new in ((log_path(working), log_path(moved)), (working, moved)):
        if old.exists():
            os.replace(old, new)
    return moved


def discard(database: Path) -> None:
    """Remove a database of our own making, and its log."""
    for path in (log_path(database), database):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def copy_verified(working: Path, to: Path) -> None:
    """Copy the working database to a new file, row by row: every block is read and compared with its checksum.

    What people ask for most are tables there (`catalog.MATERIALISED`).
    """
    connection = open_working(working)
    try:
        name = str((connection.execute("select current_database()").fetchall())[0][0])
        connection.execute(f"attach {catalog.quoted(str(to))} as published")
        connection.execute(f'copy from database "{name}" to published')
        catalog.materialise(connection, "published")
        connection.execute("detach published")
    finally:
        connection.close()
    sync(to)


def temporary_beside(path: Path) -> Path:
    """A name of our own beside a file; what killed processes left there a day ago is removed."""
    make_folder(path.parent)
    prefix = f"{TEMPORARY_PREFIX}{path.name}-"
    for leftover in path.parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _LEFTOVER_SECONDS:
                leftover.unlink()
    return path.with_name(f"{prefix}{uuid.uuid4().hex[:8]}")


def _is_full_disk(error: BaseException) -> bool:
    """Whether it all began with a full disk: rolling back what that has ended already is an error of its own."""
    earlier = error.__cause__ or error.__context__
    return _DISK_FULL in str(error) or (earlier is not None and _is_full_disk(earlier))


def is_damaged(working: Path, error: BaseException) -> bool:
    """Whether the file is to blame: it can be read and written, and a new database at its side can be made and used."""
    if not _is_of_a_file(error):
        return False
    beside = working.with_name(f"{TEMPORARY_PREFIX}{working.name}-{uuid.uuid4().hex[:8]}")
    try:
        with working.open("rb+"):
            pass
        connection = open_working(beside)
        try:
            catalog.create_tables(connection)
        finally:
            connection.close()
        return True
    except (duckdb.Error, OSError):
        return False
    finally:
        discard(beside)


def _is_of_a_file(error: BaseException) -> bool:
    """Whether it all began with what DuckDB found in a file."""
    earlier = error.__cause__ or error.__context__
    mine = isinstance(error, _OF_FILES) or type(error) is duckdb.Error
    return mine or (earlier is not None and _is_of_a_file(earlier))
