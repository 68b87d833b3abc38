"""The published database beside the artifacts: what one machine uploads, another fetches once, and nobody takes half of it."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from sparse_probing.errors import ArtifactError
from sparse_probing.settings import Settings
from sparse_probing.store.filesystem import Location
from sparse_probing.warehouse.shared import FOLDER, find_pointer, latest_snapshot, upload


@pytest.fixture
def root(tmp_path: Path) -> Location:
    """A data folder that is none of this machine's."""
    (tmp_path / "store").mkdir()
    store = Location(pafs.SubTreeFileSystem(str(tmp_path / "store"), pafs.LocalFileSystem()), "data")
    store.filesystem.create_dir("data/published", recursive=True)
    return store


def machine(folder: Path) -> Settings:
    folder.mkdir()
    return Settings(data_uri="s3://bucket/data", local_dir=folder, device="cpu")


def test_what_one_machine_uploads_another_fetches_once(tmp_path: Path, root: Location) -> None:
    writer, reader = machine(tmp_path / "writer"), machine(tmp_path / "reader")
    assert latest_snapshot(reader, root) == reader.snapshot_path
    writer.snapshot_path.write_bytes(b"first")
    upload(writer.snapshot_path, root, writer.local_dir)
    fetched = latest_snapshot(reader, root)
    assert fetched.read_bytes() == b"first"
    before = fetched.stat().st_mtime_ns
    assert latest_snapshot(reader, root) == fetched
    assert fetched.stat().st_mtime_ns == before
    # Its own it need not fetch.
    assert latest_snapshot(writer, root) == writer.snapshot_path
    writer.snapshot_path.write_bytes(b"second")
    upload(writer.snapshot_path, root, writer.local_dir)
    assert latest_snapshot(reader, root).read_bytes() == b"second"
    # Two machines that publish in turn: each reads what was published last.
    reader.snapshot_path.write_bytes(b"third")
    upload(reader.snapshot_path, root, reader.local_dir)
    assert latest_snapshot(writer, root).read_bytes() == b"third"
    assert latest_snapshot(reader, root) == reader.snapshot_path
    # Of all that were uploaded the last two are kept: who began to fetch one may end.
    names = {path.name for path in (root / FOLDER).children()}
    assert len(names) == 3
    pointer = find_pointer(root)
    assert pointer is not None
    assert {"latest.json", pointer.name} < names


def test_a_copy_that_changed_is_fetched_again_and_a_damaged_one_is_refused(tmp_path: Path, root: Location) -> None:
    writer, reader = machine(tmp_path / "writer"), machine(tmp_path / "reader")
    writer.snapshot_path.write_bytes(b"a database")
    pointer = upload(writer.snapshot_path, root, writer.local_dir)
    assert pointer is not None
    fetched = latest_snapshot(reader, root)
    fetched.write_bytes(b"a datacase")
    os.utime(fetched, ns=(1, 1))
    assert latest_snapshot(reader, root).read_bytes() == b"a database"
    (root / FOLDER / pointer.name).write_bytes(b"half")
    fetched.unlink()
    with pytest.raises(ArtifactError, match="not what was uploaded"):
        latest_snapshot(reader, root)
    assert sorted(path.name for path in reader.local_dir.iterdir()) == ["fetched.json"]
    (root / FOLDER / "latest.json").write_bytes(b"{")
    assert latest_snapshot(reader, root) == reader.snapshot_path


def test_a_local_data_folder_needs_no_copy(tmp_path: Path) -> None:
    settings = Settings(data_uri=str(tmp_path), local_dir=tmp_path, device="cpu")
    settings.snapshot_path.write_bytes(b"a database")
    assert upload(settings.snapshot_path, Location.open(tmp_path), tmp_path) is None
    assert latest_snapshot(settings) == settings.snapshot_path
    assert [path.name for path in tmp_path.iterdir()] == ["results.duckdb"]
