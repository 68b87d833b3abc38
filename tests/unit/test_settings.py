"""Where things lie, read from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_probing.errors import InputError
from sparse_probing.settings import SCORES_VARIABLE, load_settings


@pytest.mark.parametrize("name", ["what?", "back\\slash"])
def test_a_folder_that_duckdb_cannot_open_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="DuckDB") as caught:
        load_settings(tmp_path / name / "data")
    assert "--data" in caught.value.remedy
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["plain", "with space", "quote's", "50%", "[a]", "star*", "semi;colon", "ü"])
def test_a_folder_that_duckdb_opens_is_taken(tmp_path: Path, name: str) -> None:
    import duckdb

    settings = load_settings(tmp_path / name)
    settings.local_dir.mkdir()
    duckdb.connect(str(settings.snapshot_path)).close()
    assert settings.snapshot_path.is_file()


def test_how_many_scores_the_database_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(SCORES_VARIABLE, raising=False)
    assert load_settings(tmp_path).most_scores == 20_000_000
    monkeypatch.setenv(SCORES_VARIABLE, "0")
    assert load_settings(tmp_path).most_scores == 0
    for wrong in ("many", "-1", "1e6"):
        monkeypatch.setenv(SCORES_VARIABLE, wrong)
        with pytest.raises(InputError, match="expected a whole number of rows"):
            load_settings(tmp_path)
