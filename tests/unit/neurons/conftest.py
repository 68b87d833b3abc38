"""A tiny model and a dataset of several features, some rows labelled for one of them only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from sparse_probing import schemas
from sparse_probing.models.resolved import ResolvedModel
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import read_manifest, write_manifest
from sparse_probing.store.parquet import write_table
from tests.tiny import random_sequences, save_tiny, write_dataset

FEATURES = ("often", "seldom", "rest", "amount")
N_SEQUENCES = 60


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums have the same bits only on as many threads; on one, tiny models are fastest too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    return save_tiny(tmp_path_factory.mktemp("collecting") / "model")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Location:
    """Five positions a sequence; the last feature is a regression's, and the first token of some is labelled."""
    return make_dataset(tmp_path_factory.mktemp("collecting") / "dataset")


def make_dataset(folder: Path, pooling: str = "none") -> Location:
    rng = np.random.default_rng(7)
    sequences = random_sequences(N_SEQUENCES, shortest=8)
    rows: list[tuple[int, int | None]] = [
        (i, int(position) if pooling == "none" else None)
        for i, tokens in enumerate(sequences)
        for position in (rng.choice(len(tokens), 5, replace=False) if pooling == "none" else (0,))
    ]
    location = write_dataset(folder, sequences, rows, pooling=pooling)
    marks: list[tuple[str, int, int | None, int | None, float | None]] = []
    for seq_id, position in rows:
        mark = int(rng.choice([-1, 1]))
        marks.append(("often", seq_id, position, mark, None))
        if rng.random() < 0.4:
            marks.append(("seldom", seq_id, position, int(rng.choice([-1, 1])), None))
        marks.append(("rest", seq_id, position, -mark, None))
        marks.append(("amount", seq_id, position, None, float(rng.random())))
    names = [field.name for field in schemas.LABELS]
    columns = dict(zip(names, map(list, zip(*marks, strict=True)), strict=True))
    manifest = read_manifest(location)
    files = dict(manifest.files)
    files["labels.parquet"] = write_table(
        location / "labels.parquet", pa.table(columns).cast(schemas.LABELS), schemas.LABELS
    )
    level = "token" if pooling == "none" else "sequence"
    facts = [
        {"name": name, "task": "regression" if name == "amount" else "classification", "level": level}
        for name in FEATURES
    ]
    write_manifest(
        location,
        kind="dataset",
        digest=manifest.digest,
        spec={},
        files=files,
        facts={"pooling": pooling, "features": facts},
    )
    return location
