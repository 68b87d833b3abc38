"""What publishing tells whoever watches."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_probing.warehouse import loading
from tasks import warehouse


def test_a_removed_log_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(warehouse, "say_and_log", said.append)
    monkeypatch.setenv("SPARSE_PROBING_DATA", str(tmp_path))
    (tmp_path / "results.duckdb").write_bytes(b"published")
    monkeypatch.setattr(loading, "publish", lambda working, snapshot: None)
    warehouse.publish_snapshot.fn([], "any")
    assert not said
    monkeypatch.setattr(loading, "publish", lambda working, snapshot: tmp_path / "results.duckdb.wal")
    warehouse.publish_snapshot.fn([], "any")
    (line,) = said
    assert "what they wrote is gone" in line
    assert "results.duckdb.wal" in line
    assert "\n" not in line
