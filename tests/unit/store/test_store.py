"""Files appear whole or not at all, manifests finish an artifact, and matrices come back in the order of row_id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sparse_probing import schemas
from sparse_probing.errors import ArtifactError, DamageError, InputError
from sparse_probing.store.filesystem import TEMPORARY_PREFIX, Location
from sparse_probing.store.manifests import find_manifest, read_manifest, verify_files, write_manifest
from sparse_probing.store.matrices import iterate_layers, layer_folder, pack_rows, part_name, read_layer, unpack_rows
from sparse_probing.store.parquet import read_table, write_table
from sparse_probing.store.soundness import is_whole

SCHEMA = pa.schema([pa.field("number", pa.int64(), nullable=False), pa.field("text", pa.string())])


def test_locations_are_paths_and_uris(tmp_path: Path) -> None:
    location = Location.open(tmp_path) / "a" / "b.txt"
    assert (location.name, location.is_local, location.exists()) == ("b.txt", True, False)
    location.write_bytes(b"first")
    location.write_bytes(b"second")
    assert Location.open(f"file://{location}").read_bytes() == b"second"
    assert [child.name for child in Location.open(tmp_path).children()] == ["a"]
    location.delete()
    location.delete()
    with pytest.raises(ArtifactError, match="is missing"):
        location.read_bytes()
    with pytest.raises(InputError, match="Cannot open"):
        Location.open("nosuchscheme://bucket/key")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    location = Location.open(tmp_path) / "file"
    location.write_bytes(b"old")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="Cannot write"):
        # A folder that is not empty cannot be replaced by a file.
        (Location.open(tmp_path) / "folder").write_bytes(b"new")
    assert location.read_bytes() == b"old"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(TEMPORARY_PREFIX)]


def test_tables_keep_to_their_schema(tmp_path: Path) -> None:
    location = Location.open(tmp_path) / "table.parquet"
    entry = write_table(location, pa.table({"number": pa.array([1, 2], pa.int32()), "text": ["a", None]}), SCHEMA)
    assert (entry.n_rows, entry.size_bytes) == (2, location.size_bytes())
    assert read_table(location, entry=entry).schema.field("number").type == pa.int64()
    for table, message in (
        (pa.table({"text": ["a"], "number": [1]}), "columns are"),
        (pa.table({"number": [None, 1], "text": ["a", "b"]}), "null values to non-nullable"),
        (pa.table({"number": ["x"], "text": ["a"]}), "does not fit"),
    ):
        with pytest.raises(ArtifactError, match=message):
            write_table(location, table, SCHEMA)


def test_damage_is_noticed(tmp_path: Path) -> None:
    folder = Location.open(tmp_path)
    entry = write_table(folder / "t.parquet", pa.table({"number": [1], "text": ["a"]}), SCHEMA)
    manifest = write_manifest(folder, kind="test", digest="d" * 64, spec={}, files={"t.parquet": entry})
    verify_files(folder, manifest)
    data = bytearray((folder / "t.parquet").read_bytes())
    data[10] ^= 4
    (folder / "t.parquet").write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match="damaged"):
        verify_files(folder, manifest)
    with pytest.raises(ArtifactError, match="damaged"):
        read_table(folder / "t.parquet", entry=entry)
    (folder / "t.parquet").write_bytes(b"PAR1 not at all")
    with pytest.raises(ArtifactError, match="not readable"):
        read_table(folder / "t.parquet")


def test_what_has_a_manifest_is_finished(tmp_path: Path) -> None:
    folder = Location.open(tmp_path)
    assert find_manifest(folder) is None
    with pytest.raises(ArtifactError, match="not finished"):
        read_manifest(folder)
    written = write_manifest(folder, kind="test", digest="d" * 64, spec={"a": 1}, files={}, facts={"n": 2})
    assert find_manifest(folder, digest="d" * 64) == written
    assert "python" in written.package_versions
    with pytest.raises(DamageError, match="belongs to digest"):
        read_manifest(folder, digest="e" * 64)
    assert find_manifest(folder, digest="e" * 64) is None


@pytest.mark.parametrize("left", [b"", b"{", b"\x00" * 400, b"null", b"\xff\xfe"])
def test_what_a_power_failure_left_of_a_manifest_is_none(tmp_path: Path, left: bytes) -> None:
    folder = Location.open(tmp_path)
    write_manifest(folder, kind="test", digest="d" * 64, spec={}, files={})
    (folder / "manifest.json").write_bytes(left)
    assert find_manifest(folder) is None
    with pytest.raises(DamageError, match="is not a manifest"):
        read_manifest(folder)
    assert not is_whole(folder)


def write_layers(folder: Location, codes: np.ndarray, parts: list[np.ndarray], dtype: str, **facts: object) -> None:
    """An activations artifact of one layer, cut into parts of any rows in any order."""
    files = {}
    for shard, ids in enumerate(parts):
        schema = schemas.activations(codes.shape[1], codes.dtype.itemsize)
        table = pa.table(
            {
                "row_id": ids,
                "seq_id": ids,
                "position": pa.nulls(len(ids), pa.int32()),
                "activation": pack_rows(codes[ids]),
            }
        )
        name = f"{layer_folder(4)}/{part_name(shard)}"
        files[name] = write_table(folder / name, table, schema, use_dictionary=False, row_group_rows=7)
    if dtype == "uint8":
        n = codes.shape[1]
        ranges = pa.table(
            {
                "layer": [4] * n,
                "neuron": np.arange(n)[::-1],
                "offset": np.arange(n, dtype=np.float32)[::-1],
                "scale": np.full(n, 0.5, np.float32),
                "origin": np.full(n, 250, np.uint8),
                "clipped_fraction": np.zeros(n, np.float32),
                "max_error": np.zeros(n, np.float32),
            }
        )
        files["quantisation.parquet"] = write_table(folder / "quantisation.parquet", ranges, schemas.QUANTISATION)
    known = {"layers": [4], "n_rows": len(codes), "n_neurons": codes.shape[1], "storage_dtype": dtype, **facts}
    write_manifest(folder, kind="activations", digest="d" * 64, spec={}, files=files, facts=known)


@pytest.mark.parametrize(("dtype", "kind"), [("uint8", np.uint8), ("float16", "<f2"), ("float32", "<f4")])
def test_layers_come_back_in_order_of_row_id(tmp_path: Path, dtype: str, kind: str) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (50, 6)).astype(kind)
    order = rng.permutation(50)
    parts = [np.sort(order[:20]), np.arange(0), np.sort(order[20:])]
    write_layers(Location.open(tmp_path), codes, parts, dtype)
    layer = read_layer(Location.open(tmp_path), 4)
    if dtype == "uint8":
        levels = (codes.astype(int) + 250) % 256
        np.testing.assert_array_equal(layer.codes, levels)
        np.testing.assert_array_equal(layer.values(slice(3, 9)), levels[3:9] * 0.5 + np.arange(6))
    else:
        np.testing.assert_array_equal(layer.values(np.array([4, 1])), codes[[4, 1]])
    assert [matrix.layer for matrix in iterate_layers(Location.open(tmp_path))] == [4]
    with pytest.raises(ArtifactError, match="layer 2 was asked for"):
        read_layer(Location.open(tmp_path), 2)


def test_missing_rows_are_noticed(tmp_path: Path) -> None:
    codes = np.zeros((10, 2), np.float32)
    write_layers(Location.open(tmp_path), codes, [np.arange(7)], "float32")
    with pytest.raises(ArtifactError, match="3 of 10 rows are missing"):
        read_layer(Location.open(tmp_path), 4)


def test_packing_and_unpacking_copy_nothing() -> None:
    codes = np.arange(60, dtype="<f2").reshape(10, 6)
    column = pack_rows(codes)
    assert column.type == pa.binary(12)
    assert np.shares_memory(unpack_rows(column, codes.dtype), codes)
    np.testing.assert_array_equal(unpack_rows(column.slice(3, 4), codes.dtype), codes[3:7])


def test_of_many_that_decide_at_once_one_decides_for_all(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    for round_ in range(20):
        place = Location.open(tmp_path / "choices" / f"{round_}.txt")
        with ThreadPoolExecutor(8) as pool:
            words = list(pool.map(lambda i, place=place: place.keep_first(lambda: f"word {i}"), range(8)))
        assert len(set(words)) == 1
    assert not list((tmp_path / "choices").glob(".tmp-*"))
