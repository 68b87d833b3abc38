"""Manifests: what is in a finished artifact, and from what it was made.

`manifest.json` is written last. A folder that has one is finished; a folder that has none is not.
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

from sparse_probing.errors import ArtifactError
from sparse_probing.store.filesystem import Location

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
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
    created_at: str


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
) -> Manifest:
    """Finish an artifact: write its manifest, after every data file is in place."""
    manifest = Manifest(
        kind=kind,
        digest=digest,
        spec=spec,
        inputs=inputs or {},
        facts=facts or {},
        files=dict(sorted(files.items())),
        package_versions=package_versions(),
        created_at=datetime.now(UTC).isoformat(),
    )
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False)
    (folder / MANIFEST_NAME).write_bytes(text.encode())
    return manifest


def find_manifest(folder: Location, *, digest: str | None = None) -> Manifest | None:
    """The manifest of a finished artifact; None if the folder is not finished.

    Raises
    ------
    ArtifactError
        If the manifest cannot be read, is of another format version, or belongs to another digest.
    """
    location = folder / MANIFEST_NAME
    if not location.exists():
        return None
    try:
        manifest = Manifest.model_validate_json(location.read_bytes())
    except ValueError as error:
        raise ArtifactError(
            f"{location} is not a manifest: {error}.", remedy=f"Delete {folder} and run again."
        ) from error
    if manifest.format_version != FORMAT_VERSION:
        raise ArtifactError(
            f"{location} has format {manifest.format_version}; this version reads {FORMAT_VERSION}.",
            remedy=f"Delete {folder} and run again.",
        )
    if digest is not None and manifest.digest != digest:
        raise ArtifactError(
            f"{location} belongs to digest {manifest.digest[:12]}; expected {digest[:12]}.",
            remedy=f"Delete {folder} and run again.",
        )
    return manifest


def read_manifest(folder: Location, *, digest: str | None = None) -> Manifest:
    """The manifest of a finished artifact.

    Raises
    ------
    ArtifactError
        If the artifact is not finished, or its manifest is not usable.
    """
    manifest = find_manifest(folder, digest=digest)
    if manifest is None:
        raise ArtifactError(
            f"{folder} has no {MANIFEST_NAME}: it is not finished.", remedy="Run the same command again to finish it."
        )
    return manifest


def verify_files(folder: Location, manifest: Manifest, names: Iterable[str] | None = None) -> None:
    """Compare data files with the SHA-256 in the manifest: all of them, or the named ones.

    Raises
    ------
    ArtifactError
        At the first file that is missing or differs.
    """
    for name in manifest.files if names is None else names:
        check_bytes(folder / name, (folder / name).read_bytes(), manifest.files[name])


def check_bytes(location: Location, data: bytes, entry: FileEntry) -> None:
    """Raise `ArtifactError` if `data`, read from `location`, is not what its entry says."""
    found = hashlib.sha256(data).hexdigest()
    if found != entry.sha256:
        raise ArtifactError(
            f"{location} is damaged: SHA-256 {found[:12]}, expected {entry.sha256[:12]}.",
            remedy="Delete its artifact's folder and run again.",
        )
