"""Dataset artifacts read back as frames, their bytes compared with their digests."""

from __future__ import annotations

import pandas as pd

from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import read_manifest
from sparse_probing.store.parquet import read_table


def dataset_frames(folder: Location) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The sequences and the labels of a finished dataset.

    Raises
    ------
    ArtifactError
        If the artifact is unfinished or damaged.
    """
    files = read_manifest(folder).files
    sequences, labels = (
        read_table(folder / name, entry=files[name]).to_pandas() for name in ("sequences.parquet", "labels.parquet")
    )
    return sequences, labels
