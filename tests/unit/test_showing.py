"""What the library hands back shows itself on one screen, and has a table under the published names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparse_probing import (
    METHODS,
    Selection,
    extract,
    fit_optimal,
    fit_optimal_path,
    load_profile,
    prepare,
    schemas,
    score_features,
    score_neurons,
)
from sparse_probing.probes.data import prepare_targets
from tests.tiny import random_model, random_sequences

LINES, WIDTH = 30, 160


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((600, 300))
    Y = X[:, :12] + rng.standard_normal((600, 12)) / 2 > 0
    sweep = METHODS["heuristic_sparsity_sweep"](X, Y[:, 0], k_values=[1, 2, 4])
    regression = METHODS["heuristic_sparse_regression_sweep"](X, X[:, 0] + X[:, 1], k_values=[1, 2])
    return {
        "score_neurons": score_neurons(X, Y[:, 0]),
        "score_features": score_features(X, Y, features=[f"feature {number}" for number in range(12)]),
        "METHODS": METHODS,
        "load_profile": load_profile("demo"),
        "sweep": sweep,
        "fit": sweep[0],
        "regression": regression,
        "fit_optimal": fit_optimal(X[:200], Y[:200, 0], 2),
        "fit_optimal_path": fit_optimal_path(X[:200], Y[:200, 0], [1, 2, 3]),
        "prepare": prepare(X, Y[:, 0]),
        "prepare_targets": prepare_targets(X, X[:, 0]),
    }


@pytest.fixture(scope="module")
def stream() -> dict[str, Any]:
    sequences = random_sequences(9)
    last = np.array([len(one) for one in sequences])
    selection = Selection("none", np.arange(9), last - 1, last)

    def made() -> Any:
        return extract(random_model("llama"), sequences, selection, hooks=["mlp.hook_post", "hook_resid_post"])

    return {"extract": made(), "batch": next(made()), "whole": made()}


def test_it_fits_on_one_screen(results: dict[str, Any], stream: dict[str, Any]) -> None:
    for name, value in (results | stream).items():
        shown = str(value)
        assert repr(value) == shown
        assert 1 < len(shown.splitlines()) <= LINES, name
        assert max(map(len, shown.splitlines())) <= WIDTH, (name, shown)
        assert " at 0x" not in shown, name
        assert "array(" not in shown, name
        page = value._repr_html_()
        assert page.startswith("<p>"), name
        assert page.count("<tr>") <= LINES, name


def test_tables_have_the_published_columns(results: dict[str, Any]) -> None:
    published = {
        "score_neurons": (schemas.NEURON_SCORES,),
        "score_features": (schemas.NEURON_SCORES,),
        "sweep": (schemas.PROBE_FITS,),
        "fit": (schemas.PROBE_FITS,),
        "regression": (schemas.PROBE_FITS,),
        "fit_optimal": (schemas.PROBE_FITS, schemas.PROBE_SUPPORTS),
        "fit_optimal_path": (schemas.PROBE_FITS, schemas.PROBE_SUPPORTS),
    }
    for name, tables in published.items():
        known = {field.name: field.type for schema in tables for field in schema}
        table = results[name].table()
        assert table.num_rows > 0
        for field in table.schema:
            assert known[field.name] == field.type, (name, field.name)


def test_features_keep_their_names_and_order(results: dict[str, Any]) -> None:
    scores = results["score_features"]
    table = scores.table()
    assert table.num_rows == 12 * 300
    assert table.column("feature").to_pylist()[::300] == list(scores.features)
    assert [int(one.best_first()[0]) for one in scores] == list(range(12))
    assert "and 2 more features" in repr(scores)
    assert repr(scores).splitlines()[2].split()[:3] == ["feature", "0", "0"]


def test_the_optimal_path_shows_a_row_a_fit(results: dict[str, Any]) -> None:
    path = results["fit_optimal_path"]
    assert [line.split()[0] for line in repr(path).splitlines()[2:]] == ["1", "2", "3"]
    assert path.table().num_rows == 1 + 2 + 3


def test_activations_have_a_row_a_hook_layer_and_position(stream: dict[str, Any]) -> None:
    table = stream["whole"].table()
    assert table.column_names == ["hook", "layer", "row_id", "activation"]
    assert table.num_rows == 2 * 3 * 9
    assert sorted(set(table.column("row_id").to_pylist())) == list(range(9))
    batch = stream["batch"]
    row = batch.table().slice(0, 1).to_pylist()[0]
    values = batch.values[row["hook"]][0, 0].tolist()
    assert row["activation"] == pytest.approx(values)
    assert "ActivationStream of 9 rows" in repr(stream["extract"])
    stream["extract"].close()
    assert list(stream["extract"]) == []
