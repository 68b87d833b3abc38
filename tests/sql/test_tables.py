"""The 0xx tables against the Arrow schemas, and the house style of every SQL file."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest

from sparse_probing import schemas
from sparse_probing.warehouse import catalog
from tests.sql.rows import DEFAULTS, database, insert

FILES = catalog.sql_files(tables=True) + catalog.sql_files(tables=False)


def statements(path: Path) -> str:
    """The file without comments and string literals."""
    text = re.sub(r"--[^\n]*", "", path.read_text(encoding="utf-8"))
    return re.sub(r"'(?:[^']|'')*'", "''", text)


def test_tables_are_the_schemas() -> None:
    con = database()
    assert catalog.table_differences(con) == []
    assert set(DEFAULTS) <= set(schemas.TABLES)


def test_a_table_without_a_file_is_made_from_its_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = pa.schema([pa.field("run_id", pa.string(), nullable=False), pa.field("peak", pa.float32())])
    monkeypatch.setitem(schemas.TABLES, "peaks", schema)
    con = database()
    assert catalog.table_differences(con) == []
    insert(con, "peaks", [{"peak": 0.25}])
    assert con.execute("select run_id, peak from peaks").fetchall() == [("r1", 0.25)]


def test_a_table_that_differs_is_named() -> None:
    con = database()
    con.execute("alter table features drop column prevalence")
    assert catalog.table_differences(con) == ["table features: columns prevalence"]


def test_views_may_be_created_again_and_surplus_ones_go() -> None:
    con = database()
    con.execute("create view leftover as select 1 as one")
    catalog.create_views(con)
    names = {name for (name,) in con.execute("select view_name from duckdb_views() where not internal").fetchall()}
    assert names == {catalog.object_name(path) for path in catalog.sql_files(tables=False)} | {catalog.KEPT_SCORES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_style(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("-- one row per ")
    assert max(map(len, text.splitlines())) <= 130
    body = statements(path)
    assert body == body.lower()
    assert not re.search(r"select\s+\*|\.\*|exclude", body), "columns are named"


def test_thresholds_are_seeded_once_and_edits_stay() -> None:
    con = database()
    seeded = dict(con.execute("select collection, threshold from interest_thresholds").fetchall())
    assert seeded["natural_lang_id"] == 1
    assert seeded["ewt"] == seeded["compound_words"] == seeded["distribution_id"] == 0.95
    assert seeded["programming_lang_id"] == 0.9
    assert seeded["latex"] == seeded["text_features"] == 0.85
    con.execute("delete from interest_thresholds where collection <> 'latex'")
    con.execute("update interest_thresholds set threshold = 0.5")
    catalog.create_tables(con)
    assert con.execute("select collection, threshold from interest_thresholds").fetchall() == [("latex", 0.5)]


def test_the_guide_names_every_table_and_view() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
    names = {catalog.object_name(path) for path in FILES} | set(schemas.TABLES)
    assert {name for name in names if f"`{name}`" not in guide} == set()
    named = set(re.findall(r"`(check_\w+)`", guide))
    assert named <= names | {"check_*"}
    for view in catalog.check_views():
        (row,) = [line for line in guide.splitlines() if line.startswith("| `check") and f"`{view.name}`" in line]
        assert f"| {view.severity} |" in row
