"""Tables and views as `sql/` defines them: found, created, and compared with the Arrow schemas.

The text of every view is in `sql/`, and of every table that a schema alone does not define; no result is read or written
here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from sparse_probing import schemas
from sparse_probing.errors import ArtifactError

if TYPE_CHECKING:
    import duckdb

_DUCKDB_TYPES: dict[pa.DataType, str] = {
    pa.string(): "VARCHAR",
    pa.int8(): "TINYINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.bool_(): "BOOLEAN",
    pa.timestamp("us", tz="UTC"): "TIMESTAMP WITH TIME ZONE",
    pa.list_(pa.int32()): "INTEGER[]",
    pa.binary(): "BLOB",
}


@dataclass(frozen=True)
class CheckView:
    """One ``check_*`` view: its rows are violations.

    Attributes
    ----------
    severity:
        ``error`` or ``warning``: what a violation costs unless its row says otherwise.
    grain, why:
        One row per what, and why the check exists.
    """

    name: str
    severity: str
    grain: str
    why: str


def sql_folder() -> Path:
    """The folder of SQL files: inside an installed package, at the repository's top in an editable checkout.

    Raises
    ------
    ArtifactError
        If neither is there.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "sql", package.parent / "sql"):
        if (folder / "001_runs.sql").is_file():
            return folder
    raise ArtifactError(f"No SQL files beside {package}.", remedy="Reinstall sparse-probing.")


def sql_files(*, tables: bool) -> list[Path]:
    """The 0xx files (tables), or all others (views), in the order in which they build on each other."""
    return [path for path in sorted(sql_folder().glob("[0-9]*_*.sql")) if path.name.startswith("0") == tables]


def check_views() -> list[CheckView]:
    """Every ``check_*`` view with what its header says."""
    return [_read_header(path) for path in sql_files(tables=False) if "_check_" in path.name]


def create_tables(connection: duckdb.DuckDBPyConnection) -> None:
    """Create the tables that are not there yet: those of `sql/0xx`, then those that only `schemas.TABLES` has."""
    paths = sql_files(tables=True)
    for path in paths:
        connection.execute(path.read_text(encoding="utf-8"))
    defined = {object_name(path) for path in paths}
    for name in (name for name in schemas.TABLES if name not in defined):
        columns = ", ".join(
            f'"{field.name}" {_DUCKDB_TYPES[field.type]}{"" if field.nullable else " not null"}'
            for field in schemas.TABLES[name]
        )
        connection.execute(f'create table if not exists "{name}" ({columns})')


def object_name(path: Path) -> str:
    """Name of the table or view that a file of `sql/` defines."""
    return path.stem.split("_", 1)[1]


def new_columns() -> list[tuple[str, str]]:
    """Name and meaning of each quantity that the header of a view introduces: ``-- column NAME: what it is``."""
    return [
        (name, meaning)
        for path in sql_files(tables=False)
        for name, meaning in re.findall(
            r"^-- column (\w+): (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE
        )
    ]


def create_views(connection: duckdb.DuckDBPyConnection) -> None:
    """Replace all views by those of `sql/`, in one transaction; views that are no longer defined go."""
    connection.begin()
    try:
        names = connection.execute("select view_name from duckdb_views() where not internal").fetchall()
        for (name,) in names:
            connection.execute(f'drop view if exists "{name}"')
        for path in sql_files(tables=False):
            connection.execute(path.read_text(encoding="utf-8"))
        connection.commit()
    except BaseException:
        connection.rollback()
        raise


def has_todays_views(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether the database's tables and views are those of `sql/`, word by word."""
    import duckdb

    question = "select view_name, sql from duckdb_views() where not internal order by view_name"
    with duckdb.connect() as empty:
        create_tables(empty)
        create_views(empty)
        wanted = empty.execute(question).fetchall()
    return connection.execute(question).fetchall() == wanted and not table_differences(connection)


def table_differences(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Where the database's tables differ from `schemas.TABLES`: one text per table, empty if they agree."""
    differences = []
    for name, schema in schemas.TABLES.items():
        found = connection.execute(
            "select column_name, data_type, is_nullable from duckdb_columns() "
            "where table_name = ? and not internal order by column_index",
            [name],
        ).fetchall()
        expected = [(field.name, _DUCKDB_TYPES[field.type], field.nullable) for field in schema]
        if found != expected:
            odd = sorted({str(column[0]) for column in set(found) ^ set(expected)})
            differences.append(f"table {name}: columns {', '.join(odd) or 'in another order'}")
    return differences


def _read_header(path: Path) -> CheckView:
    text = path.read_text(encoding="utf-8")
    fields = dict(re.findall(r"^-- (one row per|severity:|why:) (.+)$", text, flags=re.MULTILINE))
    return CheckView(
        name=object_name(path),
        severity=fields["severity:"],
        grain=f"one row per {fields['one row per']}",
        why=fields["why:"],
    )
