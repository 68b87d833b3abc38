"""Manifests: the contents of a finished artifact, and what it was made from.

`manifest.json` is written last. A folder that has one is finished; a folder that has none, or one that cannot be read, is
not. A manifest holds no times: those are in `made.json` beside it, which no digest covers, so that the
same work always leaves the same bytes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sparse_probing.errors import ArtifactError, DamageError
from sparse_probing.store.filesystem import Location

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
MADE_NAME = "made.json"
# What is left in the folder of activations that were freed on purpose.
FREED_NAME = "freed.json"
RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "numpy",
    "pyarrow",
    "scikit-learn",
    "gurobipy",
    "duckdb",
    "sparse-probing",
)


class FileEntry(BaseModel):
    """One data file of an artifact."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    size_bytes: int
    n_rows: int


class Manifest(BaseModel):
    """What an artifact holds. `files` maps names relative to the folder to their entries."""

    model_config = ConfigDict(frozen=True)

    format_version: int = FORMAT_VERSION
    kind: str
    digest: str
    spec: Mapping[str, Any]
    inputs: Mapping[str, str] = Field(default_factory=dict)
    facts: Mapping[str, Any] = Field(default_factory=dict)
    files: Mapping[str, FileEntry]
    package_versions: Mapping[str, str]


class Made(BaseModel):
    """When an artifact was finished, and what else of its making differs from one time to the next."""

    model_config = ConfigDict(frozen=True)

    created_at: datetime
    # Of the manifest: what covers all other files is covered here.
    manifest_sha256: str | None = None
    facts: Mapping[str, Any] = Field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        """How long it took; None where that was not written down."""
        found = self.facts.get("seconds")
        return float(found) if isinstance(found, int | float) else None


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results."""
    versions = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def write_manifest(
    folder: Location,
    *,
    kind: str,
    digest: str,
    spec: Mapping[str, Any],
    files: Mapping[str, FileEntry],
    inputs: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
    made: Mapping[str, Any] | None = None,
) -> Manifest:
    """Finish an artifact: write its manifest, after every data file is in place.

    Parameters
    ----------
    facts:
        Facts about the data, equal whenever the same artifact is made.
    made:
        Facts about this one time that it was made, such as the seconds it took; kept in `made.json`.
    """
    manifest = Manifest(
        kind=kind,
        digest=digest,
        spec=spec,
        inputs=inputs or {},
        facts=facts or {},
        files=dict(sorted(files.items())),
        package_versions=package_versions(),
    )
    data = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False).encode()
    record = Made(created_at=datetime.now(UTC), manifest_sha256=hashlib.sha256(data).hexdigest(), facts=made or {})
    (folder / MADE_NAME).write_bytes(record.model_dump_json(indent=1).encode())
    (folder / MANIFEST_NAME).write_bytes(data)
    return manifest


def find_manifest(folder: Location, *, digest: str | None = None) -> Manifest | None:
    """The manifest of a finished artifact; None if there is none that can be read, or it is of another format or digest."""
    try:
        return read_manifest(folder, digest=digest)
    except ArtifactError:
        return None


def read_manifest(folder: Location, *, digest: str | None = None) -> Manifest:
    """The manifest of a finished artifact.

    Raises
    ------
    ArtifactError
        If the artifact is not finished.
    DamageError
        If its manifest cannot be read, is of another format version, or belongs to another digest.
    """
    location = folder / MANIFEST_NAME
    data = location.find_bytes()
    if data is None:
        raise ArtifactError(
            f"{folder} has no {MANIFEST_NAME}: it is not finished.", remedy="Run the same command again to finish it."
        )
    try:
        manifest = Manifest.model_validate_json(data)
    except ValueError as error:
        raise DamageError(f"{location} is not a manifest: {_first_line(error)}.", path=location.path) from error
    # An object store compares every object with a checksum of its own; asking for a second one doubles the requests.
    expected = None if folder.is_object_store else _find_made(folder)
    if expected is not None and expected.manifest_sha256 not in (None, hashlib.sha256(data).hexdigest()):
        raise DamageError(f"{location} is not the manifest that {MADE_NAME} speaks of.", path=location.path)
    if manifest.format_version != FORMAT_VERSION:
        raise DamageError(
            f"{location} has format {manifest.format_version}; this version reads {FORMAT_VERSION}.",
            path=location.path,
        )
    if digest is not None and manifest.digest != digest:
        raise DamageError(
            f"{location} belongs to digest {manifest.digest[:12]}; expected {digest[:12]}.", path=location.path
        )
    return manifest


def read_made(folder: Location) -> Made:
    """When and how a finished artifact was made; where that was lost, when its manifest was written."""
    return _find_made(folder) or Made(created_at=(folder / MANIFEST_NAME).modified_at())


def _find_made(folder: Location) -> Made | None:
    data = (folder / MADE_NAME).find_bytes()
    try:
        return None if data is None else Made.model_validate_json(data)
    except ValueError:
        return None


def _first_line(error: ValueError) -> str:
    return " ".join(str(error).split("For further information")[0].split())


def verify_files(folder: Location, manifest: Manifest, names: Iterable[str] | None = None) -> None:
    """Compare data files with the SHA-256 in the manifest: all of them, or the named ones.

    Raises
    ------
    DamageError
        At the first file that is missing or differs.
    """
    for name in manifest.files if names is None else names:
        check_bytes(folder / name, (folder / name).read_bytes(), manifest.files[name])


def file_digest(location: Location) -> str:
    """SHA-256 (hex) of a file.

    Raises
    ------
    DamageError
        If it is not there.
    """
    return hashlib.sha256(location.read_bytes()).hexdigest()


def check_bytes(location: Location, data: bytes, entry: FileEntry) -> None:
    """Raise `DamageError` if `data`, read from `location`, is not what its entry says."""
    found = hashlib.sha256(data).hexdigest()
    if found != entry.sha256:
        raise DamageError(
            f"{location} is damaged: SHA-256 {found[:12]}, expected {entry.sha256[:12]}.", path=location.path
        )
