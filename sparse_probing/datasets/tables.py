"""Tables that people bring: named columns of CSV, TSV, JSON lines and Parquet, read as text exactly as written.

One rule for all formats. An empty field or a null is missing, and nothing else is: ``NA`` is a text, and so is
``2019-01-01``. Numbers of CSV and JSON keep their spelling (``1`` and ``1.0`` differ, ids of any length are whole), and
true and false are ``true`` and ``false``. In Parquet, integers and decimals are written in full, floats as the shortest
number that reads back as the same (``0.1``, ``1.0``), dates and timestamps in ISO 8601 (``2019-01-01``,
``2019-01-01T12:30:00+00:00``), and bytes are UTF-8. Columns that nobody names are not looked at.

What a column means, and which files are read, is said in `local_files`.
"""

from __future__ import annotations

import csv
import datetime
import gzip
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, cast

from sparse_probing.errors import InputError

FORMATS = {".parquet": "Parquet", ".jsonl": "JSON lines", ".ndjson": "JSON lines", ".csv": "CSV", ".tsv": "TSV"}
READ_ROWS = 4096
# The csv module, of a whole process, refuses longer fields; this is the most that fits a C long everywhere.
MAX_FIELD_CHARS = 2**31 - 1

# An object is a tuple of pairs, so that a key that is given twice shows; numbers stay as they are spelled. NaN and
# Infinity, which are no JSON but are written by many, become the only floats.
_decoder = json.JSONDecoder(parse_int=str, parse_float=str, object_pairs_hook=tuple)


def table_format(file: Path) -> str | None:
    """The format that a file's suffix says, in upper or lower case; None if it is no table. ``.gz`` may follow text."""
    name = file.name.lower()
    plain = name.removesuffix(".gz")
    found = FORMATS.get(Path(plain).suffix)
    return None if found == "Parquet" and plain != name else found


def column_names(file: Path, wanted: Sequence[str]) -> list[str]:
    """The columns that a table has; of JSON lines, those of as many lines as it takes to see all that are wanted.

    Raises
    ------
    InputError
        If the file is not what its suffix says.
    """
    with _reading(file):
        found = table_format(file)
        if found == "Parquet":
            import pyarrow.parquet as pq

            return list(pq.read_schema(file).names)
        if found == "JSON lines":
            names: dict[str, None] = {}
            for _, pairs in _json_lines(file):
                names.update(dict.fromkeys(name for name, _ in pairs))
                if all(name in names for name in wanted):
                    break
            return list(names)
        return next((fields for _, fields in _records(file)), [])


def read_columns(file: Path, columns: Sequence[str]) -> Iterator[tuple[str | None, ...]]:
    """The texts of some columns, row by row; None where there is none.

    Raises
    ------
    InputError
        If the file is not what its suffix says, or a value is no text, number, date, true or false. The message names
        the row, or of JSON lines the line.
    """
    found = table_format(file)
    rows = {"Parquet": _parquet_rows, "JSON lines": _json_rows}.get(str(found), _delimited_rows)
    with _reading(file):
        for place, values in rows(file, columns):
            yield tuple([_as_text(value, file, place, name) for name, value in zip(columns, values, strict=True)])


def _as_text(value: object, file: Path, place: str, column: str) -> str | None:
    try:
        if isinstance(value, str):
            # An escape of JSON can spell half of a character, which no file can hold.
            value.encode()
            return value or None
        if value is None:
            return None
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, int):
            return str(value)
        if isinstance(value, bytes):
            return value.decode() or None
        if isinstance(value, float) and math.isfinite(value):
            return repr(value)
        if isinstance(value, Decimal):
            return f"{value:f}"
        if isinstance(value, datetime.date):
            return value.isoformat()
        kinds = {tuple: "an object", dict: "an object", list: "a list", float: str(value)}
        found = kinds.get(type(value), f"a {type(value).__name__}")
    except UnicodeDecodeError:
        found = "bytes that are no UTF-8"
    except UnicodeEncodeError:
        found = "half of a character (an unpaired surrogate)"
    raise InputError(
        f"{file} {place}: column {column!r} holds {found}; a text, a number, a date, true or false is expected.",
        remedy="Convert the column, or name another one in the options.",
    )


def _parquet_rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(READ_ROWS, columns=list(columns)):
            arrays = [batch.column(name) for name in columns]
            # The shortest number of single precision is shorter than that of the double it becomes in Python.
            lists = [
                (array.cast(pa.string()).cast(pa.float64()) if array.type == pa.float32() else array).to_pylist()
                for array in arrays
            ]
            for values in zip(*lists, strict=True):
                row += 1
                yield f"row {row}", values


def _json_rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for place, pairs in _json_lines(file):
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next((name for name in columns if names.count(name) > 1), None)
            if twice is not None:
                raise InputError(f"{file} {place} has {twice!r} twice.", remedy="Remove one of them.")
        yield place, tuple([found.get(name) for name in columns])


def _json_lines(file: Path) -> Iterator[tuple[str, tuple[tuple[str, Any], ...]]]:
    """Keys and values of JSON lines, by line; blank lines are passed over."""
    with _opened(file) as lines:
        for number, line in enumerate(lines, 1):
            if line.isspace():
                continue
            try:
                value = _decoder.decode(line)
            except (ValueError, RecursionError) as error:
                raise _no_object(file, number, str(error)) from error
            if not isinstance(value, tuple):
                raise _no_object(file, number, f"it begins with {line.strip()[:20]!r}")
            yield f"line {number}", value


def _no_object(file: Path, number: int, detail: str) -> InputError:
    return InputError(
        f"{file} line {number} is not readable as JSON lines: one object a line is expected, but {detail}.",
        remedy="Mend or convert the file.",
    )


def _delimited_rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    rows = _records(file)
    _, header = next(rows, ("", list[str]()))
    chosen = [header.index(name) for name in columns]
    for place, fields in rows:
        if len(fields) != len(header):
            raise InputError(
                f"{file} {place} has {len(fields)} fields; its first line names {len(header)} columns.",
                remedy="Mend the row: a field with commas, tabs, quotes or line ends in it stands in quotes.",
            )
        yield place, tuple([fields[index] for index in chosen])


def _records(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Records of CSV or TSV, the header as row 0; blank lines are passed over."""
    csv.field_size_limit(MAX_FIELD_CHARS)
    row = 0
    with _opened(file) as lines:
        reader = csv.reader(lines, delimiter="\t" if table_format(file) == "TSV" else ",", strict=True)
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise InputError(
                    f"{file} row {row} (line {reader.line_num}) is not readable as {table_format(file)}: {error}.",
                    remedy="Mend the row: a field with quotes in it stands in quotes, and those in it are doubled.",
                ) from error
            if fields:
                yield f"row {row} (line {reader.line_num})", fields
                row += 1


def _opened(file: Path) -> IO[str]:
    """A text file, packed or not; a mark of the byte order at its start is no part of the text."""
    if file.suffix.lower() == ".gz":
        return cast(IO[str], gzip.open(file, "rt", encoding="utf-8-sig", newline=""))
    return file.open(encoding="utf-8-sig", newline="")


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Say of a file that cannot be read which one it is, and why."""
    import pyarrow as pa

    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file} is not UTF-8 text: it holds the byte 0x{error.object[error.start]:02x} ({error.reason}).",
            remedy="Convert the file to UTF-8.",
        ) from error
    except (pa.ArrowException, OSError, EOFError, zlib.error, ValueError, LookupError, OverflowError) as error:
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{file} is not readable as {table_format(file)}: {detail}.", remedy="Mend or convert the file."
        ) from error
