"""Scores that are read from their fragments: past a number of rows they are no longer copied into the database.

Table `neuron_scores` then is a view of the same name and columns: the shortlisted rows, which rankings read, are in table
`kept_scores`; the others stay in the Parquet files of their run, which table `score_files` lists. What those rows are is decided
elsewhere; here they are moved.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import duckdb
import pyarrow as pa

from sparse_probing import schemas
from sparse_probing.store.filesystem import Location
from sparse_probing.store.results import run_folder
from sparse_probing.warehouse import catalog

KIND = catalog.SCORES
# DuckDB would read these as a pattern.
_PATTERN_CHARACTERS = "*?[]"


def can_be_outside(root: Location) -> bool:
    """Whether DuckDB can read the fragments of a data folder by itself: they are files, under a name that is no pattern."""
    return root.is_local and not any(character in root.path for character in _PATTERN_CHARACTERS)


def fits(schema: pa.Schema) -> bool:
    """Whether a file of a fragment has today's columns; those of other versions are copied, as they are read only so."""
    return bool(schema.equals(schemas.fragment(KIND), check_metadata=False))


def n_rows_inside(connection: duckdb.DuckDBPyConnection) -> int:
    """Rows of scores that the database itself holds."""
    return int(connection.execute(f"select count(*) from {catalog.stored_name(connection, KIND)}").fetchall()[0][0])


def move_outside(connection: duckdb.DuckDBPyConnection, run_ids: Collection[str]) -> None:
    """Take the scores of runs out of the database but for the shortlisted rows, in one transaction; call `refresh` afterwards.

    Parameters
    ----------
    run_ids:
        Runs whose fragments are there, as they were loaded. Rows of other runs stay.
    """
    connection.begin()
    try:
        connection.execute(f"drop view if exists {catalog.KEPT_SCORES}")
        catalog.create_kept_scores(connection)
        columns = ", ".join(schemas.NEURON_SCORES.names)
        connection.execute(
            f"insert into {catalog.KEPT_SCORES} ({columns}) "
            f"select {columns} from {KIND} where shortlisted or not list_contains(?, run_id)",
            [list(run_ids)],
        )
        connection.execute(f"drop table {KIND}")
        catalog.create_scores_view(connection)
        connection.commit()
    except BaseException:
        connection.rollback()
        raise


def refresh(connection: duckdb.DuckDBPyConnection, root: Location) -> None:
    """List the runs that were loaded with more scores than the database keeps, where their fragments are now; renew the view.

    Of a run whose fragment is gone the shortlisted rows are left, and all of them are back when it is. Nothing is done while the
    database holds all scores.
    """
    if catalog.stored_name(connection, KIND) == KIND:
        return
    listed = connection.execute(
        f"""
        select run_id from loaded_fragments
        where kind = ? and n_rows > (
            select count(*) from {catalog.KEPT_SCORES} as kept where kept.run_id = loaded_fragments.run_id
        )
        """,
        [KIND],
    ).fetchall()
    connection.execute("delete from score_files")
    for (run_id,) in listed:
        folder = run_folder(root, KIND, run_id).path
        if Path(folder).is_dir():
            connection.execute(
                "insert into score_files (run_id, path) values (?, ?)", [run_id, f"{folder}/part-*.parquet"]
            )
    catalog.create_scores_view(connection)


def are_there(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether all files are where the database looks for them; they are not once the data folder was moved."""
    listed = connection.execute("select path from score_files").fetchall()
    return all(Path(path).parent.is_dir() for (path,) in listed)
