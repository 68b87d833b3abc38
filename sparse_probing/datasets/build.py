"""A collection's spec to a finished dataset artifact: ``sequences.parquet``, ``labels.parquet``, ``manifest.json``.

The one place of this package that writes files. Same spec, same text, same tokenizer: same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from sparse_probing import schemas
from sparse_probing.config import DATASET_VERSION, CollectionSpec, dataset_name, digest
from sparse_probing.datasets.collection import Collection, Dataset, Plan
from sparse_probing.datasets.registry import get_collection
from sparse_probing.datasets.tokens import Tokenizer
from sparse_probing.errors import DataError
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import find_manifest, write_manifest
from sparse_probing.store.parquet import write_table

SEQUENCES_NAME = "sequences.parquet"
LABELS_NAME = "labels.parquet"


def preflight(spec: CollectionSpec) -> None:
    """Find out cheaply whether a dataset can be built; no text is read through, nothing is tokenised.

    Raises
    ------
    InputError
        If the collection, a feature, an option or the pooling is unknown, a package is missing, or a file is not
        there, not readable, or lacks a column.
    """
    collection = get_collection(spec.collection)
    collection.preflight(collection.resolve(spec))


def dataset_digest(spec: CollectionSpec, tokenizer_digest: str) -> str:
    """SHA-256 (hex) of everything that decides a dataset: resolved spec, tokenizer, versions or digests of its text.

    Raises
    ------
    InputError
        As `preflight`.
    """
    collection = get_collection(spec.collection)
    plan = collection.resolve(spec)
    return digest(plan.spec, inputs=_inputs(collection, plan, tokenizer_digest), version=DATASET_VERSION)


def build_dataset(
    spec: CollectionSpec,
    *,
    root: Location,
    tokenizer: Tokenizer,
    tokenizer_digest: str,
    progress: Callable[[int, int], None] | None = None,
    making: Callable[[Location], AbstractContextManager[None]] = lambda folder: nullcontext(),
) -> Location:
    """Build a dataset, or find it finished.

    Parameters
    ----------
    spec:
        What to build.
    root:
        The data folder; the dataset goes to ``datasets/<collection>-<short digest>`` in it.
    tokenizer:
        A fast tokenizer object.
    tokenizer_digest:
        Digest of that tokenizer: part of the dataset's own.
    progress:
        Called with texts tokenised so far and in all.
    making:
        Entered with the dataset's folder before it is looked for, and left when it is finished: a lock, say.

    Returns
    -------
    The finished folder; its manifest is written last.

    Raises
    ------
    InputError
        As `preflight`.
    DataError
        If a class or feature has too little text for three splits.
    ArtifactError
        If files cannot be written.
    """
    collection = get_collection(spec.collection)
    plan = collection.resolve(spec)
    collection.preflight(plan)
    inputs = _inputs(collection, plan, tokenizer_digest)
    full_digest = digest(plan.spec, inputs=inputs, version=DATASET_VERSION)
    folder = root / "datasets" / dataset_name(spec.collection, full_digest)
    with making(folder):
        if find_manifest(folder, digest=full_digest) is not None:
            return folder
        started = time.perf_counter()
        dataset = collection.build(plan, tokenizer, progress)
        sequences, labels = sequence_table(dataset), label_table(dataset)
        _check_labels(plan, dataset)
        files = {
            SEQUENCES_NAME: write_table(folder / SEQUENCES_NAME, sequences, schemas.SEQUENCES),
            LABELS_NAME: write_table(folder / LABELS_NAME, labels, schemas.LABELS),
        }
        write_manifest(
            folder,
            kind="dataset",
            digest=full_digest,
            spec=plan.spec.model_dump(mode="json"),
            inputs=inputs,
            facts=_facts(plan, dataset, sequences, labels),
            files=files,
            made={"seconds": time.perf_counter() - started},
        )
    return folder


def sequence_table(dataset: Dataset) -> pa.Table:
    """The sequences of a dataset, schema `SEQUENCES`, ordered by seq_id = 0, 1, …"""
    items = dataset.sequences
    columns = [
        pa.array(range(len(items)), pa.int64()),
        pa.array([item.document.group_id for item in items], pa.string()),
        pa.array([item.document.source for item in items], pa.string()),
        pa.array([item.split for item in items], pa.string()),
        pa.array([item.tokens.tokens for item in items], pa.list_(pa.int32())),
        pa.array([len(item.tokens.tokens) for item in items], pa.int32()),
        pa.array([item.pool_start for item in items], pa.int32()),
        pa.array([item.pool_end for item in items], pa.int32()),
    ]
    return pa.Table.from_arrays(columns, schema=schemas.SEQUENCES)


def label_table(dataset: Dataset) -> pa.Table:
    """The labels of a dataset, schema `LABELS`, ordered by feature, seq_id and position."""
    parts = []
    for labels in dataset.labels:
        n = len(labels.sequence)
        position = np.zeros(n, dtype=np.int64) if labels.position is None else labels.position
        order = np.lexsort((position, labels.sequence))
        values = labels.values[order]
        is_class = values.dtype == np.int8
        parts.append(
            pa.Table.from_arrays(
                [
                    pa.array([labels.feature] * n, pa.string()),
                    pa.array(labels.sequence[order], pa.int64()),
                    pa.nulls(n, pa.int32()) if labels.position is None else pa.array(position[order], pa.int32()),
                    pa.array(values, pa.int8()) if is_class else pa.nulls(n, pa.int8()),
                    pa.nulls(n, pa.float64()) if is_class else pa.array(values, pa.float64()),
                ],
                schema=schemas.LABELS,
            )
        )
    return pa.concat_tables(parts).combine_chunks()


def _inputs(collection: Collection[Any], plan: Plan[Any], tokenizer_digest: str) -> dict[str, str]:
    return {
        "tokenizer_digest": tokenizer_digest,
        "collection_version": str(collection.version),
        **collection.fingerprints(plan),
    }


def _check_labels(plan: Plan[Any], dataset: Dataset) -> None:
    """Every class feature has both classes, and every feature some row, in each split."""
    split = np.array([schemas.SPLITS.index(item.split) for item in dataset.sequences])
    features = {feature.name: feature for feature in plan.features}
    for labels in dataset.labels:
        feature = features[labels.feature]
        for index, name in enumerate(schemas.SPLITS):
            values = labels.values[split[labels.sequence] == index]
            missing = not len(values) or (feature.task == "classification" and values.min() == values.max())
            if missing:
                raise DataError(
                    f"Feature {feature.name!r} has {len(values)} rows in {name}, of one class at most; two are needed.",
                    remedy="Give the collection more text, or leave the feature out.",
                )


def _facts(plan: Plan[Any], dataset: Dataset, sequences: pa.Table, labels: pa.Table) -> Mapping[str, Any]:
    by_class: dict[str, dict[str, int]] = {}
    for item in dataset.sequences:
        counts = by_class.setdefault(item.document.label, dict.fromkeys(schemas.SPLITS, 0))
        counts[item.split] += 1
    rows = {
        (int(seq), -1 if position is None else int(position))
        for seq, position in zip(labels["seq_id"].to_pylist(), labels["position"].to_pylist(), strict=True)
    }
    labelled = {part.feature for part in dataset.labels}
    return {
        "collection": plan.spec.collection,
        "features": [
            {"name": feature.name, "task": feature.task, "level": plan.level}
            for feature in plan.features
            if feature.name in labelled
        ],
        "features_left_out": [feature.name for feature in plan.features if feature.name not in labelled],
        "pooling": plan.pooling,
        "context_length": plan.spec.context_length,
        "n_sequences": sequences.num_rows,
        "n_tokens": int(np.sum(sequences["n_tokens"].to_numpy())),
        "n_labels": labels.num_rows,
        "n_rows": len(rows),
        "n_groups": len({item.document.group_id for item in dataset.sequences}),
        "special_tokens": {
            "rule": dataset.special.name,
            "prefix": list(dataset.special.prefix),
            "suffix": list(dataset.special.suffix),
        },
        "unknown_token_fraction": _unknown_fraction(dataset),
        "sequences_by_class": dict(sorted(by_class.items())),
        "skipped": [asdict(total) for total in dataset.skipped],
    }


def _unknown_fraction(dataset: Dataset) -> float:
    """The share of the text's tokens that stand for what the vocabulary lacks."""
    unknown = dataset.special.unknown
    texts = [item.tokens.tokens[item.tokens.text_start : item.tokens.text_end] for item in dataset.sequences]
    return 0.0 if unknown is None else float(np.mean(np.concatenate(texts) == unknown))
