"""Damage is found without reading what nobody touched, and what is damaged moves out of the way."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from sparse_probing.store import filesystem
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import read_made, write_manifest
from sparse_probing.store.parquet import write_table
from sparse_probing.store.soundness import artifact_of, artifacts, find_damage, is_whole, set_aside

SCHEMA = pa.schema([pa.field("number", pa.int64())])


@pytest.fixture
def root(tmp_path: Path) -> Location:
    root = Location.open(tmp_path)
    for place in ("datasets/d-1", "activations/m@r/1-2", "results/runs/r1", "results/_running/r2/layer-00"):
        folder = root / place
        files = {
            name: write_table(folder / name, pa.table({"number": [1, 2]}), SCHEMA) for name in ("a/t.parquet", "u")
        }
        write_manifest(folder, kind="test", digest="d" * 64, spec={}, files=files)
    return root


def flip(path: Path, at: int = 5) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def keeping_its_time(change: Callable[[Path], None]) -> Callable[[Path], None]:
    def changed(path: Path) -> None:
        before = path.stat()
        change(path)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    return changed


def test_every_artifact_is_known_and_whole(root: Location) -> None:
    found = [folder.path.removeprefix(f"{root.path}/") for folder in artifacts(root)]
    assert found == ["datasets/d-1", "activations/m@r/1-2", "results/runs/r1", "results/_running/r2/layer-00"]
    for folder in artifacts(root):
        assert is_whole(folder, digest="d" * 64)
        assert find_damage(folder, every_byte=True) is None
    assert find_damage(root / "nowhere") is None
    assert not is_whole(root / "nowhere")


@pytest.mark.parametrize("name", ["a/t.parquet", "manifest.json"])
@pytest.mark.parametrize(
    "change", [flip, lambda path: path.write_bytes(path.read_bytes()[:-3]), lambda path: path.unlink()]
)
def test_what_was_written_to_is_found_at_once(root: Location, change: Callable[[Path], None], name: str) -> None:
    folder = root / "datasets" / "d-1"
    change(Path(folder.path) / name)
    assert not is_whole(folder)
    if (folder / "manifest.json").exists():
        damage = find_damage(folder)
        assert damage is not None
        assert name in damage


def test_a_bit_that_the_disk_lost_is_found_by_reading_everything(root: Location) -> None:
    folder = root / "datasets" / "d-1"
    keeping_its_time(flip)(Path(folder.path) / "u")
    assert find_damage(folder) is None
    damage = find_damage(folder, every_byte=True)
    assert damage is not None
    assert damage.startswith(f"{folder.path}/u is damaged: SHA-256")


def test_a_file_that_was_copied_later_but_is_the_same_is_no_damage(root: Location) -> None:
    path = Path(root.path) / "datasets" / "d-1" / "u"
    path.write_bytes(path.read_bytes())
    assert is_whole(root / "datasets" / "d-1")


def test_set_aside_and_found_missing(root: Location) -> None:
    folder = root / "activations" / "m@r" / "1-2"
    assert artifact_of(root, f"{folder.path}/a/t.parquet") == folder
    moved = set_aside(root, folder)
    assert not folder.exists()
    assert moved.path.startswith(f"{root.path}/set_aside/")
    assert is_whole(moved)
    assert artifact_of(root, f"{folder.path}/a/t.parquet") is None
    assert artifact_of(root, "/etc/passwd") is None


def test_what_is_lost_of_the_record_is_told_by_the_manifest(root: Location) -> None:
    folder = root / "datasets" / "d-1"
    before = read_made(folder).created_at
    Path(folder.path, "made.json").write_bytes(b"{")
    assert abs((read_made(folder).created_at - before).total_seconds()) < 60
    assert is_whole(folder)


def test_the_bytes_and_then_the_name_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File, rename, folder, in this order, and the folders that were made for it: else a power failure leaves an empty file."""
    events: list[tuple[str, str]] = []
    sync, replace = os.fsync, os.replace

    def recorded_sync(descriptor: int) -> None:
        events.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        sync(descriptor)

    def recorded_replace(source: str, target: str) -> None:
        events.append(("rename", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(filesystem.os, "fsync", recorded_sync)
    monkeypatch.setattr(filesystem.os, "replace", recorded_replace)
    (Location.open(tmp_path) / "new" / "inside" / "file").write_bytes(b"text")
    assert {events.pop(0), events.pop(0)} == {("sync", "new"), ("sync", tmp_path.name)}
    temporary = events.pop(0)
    assert temporary[0] == "sync"
    assert temporary[1].startswith(".tmp-file-")
    assert events == [("rename", "file"), ("sync", "inside")]
