"""The features of a run: number of rows and groups of each, and the labels of its test rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparse_probing import schemas
from sparse_probing.store.labels import LabelMatrix
from sparse_probing.store.predictions import pack, pack_groups


def features_table(run_id: str, labels: LabelMatrix) -> pa.Table:
    """One row per feature: how many rows and groups it has, in each split."""
    # A target has no classes: none of its rows counts as positive.
    known = -np.isfinite(labels.targets).astype(np.int8)
    every = [
        ("classification", labels.features, labels.levels, labels.labels),
        ("regression", labels.regression_features, labels.regression_levels, known),
    ]
    rows = []
    for task_name, features, levels, signs in every:
        for feature, level, y in zip(features, levels, signs.T, strict=True):
            row: dict[str, object] = {"run_id": run_id, "feature": feature, "task": task_name, "level": level}
            groups_in: list[set[int]] = []
            for code, split in enumerate(schemas.SPLITS):
                inside = (labels.split == code) & (y != 0)
                positive = inside & (y > 0)
                groups_in.append(set(labels.groups[inside].tolist()))
                row[f"n_{split}"] = int(inside.sum())
                row[f"n_{split}_positive"] = int(positive.sum())
                row[f"n_{split}_groups"] = len(groups_in[-1])
                row[f"n_{split}_groups_positive"] = len(np.unique(labels.groups[positive]))
            row["n_shared_groups"] = sum(map(len, groups_in)) - len(set().union(*groups_in))
            row["prevalence"] = float((y > 0).sum() / max(1, (y != 0).sum()))
            rows.append(row)
    return pa.Table.from_pylist(rows, schema=schemas.FEATURES)


def rows_of_test(labels: LabelMatrix, known: NDArray[Any]) -> NDArray[np.intp]:
    """Test rows of a feature: those where `known` (n_rows,), its labels, is not 0."""
    return np.flatnonzero((labels.split == schemas.SPLITS.index("test")) & (known != 0))


def labels_of_test(run_id: str, labels: LabelMatrix) -> pa.Table:
    """Labels or targets of every feature's test rows, and the group of each row."""
    rows = []
    for feature, signs in zip(labels.features, labels.labels.T, strict=True):
        at = rows_of_test(labels, signs)
        rows.append(_labels_row(run_id, labels, feature, at, signs[at] > 0))
    for feature, target in zip(labels.regression_features, labels.targets.T, strict=True):
        at = rows_of_test(labels, ~np.isnan(target))
        rows.append(_labels_row(run_id, labels, feature, at, target[at]))
    return pa.Table.from_pylist(rows, schema=schemas.TEST_LABELS)


def _labels_row(
    run_id: str, labels: LabelMatrix, feature: str, rows: NDArray[np.intp], truth: NDArray[Any]
) -> dict[str, Any]:
    codes = pack_groups(labels.groups[rows])
    return {"run_id": run_id, "feature": feature, "n_rows": len(rows), "truth": pack(truth), "group_code": codes}
