"""An artifact has one owner while it is made, and a damaged one is set aside before it is looked for."""

from __future__ import annotations

import threading
from pathlib import Path

import pyarrow as pa
import pytest

from sparse_probing.store.filesystem import Location
from sparse_probing.store.making import making, mend, set_aside_damage
from sparse_probing.store.manifests import find_manifest, write_manifest
from sparse_probing.store.parquet import write_table

SCHEMA = pa.schema([pa.field("number", pa.int64())])


def finished(root: Location) -> Location:
    folder = root / "datasets" / "d-1"
    files = {"t.parquet": write_table(folder / "t.parquet", pa.table({"number": [1, 2]}), SCHEMA)}
    write_manifest(folder, kind="test", digest="d" * 64, spec={}, files=files)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Location:
    return Location.open(tmp_path)


def test_a_whole_artifact_is_found_and_a_damaged_one_is_not(root: Location) -> None:
    folder = finished(root)
    said: list[str] = []
    with making(root, folder, say=said.append):
        assert find_manifest(folder) is not None
    assert said == []
    Path(f"{folder.path}/t.parquet").write_bytes(b"short")
    with making(root, folder, say=said.append):
        assert find_manifest(folder) is None
    (line,) = said
    assert "t.parquet is damaged: 5 bytes" in line
    assert len(list((root / "set_aside").children())) == 1


def test_two_owners_take_turns(root: Location) -> None:
    folder, order = root / "datasets" / "d-2", []

    def second() -> None:
        with making(root, folder, say=lambda line: None):
            order.append("second")

    with making(root, folder, say=lambda line: None):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.5)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_mend_names_what_it_set_aside(root: Location) -> None:
    folder = finished(root)
    assert mend(root, [folder], every_byte=True, say=print) == []
    path = Path(f"{folder.path}/t.parquet")
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    assert mend(root, [folder, root / "datasets" / "none"], every_byte=True, say=lambda line: None) == ["datasets/d-1"]


def test_a_file_of_no_artifact_goes_alone(root: Location, tmp_path: Path) -> None:
    folder = finished(root)
    Path(f"{folder.path}/t.parquet").unlink()
    loose = tmp_path / "activations" / "staged.parquet"
    loose.parent.mkdir()
    loose.write_bytes(b"half")
    said: list[str] = []
    set_aside_damage(root, str(loose), say=said.append)
    assert not loose.exists()
    set_aside_damage(root, f"{folder.path}/t.parquet", say=said.append)
    assert not Path(folder.path).exists()
    # Nothing outside of the data folder is touched.
    set_aside_damage(root / "datasets", str(tmp_path / "activations"), say=said.append)
    assert (tmp_path / "activations").exists()
    assert len(said) == 2
