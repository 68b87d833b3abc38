"""The published database beside the artifacts, for machines that share a data folder and no disk.

Whoever publishes on an object store uploads a copy, and then names it in ``published/latest.json``; readers fetch what is named
there, once. Where the data folder is local the published database is in it already, and nothing is copied.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from sparse_probing.errors import ArtifactError, DamageError
from sparse_probing.settings import Settings
from sparse_probing.store.filesystem import Location

FOLDER = "published"
POINTER_NAME = "latest.json"
# A fetched copy, and what the pointer said of it.
FETCHED_NAME = "fetched.duckdb"
_RECORD_NAME = "fetched.json"
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Pointer:
    """Which uploaded database is the latest.

    Attributes
    ----------
    name:
        Of the file under ``published/``.
    sha256, size_bytes:
        Of its bytes.
    """

    name: str
    sha256: str
    size_bytes: int


def upload(snapshot: Path, root: Location, local_dir: Path) -> Pointer | None:
    """Copy a published database to the data folder and point to it; None, and nothing is done, where that is local.

    Raises
    ------
    ArtifactError
        If it cannot be written.
    """
    if root.is_local:
        return None
    digest = _digest(snapshot)
    pointer = Pointer(f"{digest[:16]}.duckdb", digest, snapshot.stat().st_size)
    before = find_pointer(root)
    if before == pointer:
        return pointer
    folder = root / FOLDER
    try:
        _copy(pafs.LocalFileSystem(), str(snapshot), root.filesystem, (folder / pointer.name).path)
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {folder / pointer.name}: {error}.", remedy="Check the object store, then publish again."
        ) from error
    (folder / POINTER_NAME).write_bytes(json.dumps(asdict(pointer)).encode())
    # This machine need not fetch what it has.
    _keep_record(local_dir, pointer, snapshot)
    # Who began to fetch the last one may end; those before it go.
    kept = {POINTER_NAME, pointer.name, before.name if before is not None else pointer.name}
    for old in folder.children():
        if old.name not in kept:
            old.delete()
    return pointer


def find_pointer(root: Location) -> Pointer | None:
    """Which uploaded database is the latest; None if there is none that can be read."""
    location = root / FOLDER / POINTER_NAME
    # The one file that others replace.
    location.forget_kept()
    try:
        found = json.loads(location.read_bytes())
        name = str(found["name"])
        return Pointer(name, str(found["sha256"]), int(found["size_bytes"])) if "/" not in name else None
    except (DamageError, ValueError, KeyError, TypeError):
        return None


def latest_snapshot(settings: Settings, root: Location | None = None) -> Path:
    """Path of the newest published database: this machine's own, or on an object store what any machine published last.

    Parameters
    ----------
    root:
        The data folder, opened; `settings.data_uri` if absent.

    Raises
    ------
    ArtifactError
        If the copy that was fetched is not what was uploaded.
    """
    if "://" not in settings.data_uri:
        return settings.snapshot_path
    root = root or Location.open(settings.data_uri, patient=False)
    try:
        pointer = find_pointer(root)
    except OSError:
        # The store is away: what is on this machine still answers.
        pointer = None
    if pointer is None:
        return settings.snapshot_path
    known = _known_copy(settings.local_dir, pointer)
    if known is not None:
        return known
    return _fetch(root, pointer, settings.local_dir)


def _fetch(root: Location, pointer: Pointer, local_dir: Path) -> Path:
    local_dir.mkdir(parents=True, exist_ok=True)
    temporary = local_dir / f".tmp-{uuid.uuid4().hex[:8]}"
    try:
        _copy(root.filesystem, (root / FOLDER / pointer.name).path, pafs.LocalFileSystem(), str(temporary))
        if _digest(temporary) != pointer.sha256:
            raise ArtifactError(
                f"The published database {pointer.name} is not what was uploaded.",
                remedy="Publish again: sparse-probing publish --profile PROFILE",
            )
        os.replace(temporary, local_dir / FETCHED_NAME)
    finally:
        temporary.unlink(missing_ok=True)
    _keep_record(local_dir, pointer, local_dir / FETCHED_NAME)
    return local_dir / FETCHED_NAME


def _known_copy(local_dir: Path, pointer: Pointer) -> Path | None:
    """A file of this machine that is what the pointer names, as it was when it was fetched or uploaded."""
    try:
        record = json.loads((local_dir / _RECORD_NAME).read_bytes())
        copy = Path(record["path"])
        found = copy.stat()
    except (OSError, ValueError, KeyError):
        return None
    same = record == _record(pointer, copy, found.st_size, found.st_mtime_ns)
    return copy if same else None


def _keep_record(local_dir: Path, pointer: Pointer, copy: Path) -> None:
    found = copy.stat()
    record = _record(pointer, copy, found.st_size, found.st_mtime_ns)
    (Location.open(local_dir) / _RECORD_NAME).write_bytes(json.dumps(record).encode())


def _record(pointer: Pointer, copy: Path, size: int, modified_ns: int) -> dict[str, object]:
    return {"sha256": pointer.sha256, "path": str(copy), "size_bytes": size, "modified_ns": modified_ns}


def _copy(source: pafs.FileSystem, path: str, target: pafs.FileSystem, to: str) -> None:
    with source.open_input_stream(path) as reader, target.open_output_stream(to) as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            writer.write(chunk)


def _digest(path: Path) -> str:
    hasher = hashlib.sha256()
    with pa.OSFile(str(path)) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()
