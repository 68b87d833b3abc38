"""The layer on which costly probes are fitted is that of the neuron, or probe, which the published views rank first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparse_probing.warehouse.selecting import SCORE_COLUMNS, best_layers
from tests.sql.rows import database, table

FEATURES = [{"feature": "digit"}, {"feature": "capital"}, {"feature": "position", "task": "regression"}]


def tied(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Scores and fits of few distinct values, numbers that are none among them, in any order."""
    rng = np.random.default_rng(seed)

    def value() -> float:
        return float(rng.choice([0.5, 0.75, np.nan, -0.25], p=[0.4, 0.3, 0.2, 0.1]))

    scores = [
        {
            "feature": feature,
            "layer": layer,
            "neuron": neuron,
            "shortlisted": bool(rng.random() < 0.7),
            "validation_mcc": value(),
            "train_mcc": value(),
            "train_roc_auc": value(),
        }
        for feature in ("digit", "capital")
        for layer in range(4)
        for neuron in rng.permutation(5).tolist()
    ]
    fits = [
        {
            "fit_id": f"f{layer}{k}{variant}",
            "feature": "position",
            "layer": layer,
            "k": k,
            "method": method,
            "variant": variant,
            "validation_r2": value(),
            "train_r2": value(),
        }
        for layer in rng.permutation(4).tolist()
        for k, method in ((1, "heuristic_sparse_regression_sweep"), (2, "heuristic_sparse_regression_sweep"), (9, "dense_regression_probe"))
        for variant in ("real", "shuffled_labels")
    ]  # fmt: skip
    return [scores[i] for i in rng.permutation(len(scores))], [fits[i] for i in rng.permutation(len(fits))]


@pytest.mark.parametrize("seed", range(12))
def test_one_rule_decides_before_and_after_publishing(seed: int) -> None:
    scores, fits = tied(seed)
    con = database(runs=[{}], features=FEATURES, neuron_scores=scores, probe_fits=fits)
    published = dict(
        con.execute(
            "select feature, layer from best_neuron_per_feature "
            "union all select feature, layer from best_target_probes order by feature"
        ).fetchall()
    )
    assert set(published) == {"digit", "capital", "position"}
    by_layer = [[row for row in scores if row["layer"] == layer] for layer in range(4)]
    found = best_layers(
        table("features", FEATURES),
        [table("neuron_scores", rows).select(list(SCORE_COLUMNS)) for rows in by_layer],
        [table("probe_fits", [row for row in fits if row["layer"] == layer]) for layer in range(4)],
    )
    assert found == published


def test_training_roc_auc_decides_between_equals() -> None:
    """What the two rules of before disagreed on."""
    same = {"validation_mcc": 0.75, "train_mcc": 0.75}
    scores = [same | {"layer": 0, "train_roc_auc": 0.5}, same | {"layer": 1, "train_roc_auc": 0.625}]
    found = best_layers(table("features", [{}]), [table("neuron_scores", scores)], [])
    assert found == {"digit": 1}
