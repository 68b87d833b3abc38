"""Locks: only one process at a time makes or moves an artifact.

The operating system holds the lock on a file and releases it when the holding process ends, however that
happens. Object stores have no such locks; there, two that make the same artifact write the same bytes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sparse_probing.errors import ArtifactError
from sparse_probing.store.filesystem import Location

LOCKS = "_locks"
FIRST_WORD_SECONDS = 3.0
NEXT_WORD_SECONDS = 30.0
_POLL_SECONDS = 0.2

Say = Callable[[str], None]


@contextmanager
def owned(root: Location, folder: Location, *, say: Say) -> Iterator[None]:
    """Hold the lock of an artifact while it is made or moved; waits for the process that holds it, and says so now and then."""
    if not root.is_local:
        yield
        return
    name = folder.path.removeprefix(f"{root.path}/").replace("/", "--")
    with held(Path(root.path) / LOCKS / f"{name}.lock", what=folder.name, say=say):
        yield


@contextmanager
def held(path: Path, *, what: str, say: Say) -> Iterator[None]:
    """Hold a lock file; waits for its holder to end or let go.

    Parameters
    ----------
    what:
        Name of the thing that is locked, for the line that says what is waited for.
    say:
        Told after three seconds, and every thirty, who holds it.

    Raises
    ------
    ArtifactError
        If the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {path}: {error}.", remedy="Choose a data folder that you may write to."
        ) from error
    try:
        _wait(descriptor, what, say)
        _sign(descriptor)
        yield
    finally:
        # Closing lets go. The file stays: removing it would give two holders a lock each.
        os.close(descriptor)


def _wait(descriptor: int, what: str, say: Say) -> None:
    began = time.monotonic()
    word = began + FIRST_WORD_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            now = time.monotonic()
            if now >= word:
                say(f"Waiting for {what} ({now - began:.0f} s so far): {_holder(descriptor)} is at work on it.")
                word = now + NEXT_WORD_SECONDS
            time.sleep(_POLL_SECONDS)
        except OSError as error:
            # A network folder without locks: equal bytes make two writers harmless, if not cheap.
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                return
            raise


def _sign(descriptor: int) -> None:
    word = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": f"{datetime.now(UTC):%H:%M:%S} UTC",
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(word).encode(), 0)


def _holder(descriptor: int) -> str:
    try:
        word = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {word['process']} on {word['host']} (since {word['since']})"
    except (ValueError, KeyError, TypeError):
        return "another process"
