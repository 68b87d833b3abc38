"""Real text for benchmarks, from what every Python installation brings, as a finished dataset artifact."""

from __future__ import annotations

import pydoc_data.topics
from typing import Any

import numpy as np
import pyarrow as pa

from sparse_probing import schemas
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import write_manifest
from sparse_probing.store.parquet import write_table


def write_token_dataset(
    folder: Location, sequences: list[np.ndarray[Any, Any]], *, share: float, pooling: str = "none"
) -> Location:
    """A dataset in which a share of positions is labelled (or every sequence, if pooled); three fifths train."""
    rng = np.random.default_rng(0)
    pairs: list[tuple[int, int | None]] = []
    for i, tokens in enumerate(sequences):
        if pooling == "none":
            count = max(1, round(share * len(tokens)))
            pairs += [(i, int(p)) for p in np.sort(rng.choice(len(tokens), count, replace=False))]
        else:
            pairs.append((i, None))
    n = len(sequences)
    table = pa.table(
        {
            "seq_id": pa.array(range(n), pa.int64()),
            "group_id": [f"{i // 4}" for i in range(n)],
            "source": ["python"] * n,
            "split": [("train", "train", "train", "validation", "test")[i // 4 % 5] for i in range(n)],
            "tokens": pa.array([tokens.tolist() for tokens in sequences], pa.list_(pa.int32())),
            "n_tokens": pa.array([len(tokens) for tokens in sequences], pa.int32()),
            "pool_start": pa.array([1] * n, pa.int32()),
            "pool_end": pa.array([len(tokens) for tokens in sequences], pa.int32()),
        }
    )
    labels = pa.table(
        {
            "feature": ["any"] * len(pairs),
            "seq_id": pa.array([i for i, _ in pairs], pa.int64()),
            "position": pa.array([p for _, p in pairs], pa.int32()),
            "label": pa.array([1] * len(pairs), pa.int8()),
            "target": pa.nulls(len(pairs), pa.float64()),
        }
    )
    files = {
        "sequences.parquet": write_table(folder / "sequences.parquet", table, schemas.SEQUENCES),
        "labels.parquet": write_table(folder / "labels.parquet", labels, schemas.LABELS),
    }
    write_manifest(folder, kind="dataset", digest="be" * 32, spec={}, files=files, facts={"pooling": pooling})
    return folder


def write_text_dataset(folder: Location, tokenizer: Any, *, n_rows: int, share: float, context: int = 256) -> Location:
    """Documentation of Python's statements as sequences of up to `context` tokens, until there are enough rows."""
    text = "\n".join(pydoc_data.topics.topics.values())
    ids = np.array(tokenizer(text[: 40 * int(n_rows / share) // 4])["input_ids"], dtype=np.int32)
    rng = np.random.default_rng(0)
    sequences: list[np.ndarray[Any, Any]] = []
    first = 0
    while sum(len(tokens) for tokens in sequences) * share < n_rows:
        length = int(rng.integers(context // 4, context + 1))
        if first + length > len(ids):
            first = int(rng.integers(0, context))
        sequences.append(ids[first : first + length])
        first += length
    return write_token_dataset(folder, sequences, share=share)
