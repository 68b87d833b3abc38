"""Tables: named columns are text exactly as written, in every format alike, and what cannot be read is one line."""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparse_probing.datasets.local_files import LocalTexts
from sparse_probing.errors import InputError

FORMATS = ("csv", "tsv", "jsonl", "ndjson", "csv.gz", "jsonl.gz", "parquet")
Row = dict[str, str | None]


def write_rows(path: Path, rows: list[Row], columns: list[str]) -> None:
    """The same rows in the format of the suffix, by a writer other than the reader's."""
    opened = gzip.open if path.suffix == ".gz" else open
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in columns}), path)
    elif ".csv" in path.suffixes or ".tsv" in path.suffixes:
        with opened(path, "wt", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, columns, delimiter="\t" if ".tsv" in path.suffixes else ",")
            writer.writeheader()
            writer.writerows(rows)
    else:
        with opened(path, "wt", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)


def found_in(path: Path, *names: str | None, **options: Any) -> list[tuple[str, str, str]]:
    """Text, group and label of each document, the file's own suffix aside."""
    source = LocalTexts(str(path), *(names or ("text", "label", "group")), **options)
    source.check()
    return [(item.text, item.group_id.replace(path.name, "FILE"), item.label) for item in source.documents(0)]


WORDS = ("NA", "null", "nan", "N/A", "None", "true", "1", "1.0", "2019-01-01", "18446744073709551617", '"', "a,b\tc")
FIELD = st.none() | st.sampled_from(WORDS) | st.text(st.characters(codec="utf-8"), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.fixed_dictionaries({"text": FIELD, "label": FIELD, "more": FIELD, "number": st.just("7")}), max_size=6
    )
)
def test_the_same_rows_are_the_same_documents_in_every_format(tmp_path: Path, rows: list[Row]) -> None:
    expected = [
        (row["text"], f"FILE:{number}", row["label"])
        for number, row in enumerate(rows, 1)
        if row["text"] and row["text"].strip() and row["label"]
    ]
    columns = ["number", "text", "more", "label"]
    for suffix in FORMATS:
        path = tmp_path / f"texts.{suffix}"
        write_rows(path, rows, columns)
        if rows or "json" not in suffix:
            assert found_in(path, "text", "label") == expected, suffix


@pytest.mark.parametrize("word", ["NA", "null", "nan", "N/A", "NULL", "#N/A"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_words_that_readers_take_for_null_are_classes(tmp_path: Path, word: str, quote: str) -> None:
    """A class NA vanished from a CSV file, and half of the texts with it, quoted or not."""
    path = tmp_path / "texts.csv"
    path.write_text(f"text,label\none,{quote}{word}{quote}\n{quote}{word}{quote},EU\n", encoding="utf-8")
    assert found_in(path, "text", "label") == [("one", "FILE:1", word), (word, "FILE:2", "EU")]


def test_values_of_json_lines_are_spelled_as_written(tmp_path: Path) -> None:
    """A label 2019-01-01 became a datetime, ids of more than 64 bits one float, true became True."""
    written = ['"2019-01-01"', "18446744073709551617", "18446744073709551618", "1", "1.0", "-0", "1e5", "true", "false"]
    path = tmp_path / "texts.jsonl"
    path.write_text(
        "".join(f'{{"text": "t", "label": {value}, "group": {value}}}\n' for value in written), encoding="utf-8"
    )
    expected = [value.strip('"') for value in written]
    assert [(group, label) for _, group, label in found_in(path)] == list(zip(expected, expected, strict=True))


def test_values_of_parquet_are_spelled_as_a_writer_of_text_would(tmp_path: Path) -> None:
    """Columns of bytes skipped every row in silence; numbers and dates had no written form."""
    second = datetime.datetime(2019, 1, 1, 12, 30, tzinfo=datetime.UTC)
    cases: list[tuple[pa.Array, str]] = [
        (pa.array([2**64 - 1], pa.uint64()), "18446744073709551615"),
        (pa.array([0.1], pa.float32()), "0.1"),
        (pa.array([1.0], pa.float64()), "1.0"),
        (pa.array([True]), "true"),
        (pa.array([datetime.date(2019, 1, 1)]), "2019-01-01"),
        (pa.array([second], pa.timestamp("ms", "UTC")), "2019-01-01T12:30:00+00:00"),
        (pa.array([second.replace(tzinfo=None)], pa.timestamp("ns")), "2019-01-01T12:30:00"),
        (pa.array([decimal.Decimal("0.0000001")], pa.decimal128(12, 8)), "0.00000010"),
        (pa.array(["é".encode()], pa.binary()), "é"),
        (pa.array(["é".encode()], pa.large_binary()), "é"),
        (pa.array(["é"]).dictionary_encode(), "é"),
        (pa.array(["é"], pa.large_string()), "é"),
        (pa.array(["é"], pa.string_view()), "é"),
    ]
    for values, expected in cases:
        pq.write_table(pa.table(dict.fromkeys(("text", "label", "group"), values)), tmp_path / "texts.parquet")
        assert found_in(tmp_path / "texts.parquet") == [(expected, expected, expected)], values.type


@pytest.mark.parametrize(
    "lines",
    [
        '{"text": "a", "label": "x", "m": 1}\n{"text": "b", "label": "y", "m": "one"}\n',
        '{"text": "a", "label": "x"}\n{"text": "b", "label": "y", "m": {"late": [1, {"a": 1, "a": 2}]}}\n',
        '{"text": "a", "label": "x", "m": null}\n{"text": "b", "label": "y", "m": NaN, "m": 1}\n',
        '\n  \n{"text": "a", "label": "x"}\n\n{"text": "b", "label": "y"}\n',
        '{"text": "only"}\n{"text": "a", "label": "x"}\n{"label": "y", "text": "b"}',
        '\ufeff{"text": "a", "label": "x"}\r\n{"text": "b", "label": "y"}\r\n',
    ],
)
def test_what_no_option_names_refuses_no_json_lines(tmp_path: Path, lines: str) -> None:
    """A column that changed type, came late or was null first refused the file; so did a first line that is blank."""
    path = tmp_path / "texts.jsonl"
    path.write_text(lines, encoding="utf-8", newline="")
    assert [(text, label) for text, _, label in found_in(path, "text", "label")] == [("a", "x"), ("b", "y")]


def test_columns_that_come_late_are_seen_however_late(tmp_path: Path) -> None:
    """A key that a reader's first block lacks was an error."""
    path = tmp_path / "texts.jsonl"
    path.write_text(f'{{"text": "{"a" * 1000}"}}\n' * 2_000 + '{"text": "b", "label": "y"}\n', encoding="utf-8")
    assert found_in(path, "text", "label") == [("b", "FILE:2001", "y")]


@pytest.mark.parametrize("suffix", FORMATS)
def test_long_documents_are_read(tmp_path: Path, suffix: str) -> None:
    """A document over 1 MiB was refused: "straddling object straddles two block boundaries"."""
    long = 'word, "and"\n' * 500_000
    write_rows(
        tmp_path / f"texts.{suffix}", [{"text": long, "label": "a"}, {"text": "b", "label": "b"}], ["text", "label"]
    )
    assert [len(text) for text, _, _ in found_in(tmp_path / f"texts.{suffix}", "text", "label")] == [len(long), 1]


def test_csv_with_a_mark_at_its_start_and_line_ends_of_windows(tmp_path: Path) -> None:
    """The first column's name began with the byte-order mark."""
    path = tmp_path / "texts.csv"
    path.write_bytes('\ufefftext,label\r\n"a\r\nb",x\r\n\r\n c ,y\r\n'.encode())
    assert found_in(path, "text", "label") == [("a\r\nb", "FILE:1", "x"), (" c ", "FILE:2", "y")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "text,label\na,b\na,b,c\n", r"t\.csv row 2 \(line 3\) has 3 fields; its first line names 2 columns"),
        ("t.csv", 'text,label\na,b\n"a"b,c\n', r"t\.csv row 2 \(line 3\) is not readable as CSV"),
        ("t.tsv", 'text\tlabel\n"a\tb\n', r"t\.tsv row 1 \(line 2\) is not readable as TSV: unexpected end of data"),
        ("t.csv", "", r"t\.csv has columns none; text_column is 'text'"),
        ("t.csv", b"text,label\na\xe9,b\n", r"t\.csv is not UTF-8 text: it holds the byte 0xe9"),
        ("t.jsonl", b'{"text": "a\xe9", "label": "b"}\n', r"t\.jsonl is not UTF-8 text: it holds the byte 0xe9"),
        (
            "t.jsonl",
            '{"text": "a", "label": "b"}\n[1]\n',
            r"t\.jsonl line 2 is not readable as JSON lines.*begins with '\[1\]'",
        ),
        (
            "t.jsonl",
            '{"text": "a", "label": "b"}\n\n{"text"\n',
            r"t\.jsonl line 3 is not readable as JSON lines: one object a line",
        ),
        ("t.jsonl", "[" * 100_000, r"t\.jsonl line 1 is not readable as JSON lines"),
        (
            "t.jsonl",
            '{"text": "a", "label": {"b": 1}}\n',
            r"t\.jsonl line 1: column 'label' holds an object; a text, a number",
        ),
        ("t.jsonl", '{"text": ["a"], "label": "b"}\n', r"t\.jsonl line 1: column 'text' holds a list"),
        ("t.jsonl", '{"text": "a", "label": NaN}\n', r"t\.jsonl line 1: column 'label' holds nan"),
        ("t.jsonl", '{"text": "\\ud800", "label": "b"}\n', r"t\.jsonl line 1: column 'text' holds half of a character"),
        ("t.jsonl", '{"text": "a", "label": "b", "label": "c"}\n', r"t\.jsonl line 1 has 'label' twice"),
        ("t.jsonl.gz", b"no gzip", r"t\.jsonl\.gz is not readable as JSON lines: Not a gzipped file"),
        ("t.json", '{"text": "a"}\n', r"t\.json ends in \.json; .* rename it \(\.json to \.jsonl"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_place(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        found_in(path, "text", "label")
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_columns_of_parquet_that_are_no_text_are_one_line(tmp_path: Path) -> None:
    """Bytes that are no text, and lists, were skipped row by row in silence."""
    path = tmp_path / "t.parquet"
    for values, message in (
        (pa.array([b"a", b"\xff"]), "row 2: column 'text' holds bytes that are no UTF-8"),
        (pa.array([["a"], ["b"]]), "row 1: column 'text' holds a list"),
        (pa.array([{"a": 1}, None]), "row 1: column 'text' holds an object"),
        (pa.array([1.5, float("nan")]), "row 2: column 'text' holds nan"),
    ):
        pq.write_table(pa.table({"text": values, "label": ["x", "y"]}), path)
        with pytest.raises(InputError, match=message):
            found_in(path, "text", "label")


def test_labels_of_files_are_the_labels_of_documents(tmp_path: Path) -> None:
    """Labels offered in messages were Python's words, such as True, or a datetime's."""
    path = tmp_path / "texts.jsonl"
    path.write_text(
        "".join(
            f'{{"text": "t", "label": {value}}}\n' for value in ('"NA"', "true", '"2019-01-01"', "1.0", "null", '""')
        ),
        encoding="utf-8",
    )
    assert list(LocalTexts(str(path)).labels_found()) == ["NA", "true", "2019-01-01", "1.0"]
