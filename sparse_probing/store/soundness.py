"""Damage to finished artifacts: how it is found, and how a damaged artifact is moved aside.

An artifact is whole when its manifest can be read and every file that it names is there and unchanged. Nothing is made
again or deleted here: a damaged artifact moves to ``set_aside/``, and the next process that needs it makes it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import pyarrow.fs as pafs

from sparse_probing.errors import DamageError
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import MANIFEST_NAME, Manifest, check_bytes, read_manifest

SET_ASIDE = "set_aside"
# Where artifacts lie, by how many folders below the data folder.
_PLACES = (("datasets", 1), ("activations", 2), ("results", 2), ("results/_running", 2))


def find_damage(folder: Location, *, digest: str | None = None, every_byte: bool = False) -> str | None:
    """The first file of a finished artifact that is not as it was written, in words; None if there is none, or it is not finished.

    Every file's presence and size are compared, and the bytes of those that were written to after the manifest.

    Parameters
    ----------
    digest:
        What the artifact has to be of; whatever it says if None.
    every_byte:
        Read all files and compare their digests, as a bit that a disk lost changes no time.
    """
    try:
        _find_whole(folder, digest=digest, every_byte=every_byte)
    except DamageError as error:
        return error.message
    return None


def is_whole(folder: Location, *, digest: str | None = None) -> bool:
    """Whether an artifact is finished and nothing is wrong with it, as `find_damage` sees it without reading all bytes."""
    try:
        return _find_whole(folder, digest=digest) is not None
    except DamageError:
        return False


def _find_whole(folder: Location, *, digest: str | None = None, every_byte: bool = False) -> Manifest | None:
    """The manifest of a finished artifact; None if it is not finished.

    Raises
    ------
    DamageError
        If the manifest or a file is not as it was written.
    """
    # An object store answers for a whole folder at once, and as slowly for each file.
    listed = folder.inside() if folder.is_object_store else None
    if MANIFEST_NAME not in listed if listed is not None else not (folder / MANIFEST_NAME).exists():
        return None
    manifest = read_manifest(folder, digest=digest)
    _check_files(folder, manifest, listed, every_byte=every_byte)
    return manifest


def _check_files(
    folder: Location, manifest: Manifest, listed: Mapping[str, pafs.FileInfo] | None, *, every_byte: bool
) -> None:
    names = list(manifest.files)
    if listed is None:
        paths = [f"{folder.path}/{name}" for name in (MANIFEST_NAME, *names)]
        found = folder.filesystem.get_file_info(paths)
        listed = dict(zip((MANIFEST_NAME, *names), found, strict=True))
    finished = listed[MANIFEST_NAME]
    for name in names:
        entry, location, info = manifest.files[name], folder / name, listed.get(name)
        if info is None or info.type != pafs.FileType.File:
            raise DamageError(f"{location} is missing.", path=location.path)
        if info.size != entry.size_bytes:
            raise DamageError(
                f"{location} is damaged: {info.size} bytes, expected {entry.size_bytes}.", path=location.path
            )
        if every_byte or info.mtime_ns > finished.mtime_ns:
            location.forget_kept()
            check_bytes(location, location.read_bytes(), entry)


def artifact_of(root: Location, path: str) -> Location | None:
    """The finished artifact that a file belongs to; None if it lies in none."""
    folder = path
    Location(root.filesystem, path).forget_kept()
    while folder.startswith(f"{root.path}/") and folder != root.path:
        folder = folder.rsplit("/", 1)[0]
        if (Location(root.filesystem, folder) / MANIFEST_NAME).exists():
            return Location(root.filesystem, folder)
    return None


def artifacts(root: Location) -> Iterator[Location]:
    """Every finished artifact of a data folder, and every part of a run that is not finished."""
    for place, depth in _PLACES:
        if root.is_object_store:
            found = [path.split("/") for path in sorted((root / place).inside())]
            manifests = [path for path in found if len(path) == depth + 1 and path[-1] == MANIFEST_NAME]
            yield from (root / "/".join([place, *path[:-1]]) for path in manifests)
            continue
        folders = [root]
        for name in place.split("/"):
            folders = [folder / name for folder in folders]
        for _ in range(depth):
            folders = [child for folder in folders for child in folder.children()]
        yield from (folder for folder in folders if (folder / MANIFEST_NAME).exists())


def set_aside(root: Location, folder: Location) -> Location:
    """Move an artifact to ``set_aside/`` of its data folder; returns where it lies now.

    An object store has no folders to rename: there the manifest alone moves, which makes the artifact unfinished.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    name = folder.path.removeprefix(f"{root.path}/").replace("/", "--")
    to = root / SET_ASIDE / f"{stamp}-{name}"
    if folder.is_local:
        folder.filesystem.create_dir((root / SET_ASIDE).path, recursive=True)
        folder.filesystem.move(folder.path, to.path)
    else:
        if not folder.is_object_store:
            folder.filesystem.create_dir((root / SET_ASIDE).path, recursive=True)
        folder.filesystem.move((folder / MANIFEST_NAME).path, f"{to.path}.json")
        folder.forget_kept()
    return to
