"""Arrow tables to Parquet files and back: atomic, with an explicit schema and a digest."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq

from sparse_probing.errors import ArtifactError, DamageError
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import FileEntry, check_bytes


def write_table(
    location: Location,
    table: pa.Table,
    schema: pa.Schema,
    *,
    compression: str = "zstd",
    compression_level: int | None = None,
    use_dictionary: bool | list[str] = True,
    row_group_rows: int = 1 << 17,
    durable: bool = True,
) -> FileEntry:
    """Write a table atomically and return its entry for the manifest; `durable` as in `Location.write_bytes`.

    Raises
    ------
    ArtifactError
        If the table does not fit the schema or cannot be written.
    """
    if table.schema.names != schema.names:
        raise ArtifactError(f"{location}: columns are {table.schema.names}; expected {schema.names}.")
    try:
        table = table.cast(schema)
    except (pa.ArrowInvalid, ValueError) as error:
        raise ArtifactError(f"{location}: table does not fit its schema: {error}.") from error
    for field, column in zip(schema, table.columns, strict=True):
        if not field.nullable and column.null_count:
            raise ArtifactError(f"{location}: column {field.name} has {column.null_count} nulls; expected none.")
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression=compression,
        compression_level=compression_level,
        use_dictionary=use_dictionary,
        row_group_size=row_group_rows,
        write_page_checksum=True,
    )
    buffer = sink.getvalue()
    location.write_bytes(buffer, durable=durable)
    return FileEntry(sha256=hashlib.sha256(buffer).hexdigest(), size_bytes=buffer.size, n_rows=table.num_rows)


def read_table(location: Location, *, columns: list[str] | None = None, entry: FileEntry | None = None) -> pa.Table:
    """Read a table; its bytes are checked against their digest first, or without `entry` against their pages' checksums.

    Raises
    ------
    DamageError
        If the file is missing, damaged, or not Parquet.
    """
    data = location.read_bytes()
    if entry is not None:
        check_bytes(location, data, entry)
    try:
        return pq.read_table(pa.BufferReader(data), columns=columns, page_checksum_verification=entry is None)
    except (pa.ArrowInvalid, OSError) as error:
        raise DamageError(f"{location} is not readable as Parquet: {error}.", path=location.path) from error
