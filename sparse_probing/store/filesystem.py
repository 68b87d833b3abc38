"""Locations: paths on any filesystem that pyarrow opens, with atomic writes.

A file is either absent or whole. On a disk it is written under a temporary name and renamed; one that was written durably
survives a power failure: its bytes, and then its name, are on the disk before the call returns. An object store shows an
object once all of it has arrived, so there it is written at once, without folders or temporary names (`object_stores`).
This module handles bytes and names only.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from sparse_probing.credentials import shown_uri
from sparse_probing.errors import ArtifactError, DamageError, InputError
from sparse_probing.store import object_stores

TEMPORARY_PREFIX = ".tmp-"


@dataclass(frozen=True)
class Location:
    """A file or folder on a pyarrow filesystem."""

    filesystem: pafs.FileSystem
    path: str

    @classmethod
    def open(cls, uri: str | os.PathLike[str], *, patient: bool = True) -> Location:
        """Open a local path or a URI (``file``, ``s3``, ``gs``, …).

        Parameters
        ----------
        patient:
            Repeat requests that an object store refuses or does not answer for some minutes, not seconds.

        Raises
        ------
        InputError
            If pyarrow has no filesystem for the URI.
        """
        text = os.fspath(uri)
        if "://" not in text:
            return cls(pafs.LocalFileSystem(), str(Path(text).expanduser().resolve()))
        try:
            filesystem, path = object_stores.opened(text, patient=patient)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            # Not from the error: its text, which may hold credentials, would be in every log.
            raise InputError(
                f"Cannot open {shown_uri(text)!r}: {str(error).replace(text, shown_uri(text))}.",
                remedy="Use a local folder, or an s3:// or gs:// URI; in a key, write %2F for / and %2B for +.",
            ) from None
        return cls(filesystem, path.rstrip("/"))

    def __truediv__(self, name: str) -> Location:
        return Location(self.filesystem, f"{self.path}/{name}")

    def __str__(self) -> str:
        return self.path

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def is_local(self) -> bool:
        """Whether this is on the local filesystem."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    @property
    def is_object_store(self) -> bool:
        """Whether this is on a store without folders, where a file appears in one step."""
        return self.filesystem.type_name in object_stores.TYPES

    @property
    def _kept(self) -> object_stores.KeptObjects | None:
        return self.filesystem.kept if isinstance(self.filesystem, object_stores.S3Store) else None

    def exists(self) -> bool:
        """Whether a file or folder is there."""
        return bool(self.filesystem.get_file_info(self.path).type != pafs.FileType.NotFound)

    def size_bytes(self) -> int:
        """Size of the file in bytes."""
        return int(self.filesystem.get_file_info(self.path).size)

    def modified_at(self) -> datetime:
        """When the file was last written; now if there is none."""
        found = self.filesystem.get_file_info(self.path).mtime
        return found if found is not None else datetime.now(UTC)

    def children(self) -> Iterator[Location]:
        """Files and folders directly inside, sorted by name; temporary files are left out."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        for info in sorted(self.filesystem.get_file_info(selector), key=lambda entry: str(entry.path)):
            child = Location(self.filesystem, info.path)
            if not child.name.startswith(TEMPORARY_PREFIX):
                yield child

    def inside(self) -> dict[str, pafs.FileInfo]:
        """Every file below this folder, by its path relative to it; empty where there is no such folder."""
        selector = pafs.FileSelector(self.path, allow_not_found=True, recursive=True)
        found = self.filesystem.get_file_info(selector)
        files = {info.path[len(self.path) + 1 :]: info for info in found if info.type == pafs.FileType.File}
        if self._kept is not None:
            self._kept.compare(self.path, files)
        return files

    def find_bytes(self) -> bytes | None:
        """The whole file; None if it is not there. Of S3, a small object that this process read or wrote is not read again."""
        kept = self._kept.get(self.path) if self._kept is not None else None
        if kept is not None:
            return kept
        try:
            with self.filesystem.open_input_file(self.path) as stream:
                data = bytes(stream.read())
        except FileNotFoundError:
            return None
        if self._kept is not None:
            self._kept.keep(self.path, data)
        return data

    def read_bytes(self) -> bytes:
        """The whole file.

        Raises
        ------
        DamageError
            If it is not there.
        """
        data = self.find_bytes()
        if data is None:
            raise DamageError(f"{self.path} is missing.", path=self.path)
        return data

    def write_bytes(self, data: bytes | pa.Buffer, *, durable: bool = True) -> None:
        """Write the file atomically, over whatever was there.

        Parameters
        ----------
        durable:
            Return only when it would survive a power failure, on a local disk. If not, `to_disk` does that later.

        Raises
        ------
        ArtifactError
            If it cannot be written; what was there is as it was.
        """
        if self.is_object_store:
            self.forget_kept()
            try:
                with self.filesystem.open_output_stream(self.path) as stream:
                    stream.write(data)
            except OSError as error:
                raise self._unwritable(error) from error
            if self._kept is not None:
                self._kept.keep(self.path, data)
            return
        parent, _, name = self.path.rpartition("/")
        temporary = f"{parent}/{TEMPORARY_PREFIX}{name}-{uuid.uuid4().hex[:8]}"
        try:
            if self.is_local:
                make_folder(Path(parent))
            else:
                self.filesystem.create_dir(parent, recursive=True)
            with self.filesystem.open_output_stream(temporary) as stream:
                stream.write(data)
            if self.is_local:
                if durable:
                    sync(Path(temporary))
                os.replace(temporary, self.path)
                if durable:
                    sync(Path(parent))
            else:
                self.filesystem.move(temporary, self.path)
        except OSError as error:
            if self.filesystem.get_file_info(temporary).type != pafs.FileType.NotFound:
                self.filesystem.delete_file(temporary)
            raise self._unwritable(error) from error

    def to_disk(self) -> None:
        """Bring the bytes of a file that was not written durably to the disk, or the names in a folder, if it is local.

        Raises
        ------
        ArtifactError
            If the disk has no room for them, or the file is gone.
        """
        if self.is_local:
            try:
                sync(Path(self.path))
            except OSError as error:
                raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> ArtifactError:
        return ArtifactError(
            f"Cannot write {self.path}: {error}.",
            remedy="Free space or choose another data folder, then run again.",
        )

    def keep_first(self, decide: Callable[[], str]) -> str:
        """The text in this file; where there is no such file, what `decide` says is written to it first.

        On a local filesystem exactly one of several processes that come at once decides for all. An object store
        without exclusive creation keeps the text that was written last, if several processes write at the same moment.

        Raises
        ------
        ArtifactError
            If the file cannot be written.
        """
        kept = self.find_bytes()
        if kept is not None:
            return kept.decode()
        text = decide()
        if not self.is_local:
            self.write_bytes(text.encode())
            self.forget_kept()
            return self.read_bytes().decode()
        path = Path(self.path)
        temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}")
        try:
            make_folder(path.parent)
            temporary.write_text(text, encoding="utf-8")
            sync(temporary)
            # Renaming would replace what another process wrote meanwhile; linking does not.
            try:
                os.link(temporary, path)
            except FileExistsError:
                pass
            except OSError:  # a filesystem without links
                if not path.exists():
                    temporary.replace(path)
            sync(path.parent)
        except OSError as error:
            raise ArtifactError(
                f"Cannot write {self.path}: {error}.", remedy="Choose a data folder that you may write to."
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        return self.read_bytes().decode()

    def forget_kept(self) -> None:
        """Read this file, or those in this folder, from the store the next time."""
        if self._kept is not None:
            self._kept.forget(self.path)

    def delete(self) -> None:
        """Remove the file, or the folder with all it holds; nothing happens if it is not there.

        pyarrow leaves an empty object on S3 that stands for the folder above.
        """
        self.forget_kept()
        kind = self.filesystem.get_file_info(self.path).type
        if kind == pafs.FileType.Directory:
            self.filesystem.delete_dir(self.path)
        elif kind == pafs.FileType.File:
            self.filesystem.delete_file(self.path)


def sync(path: Path) -> None:
    """Bring a local file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a local folder, with those above it, so that its name survives a power failure."""
    if path.is_dir():
        return
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)
