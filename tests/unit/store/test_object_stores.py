"""Locations on an S3 server: how many requests each step takes, what a process keeps, and a server that is away for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa
import pytest

from sparse_probing.errors import ArtifactError, DamageError
from sparse_probing.store import object_stores
from sparse_probing.store.filesystem import Location
from sparse_probing.store.making import mend, set_aside_damage
from sparse_probing.store.manifests import find_manifest, read_made, read_manifest, write_manifest
from sparse_probing.store.parquet import read_table, write_table
from sparse_probing.store.soundness import artifacts, find_damage, is_whole
from tests.object_store import ObjectStore, Way

TABLE = pa.table({"x": pa.array(range(10), pa.int64())})


@pytest.fixture
def bucket(object_store: ObjectStore, request: pytest.FixtureRequest) -> str:
    name = "bucket-" + "".join(letter if letter.isalnum() else "-" for letter in request.node.name[5:45].lower()) + "x"
    object_store.make_bucket(name)
    return name


@pytest.fixture
def root(object_store: ObjectStore, bucket: str) -> Location:
    return Location.open(object_store.uri(f"{bucket}/a/prefix"))


@pytest.fixture
def elsewhere(object_store: ObjectStore, bucket: str) -> Iterator[Location]:
    """The same folder as another process sees it."""
    object_stores.opened.cache_clear()
    yield Location.open(object_store.uri(f"{bucket}/a/prefix"))
    object_stores.opened.cache_clear()


@pytest.fixture
def asked(object_store: ObjectStore) -> Callable[[], list[str]]:
    """Methods of the requests since the last call."""
    n_before = len(object_store.requests())

    def since() -> list[str]:
        nonlocal n_before
        requests = object_store.requests()[n_before:]
        n_before += len(requests)
        return [request.split()[0] for request in requests]

    return since


def write_artifact(folder: Location) -> None:
    files = {name: write_table(folder / name, TABLE, TABLE.schema) for name in ("one.parquet", "layer=00/two.parquet")}
    write_manifest(folder, kind="test", digest="ab", spec={}, files=files)


def test_a_write_is_one_request_and_leaves_no_folder(
    root: Location, object_store: ObjectStore, bucket: str, asked: Callable[[], list[str]]
) -> None:
    (root / "deep" / "er" / "file.txt").write_bytes(b"hello")
    (root / "deep" / "er" / "empty.txt").write_bytes(b"")
    assert asked() == ["PUT", "PUT"]
    assert object_store.objects(bucket) == {"a/prefix/deep/er/file.txt": b"hello", "a/prefix/deep/er/empty.txt": b""}
    (root / "large.bin").write_bytes(pa.py_buffer(b"x" * 12_000_000))
    assert (root / "large.bin").read_bytes() == b"x" * 12_000_000
    assert [child.name for child in root.children()] == ["deep", "large.bin"]
    assert not any(request.split("?")[0].endswith("/") for request in object_store.requests() if bucket in request)


def test_what_this_process_wrote_or_read_is_not_fetched_again(
    root: Location, elsewhere: Location, asked: Callable[[], list[str]]
) -> None:
    (root / "file.txt").write_bytes(b"hello")
    asked()
    assert (root / "file.txt").read_bytes() == b"hello"
    assert asked() == []
    assert (elsewhere / "file.txt").read_bytes() == b"hello"
    assert asked() == ["HEAD", "GET"]
    assert (elsewhere / "file.txt").read_bytes() == b"hello"
    assert asked() == []
    with pytest.raises(DamageError, match=r"none\.txt is missing"):
        (root / "none.txt").read_bytes()
    assert (root / "none.txt").find_bytes() is None
    assert asked() == ["HEAD", "HEAD"]
    # Another process writes other bytes, or deletes: a listing shows it.
    (elsewhere / "file.txt").write_bytes(b"hello again")
    assert root.inside().keys() == {"file.txt"}
    assert (root / "file.txt").read_bytes() == b"hello again"
    (elsewhere / "file.txt").delete()
    assert root.inside() == {}
    assert (root / "file.txt").find_bytes() is None


def test_kept_objects_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_stores, "KEPT_BYTES", 100)
    monkeypatch.setattr(object_stores, "KEPT_OBJECT_BYTES", 40)
    kept = object_stores.KeptObjects()
    for name in ("a", "b", "c"):
        kept.keep(f"folder/{name}", name.encode() * 40)
    assert [kept.get(f"folder/{name}") is None for name in ("a", "b", "c")] == [True, False, False]
    kept.keep("folder/b", b"b" * 41)
    assert kept.get("folder/b") is None
    kept.forget("folder")
    assert kept.get("folder/c") is None


def test_an_artifact_is_looked_at_in_a_few_requests(
    root: Location, elsewhere: Location, asked: Callable[[], list[str]]
) -> None:
    folder = root / "datasets" / "one"
    assert find_manifest(folder) is None
    assert find_damage(folder) is None
    assert not is_whole(folder)
    assert asked() == ["HEAD", "GET", "GET"]
    write_artifact(folder)
    assert asked() == ["PUT"] * 4
    seen = elsewhere / "datasets" / "one"
    assert is_whole(seen, digest="ab")
    assert asked() == ["GET", "HEAD", "GET"]
    manifest = read_manifest(seen)
    assert read_table(seen / "one.parquet", entry=manifest.files["one.parquet"]).equals(TABLE)
    assert asked() == ["HEAD", "GET"]
    assert read_made(seen).manifest_sha256 is not None
    assert [found.path for found in artifacts(elsewhere)] == [seen.path]


@pytest.mark.parametrize("damage", ["deleted", "cut off", "flipped", "manifest"])
def test_damage_is_found_and_set_aside(
    root: Location, elsewhere: Location, damage: str, object_store: ObjectStore, bucket: str
) -> None:
    folder, seen = root / "datasets" / "one", elsewhere / "datasets" / "one"
    write_artifact(folder)
    file = folder / "layer=00" / "two.parquet"
    data = file.read_bytes()
    assert is_whole(seen)
    seen_bytes = (seen / "layer=00" / "two.parquet").read_bytes()
    if damage == "deleted":
        file.delete()
    elif damage == "cut off":
        file.write_bytes(data[:-1])
    elif damage == "flipped":
        file.write_bytes(bytes([data[0] ^ 8]) + data[1:])
    else:
        (folder / "manifest.json").write_bytes(b"{}")
    assert find_damage(seen, every_byte=True) is not None
    assert seen_bytes == data
    said: list[str] = []
    if damage == "flipped":
        set_aside_damage(elsewhere, f"{seen.path}/layer=00/two.parquet", say=said.append)
    else:
        assert mend(elsewhere, [seen], say=said.append) == ["datasets/one"]
    assert "was moved to" in said[0]
    assert find_manifest(seen) is None
    aside = [key for key in object_store.objects(bucket) if key.startswith("a/prefix/set_aside/")]
    assert len(aside) == 1
    write_artifact(seen)
    root.inside()
    assert is_whole(folder)


def test_the_first_choice_stays(root: Location, elsewhere: Location, asked: Callable[[], list[str]]) -> None:
    assert (root / "choices" / "dtype.txt").keep_first(lambda: "float32") == "float32"
    assert (elsewhere / "choices" / "dtype.txt").keep_first(lambda: "bfloat16") == "float32"
    assert asked() == ["HEAD", "PUT", "HEAD", "GET", "HEAD", "GET"]


def test_a_folder_is_deleted_with_all_in_it(root: Location) -> None:
    for name in ("a.txt", "deep/b.txt"):
        (root / "folder" / name).write_bytes(b"x")
    (root / "folder" / "a.txt").delete()
    assert [child.name for child in (root / "folder").children()] == ["deep"]
    (root / "folder").delete()
    (root / "folder").delete()
    assert (root / "folder" / "deep" / "b.txt").find_bytes() is None
    assert not (root / "folder").exists()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", b""])
def test_a_store_that_is_away_for_a_while_is_waited_for(object_store: ObjectStore, bucket: str, answer: bytes) -> None:
    way = Way(object_store.port)
    try:
        root = Location.open(object_store.uri(f"{bucket}/p", port=way.port))
        (root / "before.txt").write_bytes(b"1")
        way.refuse(7, answer=answer)
        (root / "during.txt").write_bytes(b"2")
        assert way.n_left == 0
        way.refuse(7, answer=answer)
        assert root.inside().keys() == {"before.txt", "during.txt"}
        assert way.n_left == 0
        # What only asks whether the store can be reached gives up sooner.
        impatient = Location.open(object_store.uri(f"{bucket}/p", port=way.port), patient=False)
        way.refuse(1000, answer=answer)
        with pytest.raises(OSError, match="AWS Error"):
            impatient.exists()
        with pytest.raises(ArtifactError, match="Cannot write"):
            (impatient / "never.txt").write_bytes(b"3")
    finally:
        way.close()


def test_the_waits_add_up_to_more_than_a_minute() -> None:
    assert sum(0.025 * 2**attempt for attempt in range(1, object_stores.PATIENT_ATTEMPTS)) > 100
