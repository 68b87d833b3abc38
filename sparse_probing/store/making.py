"""Artifacts while they are made: one owner at a time, and what is damaged is set aside first, so that it is made anew.

Locks are in `locks`, the search for damage in `soundness`; here the two work together. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sparse_probing.store import soundness
from sparse_probing.store.filesystem import Location
from sparse_probing.store.locks import Say, owned


@contextmanager
def making(root: Location, folder: Location, *, digest: str | None = None, say: Say) -> Iterator[None]:
    """Own an artifact while it is looked for or made; a damaged one is set aside first, and is then found missing.

    Parameters
    ----------
    root:
        The data folder.
    folder:
        Folder of the artifact, below `root`.
    digest:
        Digest that the artifact must have; any if None.
    say:
        Told which process is waited for, and what was set aside.
    """
    with owned(root, folder, say=say):
        _set_aside_damaged(root, folder, digest=digest, say=say)
        yield


def mend(root: Location, folders: Sequence[Location], *, every_byte: bool = False, say: Say) -> list[str]:
    """Set aside those artifacts that are damaged; returns their paths below the data folder.

    Parameters
    ----------
    every_byte:
        Compare all bytes with their digests, not only sizes and the files written to after the artifact was finished.
    """
    found = []
    for folder in folders:
        if soundness.find_damage(folder, every_byte=every_byte) is None:
            continue
        with owned(root, folder, say=say):
            # Another process may have set it aside and made it anew while this one waited.
            if _set_aside_damaged(root, folder, every_byte=every_byte, say=say):
                found.append(folder.path.removeprefix(f"{root.path}/"))
    return found


def set_aside_damage(root: Location, path: str, *, say: Say) -> None:
    """Set aside the artifact that a damaged file belongs to; delete the file alone if it belongs to no finished artifact.

    Nothing happens if another process set the artifact aside before, or made it anew.
    """
    folder = soundness.artifact_of(root, path)
    if folder is not None:
        mend(root, [folder], every_byte=True, say=say)
    elif path.startswith(f"{root.path}/"):
        Location(root.filesystem, path).delete()
        say(f"Warning: {path} was missing or damaged, and is made anew.")


def _set_aside_damaged(
    root: Location, folder: Location, *, digest: str | None = None, every_byte: bool = False, say: Say
) -> bool:
    damage = soundness.find_damage(folder, digest=digest, every_byte=every_byte)
    if damage is None:
        return False
    moved = soundness.set_aside(root, folder)
    say(f"Warning: {damage} Its artifact was moved to {moved}, and is made anew.")
    return True
