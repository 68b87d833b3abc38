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
import pyarrow.parquet as pq

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


# What rankings read: where neuron_scores is a view (`score_files`) the table of its shortlisted rows, else a view of it.
KEPT_SCORES = "kept_scores"
SCORES = "neuron_scores"
# Views that are tables of the published database, each after those that it reads: asked for often, and costly over many runs.
MATERIALISED = (
    "best_neuron_per_feature",
    "sparsity_curves",
    "optimal_certificates",
    "checkpoint_trajectories",
    "checkpoint_changes",
    "checkpoint_neurons",
)


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
    outside = stored_name(connection, SCORES) != SCORES
    for path in paths:
        if not (outside and object_name(path) == SCORES):
            connection.execute(path.read_text(encoding="utf-8"))
    defined = {object_name(path) for path in paths}
    for name in (name for name in schemas.TABLES if name not in defined):
        columns = ", ".join(
            f'"{field.name}" {_DUCKDB_TYPES[field.type]}{"" if field.nullable else " not null"}'
            for field in schemas.TABLES[name]
        )
        connection.execute(f'create table if not exists "{name}" ({columns})')


def quoted(text: str) -> str:
    """A text as SQL has it, for a path where DuckDB takes no parameter: it is none of its users' words."""
    return "'" + text.replace("'", "''") + "'"


def stored_name(connection: duckdb.DuckDBPyConnection, kind: str, database: str | None = None) -> str:
    """Name of the table that holds the rows of a kind: its own, or `kept_scores` where neuron_scores is a view.

    Parameters
    ----------
    database:
        Name under which a database is attached; the connection's own if absent.
    """
    if kind != SCORES:
        return kind
    found = connection.execute(
        "select 1 from duckdb_tables() where table_name = ? and database_name = coalesce(?, current_database())",
        [KEPT_SCORES, database],
    ).fetchall()
    return KEPT_SCORES if found else SCORES


def create_kept_scores(connection: duckdb.DuckDBPyConnection) -> None:
    """Create table `kept_scores`, with the columns of neuron_scores."""
    (path,) = (path for path in sql_files(tables=True) if object_name(path) == SCORES)
    connection.execute(path.read_text(encoding="utf-8").replace(f"not exists {SCORES} ", f"not exists {KEPT_SCORES} "))


def create_scores_view(connection: duckdb.DuckDBPyConnection) -> None:
    """Create view `kept_scores` over table `neuron_scores`; or where that is not a table any more, the other way round.

    View `neuron_scores` is of `kept_scores` and the files that `score_files` lists, as far as they can be read.
    """
    names = schemas.NEURON_SCORES.names
    if stored_name(connection, SCORES) == SCORES:
        connection.execute(f"create or replace view {KEPT_SCORES} as select {', '.join(names)} from {SCORES}")
        return
    parts = [f"select {', '.join(names)} from {KEPT_SCORES}"]
    listed = connection.execute("select path from score_files order by path").fetchall()
    paths = [path for (path,) in listed if _can_be_read(Path(path).parent)]
    if paths:
        files = ", ".join(map(quoted, paths))
        # The run by its folder, and what is shortlisted as a constant: conditions on either then leave files unopened.
        read_as = {"run_id": "regexp_extract(filename, '([^/]+)/[^/]+$', 1)", "shortlisted": "false"}
        columns = ", ".join(f"{read_as[name]} as {name}" if name in read_as else name for name in names)
        parts.append(f"select {columns} from read_parquet([{files}], filename = true) where not shortlisted")
    connection.execute(f"create or replace view {SCORES} as {' union all '.join(parts)}")


def _can_be_read(fragment: Path) -> bool:
    """Whether a fragment of scores is there, and its first file begins as one: DuckDB would refuse every view over it."""
    first = min(fragment.glob("part-*.parquet"), default=None)
    try:
        return first is not None and "neuron" in pq.read_schema(first).names
    except (OSError, pa.ArrowException):
        return False


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
        create_scores_view(connection)
        for path in sql_files(tables=False):
            connection.execute(path.read_text(encoding="utf-8"))
        connection.commit()
    except BaseException:
        connection.rollback()
        raise


def materialise(connection: duckdb.DuckDBPyConnection, database: str) -> None:
    """Make tables of the views in `MATERIALISED`, whose definitions are kept as the tables' comments.

    Parameters
    ----------
    database:
        Name under which the database is attached.
    """
    for name in MATERIALISED:
        ((definition,),) = connection.execute(
            "select sql from duckdb_views() where view_name = ? and database_name = ?", [name, database]
        ).fetchall()
        connection.execute(f"create table {database}.materialised as from {database}.{name}")
        connection.execute(f"drop view {database}.{name}")
        connection.execute(f"alter table {database}.materialised rename to {name}")
        comment = quoted(str(definition).replace(f" VIEW {database}.", " VIEW "))
        connection.execute(f"comment on table {database}.{name} is {comment}")


def has_todays_views(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether the database's tables and views are those of `sql/`, word by word; views may have become tables."""
    import duckdb

    names = ", ".join(f"'{name}'" for name in MATERIALISED)
    question = f"""
        select view_name as name, sql as definition from duckdb_views()
        where not internal and view_name not in ('{SCORES}', '{KEPT_SCORES}')
        union all
        select table_name, comment from duckdb_tables() where table_name in ({names})
        order by name
    """
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
            [stored_name(connection, name)],
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
