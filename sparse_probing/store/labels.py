"""Labels on disk to arrays aligned with the rows of an activations artifact."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparse_probing.errors import ArtifactError
from sparse_probing.schemas import SPLITS
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import read_manifest
from sparse_probing.store.parquet import read_table


@dataclass(frozen=True)
class LabelMatrix:
    """What every stored row is labelled with.

    Attributes
    ----------
    features:
        Names of the classification features, in the order of the columns of `labels`.
    levels:
        ``token`` or ``sequence``, one per classification feature.
    labels:
        (n_rows, n_features) int8: +1, −1, or 0 where the row has no label of that feature.
    regression_features, regression_levels, targets:
        Names, levels and (n_rows, n_regression_features) float64 targets, NaN where there is none.
    split:
        (n_rows,) int8: 0 train, 1 validation, 2 test.
    groups:
        (n_rows,) int64 codes of what must not be split.
    token_ids:
        (n_rows,) int64 token at the row's position; −1 for a pooled row.
    """

    features: tuple[str, ...]
    levels: tuple[str, ...]
    labels: NDArray[np.int8]
    regression_features: tuple[str, ...]
    regression_levels: tuple[str, ...]
    targets: NDArray[np.float64]
    split: NDArray[np.int8]
    groups: NDArray[np.int64]
    token_ids: NDArray[np.int64]

    def only(self, features: Collection[str]) -> LabelMatrix:
        """The same rows with some of the features; names that there are none of are left out."""
        kept = [place for place, name in enumerate(self.features) if name in features]
        targets = [place for place, name in enumerate(self.regression_features) if name in features]
        return replace(
            self,
            features=tuple(self.features[place] for place in kept),
            levels=tuple(self.levels[place] for place in kept),
            labels=np.ascontiguousarray(self.labels[:, kept]),
            regression_features=tuple(self.regression_features[place] for place in targets),
            regression_levels=tuple(self.regression_levels[place] for place in targets),
            targets=self.targets[:, targets],
        )


def row_keys(table: pa.Table) -> NDArray[np.int64]:
    """One integer per (seq_id, position); a pooled row has position −1."""
    position = table.column("position").fill_null(-1).to_numpy().astype(np.int64)
    keys: NDArray[np.int64] = (table.column("seq_id").to_numpy().astype(np.int64) << 24) + position + 1
    return keys


def split_codes(rows: pa.Table) -> NDArray[np.int8]:
    """(n_rows,) 0 train, 1 validation, 2 test."""
    names = rows.column("split").combine_chunks().dictionary_encode()
    codes = np.array([SPLITS.index(name) for name in names.dictionary.to_pylist()], dtype=np.int8)
    return np.asarray(codes[names.indices.to_numpy()])


def read_labels(dataset: Location, activations: Location) -> LabelMatrix:
    """Align a dataset's labels with the rows of activations extracted from it.

    Raises
    ------
    ArtifactError
        If either artifact is unfinished, or a label has no stored row.
    DamageError
        If either is damaged.
    """
    dataset_manifest, manifest = read_manifest(dataset), read_manifest(activations)
    rows = read_table(activations / "rows.parquet", entry=manifest.files["rows.parquet"])
    labels = read_table(dataset / "labels.parquet", entry=dataset_manifest.files["labels.parquet"])
    sequences = read_table(dataset / "sequences.parquet", entry=dataset_manifest.files["sequences.parquet"])
    keys, wanted = row_keys(rows), row_keys(labels)
    order = np.argsort(keys, kind="stable")
    found = np.minimum(np.searchsorted(keys[order], wanted), len(order) - 1)
    index = order[found]
    missing = keys[index] != wanted
    if missing.any():
        raise ArtifactError(
            f"{activations}: {int(missing.sum())} of {len(wanted)} labels have no stored row.",
            remedy=f"Delete {activations} and run the study again: it is made anew.",
        )
    facts = list(dataset_manifest.facts["features"])
    names = [fact["name"] for fact in facts]
    feature_codes = labels.column("feature").combine_chunks().dictionary_encode()
    translate = np.array([names.index(name) for name in feature_codes.dictionary.to_pylist()], dtype=np.int64)
    columns = translate[feature_codes.indices.to_numpy()] if len(labels) else np.zeros(0, np.int64)
    all_labels = np.zeros((rows.num_rows, len(names)), dtype=np.int8)
    all_targets = np.full((rows.num_rows, len(names)), np.nan)
    all_labels[index, columns] = labels.column("label").fill_null(0).to_numpy()
    all_targets[index, columns] = labels.column("target").to_numpy(zero_copy_only=False)
    is_class = np.array([fact["task"] == "classification" for fact in facts], dtype=bool)
    groups = rows.column("group_id").combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    return LabelMatrix(
        features=tuple(name for name, keep in zip(names, is_class, strict=True) if keep),
        levels=tuple(str(fact["level"]) for fact, keep in zip(facts, is_class, strict=True) if keep),
        labels=np.ascontiguousarray(all_labels[:, is_class]),
        regression_features=tuple(name for name, keep in zip(names, is_class, strict=True) if not keep),
        regression_levels=tuple(str(fact["level"]) for fact, keep in zip(facts, is_class, strict=True) if not keep),
        targets=all_targets[:, ~is_class],
        split=split_codes(rows),
        groups=groups,
        token_ids=_tokens_at(rows, sequences),
    )


def _tokens_at(rows: pa.Table, sequences: pa.Table) -> NDArray[np.int64]:
    tokens = sequences.column("tokens").combine_chunks()
    starts = tokens.offsets.to_numpy()[:-1].astype(np.int64)
    flat = tokens.values.to_numpy()
    ids = sequences.column("seq_id").to_numpy()
    order = np.argsort(ids)
    which = order[np.searchsorted(ids[order], rows.column("seq_id").to_numpy())]
    position = rows.column("position").fill_null(-1).to_numpy().astype(np.int64)
    at = np.where(position >= 0, flat[np.minimum(starts[which] + position, len(flat) - 1)], -1)
    return at.astype(np.int64)
