"""Where things lie and what runs them: read from the environment once, in one place.

Nothing here decides a result; what does belongs into a spec in `config`.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from sparse_probing.credentials import shown_uri, without_secrets
from sparse_probing.errors import InputError

DATA_VARIABLE = "SPARSE_PROBING_DATA"
DEVICE_VARIABLE = "SPARSE_PROBING_DEVICE"
SCORES_VARIABLE = "SPARSE_PROBING_SCORES_IN_DATABASE"
# Some 3.5 GB: with more, publishing a copy of the database is what takes time.
MOST_SCORES = 20_000_000
SNAPSHOT_NAME = "results.duckdb"
WORKING_NAME = "working.duckdb"


@dataclass(frozen=True)
class Settings:
    """Paths and device of one process.

    Attributes
    ----------
    data_uri:
        Root of all artifacts: a local folder or a URI that pyarrow's filesystems open (``s3://…``, ``gs://…``). It may
        hold credentials: show `shown_data` instead.
    local_dir:
        Local folder of what must be local: the working and published DuckDB files, converted models, the report.
        The data folder itself when that is local.
    device:
        ``auto``, ``cpu`` or ``cuda``.
    most_scores:
        Rows of neuron_scores that the database holds; with more, it reads them from their fragments where the data folder is
        local, and holds the shortlisted ones.
    """

    data_uri: str = field(repr=False)
    local_dir: Path
    device: str
    most_scores: int = MOST_SCORES

    @property
    def shown_data(self) -> str:
        """The data folder as people may see it: without credentials and options."""
        return shown_uri(self.data_uri)

    @property
    def snapshot_path(self) -> Path:
        """The published, read-only database."""
        return self.local_dir / SNAPSHOT_NAME

    @property
    def working_path(self) -> Path:
        """The database that results are loaded into, before it is published."""
        return self.local_dir / WORKING_NAME

    @property
    def models_dir(self) -> Path:
        """Where converted models are kept."""
        return self.local_dir / "models"

    @property
    def reports_dir(self) -> Path:
        """Where reports are written."""
        return self.local_dir / "reports"


def why_unwritable(folder: Path) -> str | None:
    """The system's words for why files cannot be made in a folder, which is made if need be; None if they can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".tmp-{uuid.uuid4().hex[:8]}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return None


def user_path(text: str | os.PathLike[str]) -> Path:
    """A path as a user wrote it, with ``~`` resolved; it need not exist.

    Raises
    ------
    InputError
        If it can be no path: the user that it names has no home folder, or a name in it is too long.
    """
    try:
        path = Path(text).expanduser()
        path.is_file()
    except (RuntimeError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).rstrip(".")
        raise InputError(
            f"Path {without_secrets(repr(str(text))):.120} cannot be used: {reason}.", remedy="Write another path."
        ) from error
    return path


def load_settings(data: str | os.PathLike[str] | None = None) -> Settings:
    """Read the settings from the environment; `data` overrides the data folder.

    Raises
    ------
    InputError
        If the device is unknown, or a number is none.
    """
    root = str(data or os.environ.get(DATA_VARIABLE) or "data")
    if "://" in root and not root.startswith("file://"):
        local = user_path(os.environ.get("SPARSE_PROBING_LOCAL", "data")).resolve()
        uri = root.rstrip("/")
    else:
        local = user_path(root.removeprefix("file://")).resolve()
        uri = str(local)
    syntax = sorted({character for character in "?\\" if character in str(local)})
    if syntax:
        raise InputError(
            f"Data folder {local}: DuckDB cannot open a path with {' and '.join(syntax)} in it.",
            remedy=f"Pass --data FOLDER or set {DATA_VARIABLE} to a folder without that character.",
        )
    device = os.environ.get(DEVICE_VARIABLE, "auto")
    if device not in ("auto", "cpu") and not device.startswith("cuda"):
        raise InputError(
            f"{DEVICE_VARIABLE} is {device!r}; expected auto, cpu or cuda.", remedy=f"Unset {DEVICE_VARIABLE}."
        )
    most_scores = os.environ.get(SCORES_VARIABLE) or str(MOST_SCORES)
    if not most_scores.isdecimal():
        raise InputError(
            f"{SCORES_VARIABLE} is {most_scores!r}; expected a whole number of rows.",
            remedy=f"Unset {SCORES_VARIABLE}.",
        )
    return Settings(data_uri=uri, local_dir=local, device=device, most_scores=int(most_scores))
