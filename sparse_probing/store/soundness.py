"""Damage to finished artifacts: how it is found, and how a damaged artifact is moved aside.

An artifact is whole when its manifest can be read and every file that it names is there and unchanged. Nothing is made
again or deleted here: a damaged artifact moves to ``set_aside/``, and the next process that needs it makes it again.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    if not (folder / MANIFEST_NAME).exists():
        return None
    try:
        manifest = read_manifest(folder, digest=digest)
        _check_files(folder, manifest, every_byte=every_byte)
    except DamageError as error:
        return error.message
    return None


def is_whole(folder: Location, *, digest: str | None = None) -> bool:
    """Whether an artifact is finished and nothing is wrong with it, as `find_damage` sees it without reading all bytes."""
    return (folder / MANIFEST_NAME).exists() and find_damage(folder, digest=digest) is None


def _check_files(folder: Location, manifest: Manifest, *, every_byte: bool) -> None:
    names = list(manifest.files)
    paths = [f"{folder.path}/{name}" for name in (MANIFEST_NAME, *names)]
    finished, *infos = folder.filesystem.get_file_info(paths)
    for name, info in zip(names, infos, strict=True):
        entry, location = manifest.files[name], folder / name
        if info.type != pafs.FileType.File:
            raise DamageError(f"{location} is missing.", path=location.path)
        if info.size != entry.size_bytes:
            raise DamageError(
                f"{location} is damaged: {info.size} bytes, expected {entry.size_bytes}.", path=location.path
            )
        if every_byte or info.mtime_ns > finished.mtime_ns:
            check_bytes(location, location.read_bytes(), entry)


def artifact_of(root: Location, path: str) -> Location | None:
    """The finished artifact that a file belongs to; None if it lies in none."""
    folder = path
    while folder.startswith(f"{root.path}/") and folder != root.path:
        folder = folder.rsplit("/", 1)[0]
        if (Location(root.filesystem, folder) / MANIFEST_NAME).exists():
            return Location(root.filesystem, folder)
    return None


def artifacts(root: Location) -> Iterator[Location]:
    """Every finished artifact of a data folder, and every part of a run that is not finished."""
    for place, depth in _PLACES:
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
    folder.filesystem.create_dir((root / SET_ASIDE).path, recursive=True)
    if folder.is_local:
        folder.filesystem.move(folder.path, to.path)
    else:
        folder.filesystem.move((folder / MANIFEST_NAME).path, f"{to.path}.json")
    return to
