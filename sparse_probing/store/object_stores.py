"""Object stores: how pyarrow's filesystem of one is opened so that it takes few requests, and waits for a store that is away.

An object store has no folders: a key with slashes is a file, and a write shows the whole object or nothing. Reading and writing
are in `filesystem`; here is also what a process keeps of the small objects that it has read or written.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

# `FileSystem.type_name` of stores where an object appears in one step, and no folder has to be made for it.
TYPES = frozenset({"s3", "gcs"})
# Each wait is twice the one before, from 50 ms: 102 s in all, and 0.8 s.
PATIENT_ATTEMPTS, IMPATIENT_ATTEMPTS = 12, 5
KEPT_BYTES, KEPT_OBJECT_BYTES = 64 << 20, 4 << 20


class KeptObjects:
    """Small objects as this process read or wrote them last, the latest used within 64 MiB.

    What a listing shows to be gone, of another size or written to since is forgotten: a process that shares the store wrote
    there. Artifacts are named after digests, so what is not listed again has the same bytes.
    """

    def __init__(self) -> None:
        self._objects: OrderedDict[str, tuple[bytes, int | None]] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()

    def get(self, path: str) -> bytes | None:
        """What is kept of an object; None if nothing is."""
        with self._lock:
            if path not in self._objects:
                return None
            self._objects.move_to_end(path)
            return self._objects[path][0]

    def keep(self, path: str, data: bytes | pa.Buffer) -> None:
        """Keep an object as it was read or written; one that is too large is not kept, nor what it was before."""
        with self._lock:
            self._forget(path)
            if len(data) > KEPT_OBJECT_BYTES:
                return
            self._objects[path] = bytes(data), None
            self._n_bytes += len(data)
            while self._n_bytes > KEPT_BYTES:
                self._forget(next(iter(self._objects)))

    def forget(self, path: str) -> None:
        """Forget an object, or a folder with all in it."""
        with self._lock:
            for one in [one for one in self._objects if one == path or one.startswith(f"{path}/")]:
                self._forget(one)

    def compare(self, folder: str, listed: Mapping[str, pafs.FileInfo]) -> None:
        """Forget what a listing of everything below a folder does not show as it is kept.

        Parameters
        ----------
        listed:
            By the path relative to the folder.
        """
        with self._lock:
            for path in [path for path in self._objects if path.startswith(f"{folder}/")]:
                data, modified = self._objects[path]
                info = listed.get(path[len(folder) + 1 :])
                if info is None or info.size != len(data) or modified not in (None, info.mtime_ns):
                    self._forget(path)
                else:
                    self._objects[path] = data, info.mtime_ns

    def _forget(self, path: str) -> None:
        data, _ = self._objects.pop(path, (b"", None))
        self._n_bytes -= len(data)


class S3Store(pafs.S3FileSystem):  # type: ignore[misc]
    """S3 with what this process keeps of its objects."""

    kept: KeptObjects


@lru_cache(maxsize=8)
def opened(uri: str, *, patient: bool) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a URI and the path in it; for S3 one that writes a small file in one request and repeats what is refused.

    One filesystem for each URI in a process.

    Parameters
    ----------
    patient:
        Repeat for 102 s, not 0.8 s.

    Raises
    ------
    pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, OSError
        If pyarrow has no filesystem for it.
    """
    filesystem, path = pafs.FileSystem.from_uri(uri)
    if isinstance(filesystem, pafs.S3FileSystem):
        # A URI has no words for these options; pickling knows all others, credentials among them.
        options: dict[str, Any] = filesystem.__reduce__()[1][0]
        # pyarrow's standard strategy has a hundred retries for the lifetime of a filesystem; this one that many for each request.
        strategy = pafs.AwsDefaultS3RetryStrategy(max_attempts=PATIENT_ATTEMPTS if patient else IMPATIENT_ATTEMPTS)
        filesystem = S3Store(**{**options, "allow_delayed_open": True, "retry_strategy": strategy})
        filesystem.kept = KeptObjects()
    return filesystem, path
