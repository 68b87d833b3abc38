"""What a user hands in and gets back: every coding of labels, any scale, predictions, tables, and one screen of text."""

from __future__ import annotations

import functools
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sparse_probing import schemas
from sparse_probing.errors import DataError, InputError
from sparse_probing.probes import METHODS, uncertainty
from sparse_probing.probes.data import prepare, prepare_targets
from sparse_probing.probes.experiments.baselines import feature_baselines
from sparse_probing.probes.labelling import SignedLabels, as_signs
from sparse_probing.probes.metrics import classification_metrics
from sparse_probing.probes.optimal import OptimalFit, fit_optimal, fit_optimal_path, fit_optimal_regression
from sparse_probing.probes.single import score_features, score_neurons, trainable_features
from sparse_probing.probes.single.counts import count_levels
from sparse_probing.probes.single.neuron_scores import NeuronScores
from sparse_probing.probes.solvers.elastic_net import fit_elastic_net
from sparse_probing.probes.solvers.logistic import fit_logistic
from sparse_probing.probes.uncertainty import permutations
from tests.unit.probes.conftest import Planted

CODINGS = {
    "bool": lambda y: y > 0,
    "0/1": lambda y: (y > 0).astype(np.int64),
    "uint8": lambda y: (y > 0).astype(np.uint8),
    "float 0/1": lambda y: (y > 0).astype(float),
    "-1/+1": lambda y: y.astype(float),
    "object": lambda y: (y > 0).astype(object),
    "list": lambda y: (y > 0).tolist(),
    "series": lambda y: pd.Series(y > 0),
}


def assert_same(one: NeuronScores, two: NeuronScores) -> None:
    for field in fields(NeuronScores):
        left, right = getattr(one, field.name), getattr(two, field.name)
        if isinstance(left, np.ndarray) and field.name != "classes":
            np.testing.assert_array_equal(left, right, err_msg=field.name)
    for split in schemas.SPLITS:
        np.testing.assert_array_equal(one.metrics[split]["mcc"], two.metrics[split]["mcc"])


@pytest.mark.parametrize("coding", CODINGS)
def test_every_coding_of_two_classes_means_the_same(planted: Planted, coding: str) -> None:
    y = CODINGS[coding](planted.y)
    wanted = score_neurons(planted.X, planted.y, planted.groups, **planted.keywords)
    assert_same(wanted, score_neurons(planted.X, y, planted.groups, **planted.keywords))
    assert_same(
        score_neurons(planted.X, planted.y, planted.groups), score_neurons(planted.X, y, planted.groups)
    )  # also where the split is made
    for name in ("dense_probe", "heuristic_sparsity_sweep", "optimal_sparse_probing"):
        one, two = (
            METHODS[name](planted.X, labels, planted.groups, k_values=(2,), n_bootstrap=20, **planted.keywords)
            for labels in (planted.y, y)
        )
        assert [fit.metrics for fit in one] == [fit.metrics for fit in two]
        assert one[0].test_mcc_low == two[0].test_mcc_low
    assert fit_optimal(planted.values, planted.y, 2).coef.tolist() == fit_optimal(planted.values, y, 2).coef.tolist()
    found = count_levels(planted.X, y, planted.split)[0].counts
    np.testing.assert_array_equal(found, count_levels(planted.X, planted.y, planted.split)[0].counts)
    assert feature_baselines(prepare(planted.X, y, planted.groups, **planted.keywords), dense=False)[0].metrics["train"]
    null = permutations.max_null(planted.X, y, planted.groups, split=planted.split, n_permutations=20)
    np.testing.assert_array_equal(
        null.p_value,
        permutations.max_null(planted.X, planted.y, planted.groups, split=planted.split, n_permutations=20).p_value,
    )
    short = [
        uncertainty.neuron_intervals(wanted, prepare(planted.X, labels, planted.groups, **planted.keywords), [3])
        for labels in (planted.y, y)
    ]
    assert short[0] == short[1]
    train = planted.split == 0
    signs, coded = planted.y[train], np.asarray(y)[train]
    for fit in (fit_logistic, functools.partial(fit_elastic_net, c=1.0, l1_ratio=0.5)):
        one, two = (fit(planted.values[train], labels).coef for labels in (signs, coded))
        np.testing.assert_array_equal(one, two)
    score = np.asarray(planted.values[:, 3])
    assert classification_metrics(y, score) == classification_metrics(planted.y, score)
    assert trainable_features(np.asarray(y)[:, None], planted.split).tolist() == [True]


def test_a_row_without_a_label_is_marked_by_nan_or_by_the_mask(planted: Planted) -> None:
    hidden = np.arange(len(planted.y)) % 7 == 0
    stored = np.where(hidden, 0, planted.y).astype(np.int8)
    wanted = score_neurons(planted.X, SignedLabels(stored), planted.groups, **planted.keywords)
    with_nan = np.where(hidden, np.nan, planted.y > 0)
    assert_same(wanted, score_neurons(planted.X, with_nan, planted.groups, **planted.keywords))
    nullable = pd.Series(planted.y > 0, dtype="boolean").mask(hidden)
    assert_same(wanted, score_neurons(planted.X, nullable, planted.groups, **planted.keywords))
    for y in (planted.y > 0, stored):
        assert_same(wanted, score_neurons(planted.X, y, planted.groups, labelled=~hidden, **planted.keywords))
    assert_same(wanted, score_features(planted.X, stored[:, None], labelled=~hidden, **planted.keywords)[0])
    assert wanted.class_sizes.sum() == (~hidden).sum()
    fit = METHODS["heuristic_sparsity_sweep"](planted.X, with_nan, planted.groups, k_values=(2,), **planted.keywords)[0]
    masked = METHODS["heuristic_sparsity_sweep"](
        planted.X, planted.y > 0, planted.groups, labelled=~hidden, k_values=(2,), **planted.keywords
    )[0]
    assert fit.metrics == masked.metrics
    best = fit_optimal(planted.values[~hidden], planted.y[~hidden], 2)
    for y, labelled in ((with_nan, None), (planted.y > 0, ~hidden)):
        assert fit_optimal(planted.values, y, 2, labelled=labelled).coef.tolist() == best.coef.tolist()
    own = np.where(hidden, 0.0, 1.5)
    weighed = fit_optimal(planted.values, planted.y > 0, 2, labelled=~hidden, weights=own)
    assert (
        weighed.objective == fit_optimal(planted.values[~hidden], planted.y[~hidden], 2, weights=own[~hidden]).objective
    )
    target = planted.values[:, 3]
    kept = prepare_targets(planted.X, target, planted.groups, labelled=~hidden, **planted.keywords)
    assert kept.row_ids.tolist() == np.flatnonzero(~hidden).tolist()


def test_minus_one_zero_and_one_are_not_guessed(planted: Planted) -> None:
    y = planted.y.copy()
    y[::5] = 0
    calls = (
        lambda: score_neurons(planted.X, y, split=planted.split),
        lambda: score_features(planted.X, y[:, None], split=planted.split),
        lambda: METHODS["dense_probe"](planted.X, y, split=planted.split),
        lambda: METHODS["heuristic_sparsity_sweep"](planted.X, y, split=planted.split),
        lambda: fit_optimal(planted.values, y, 1),
        lambda: fit_optimal_path(planted.values, y, [1]),
        lambda: count_levels(planted.X, y, planted.split),
        lambda: permutations.permute_labels(y, None, split=planted.split),
        lambda: trainable_features(y, planted.split),
        lambda: classification_metrics(y, planted.values[:, 3]),
        lambda: uncertainty.score_interval(y, y > 0, planted.groups),
    )
    for call in calls:
        with pytest.raises(DataError, match=r"0 may mean negative or not labelled.*NaN.*labelled=") as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("y", "labelled", "match"),
    [
        (["a", "b"], None, "type <U1"),
        ([1, 2], None, "Label 2"),
        ([1.0, np.inf], None, "Label inf"),
        ([None, "x"], None, "type object"),
        ([1, 0], [1, 0], "expected a boolean each"),
        ([1, 0], [True], "expected a boolean each"),
    ],
)
def test_other_labels_are_refused(y: list[object], labelled: list[object] | None, match: str) -> None:
    with pytest.raises(DataError, match=match):
        as_signs(y, labelled)
    with pytest.raises(DataError, match="Label 3"):
        SignedLabels(np.array([1, 3], np.int8))


@pytest.mark.parametrize("coding", ["bool", "0/1", "-1/+1"])
def test_predictions_speak_as_the_labels_did(planted: Planted, coding: str) -> None:
    y = CODINGS[coding](planted.y)
    test = planted.split == 2
    scores = score_neurons(planted.X, y, planted.groups, **planted.keywords)
    fit = fit_optimal(planted.values[planted.split == 0], y[planted.split == 0], 3)
    for predicted in (scores.predict(planted.values), scores.predict(planted.X), fit.predict(planted.values)):
        assert predicted.shape == y.shape
        assert np.isin(predicted, y).all()
        assert (predicted == y)[test].mean() > 0.9
    for neuron in (3, 11):
        right = float((scores.predict(planted.X, neuron) == y)[test].mean())
        assert right == pytest.approx(scores.metrics["test"]["accuracy"][neuron])
    np.testing.assert_array_equal(scores.predict(planted.X), scores.predict(planted.X, 3))
    with pytest.raises(InputError, match="Neuron 40"):
        scores.predict(planted.X, 40)
    with pytest.raises(DataError, match="expected \\(n_samples, 40\\)"):
        scores.predict(planted.X[:, :3])


def test_thresholds_are_activations_and_tell_the_direction(planted: Planted) -> None:
    scores = score_neurons(planted.X, planted.y, planted.groups, **planted.keywords)
    assert scores.direction[[3, 11, 7]].tolist() == [1, -1, 0]
    assert np.isnan(scores.threshold[7])
    for neuron in (3, 11):
        above = scores.direction[neuron] * (planted.values[:, neuron] - scores.threshold[neuron]) > 0
        np.testing.assert_array_equal(np.where(above, 1, -1), scores.predict(planted.X, neuron))


def test_an_optimal_probe_does_not_depend_on_units(planted: Planted) -> None:
    units = 10.0 ** np.linspace(-4, 4, planted.X.shape[1])
    plain = fit_optimal(planted.values, planted.y, 3)
    other = fit_optimal(planted.values * units + 5 * units, planted.y, 3)
    assert plain.status == other.status == "optimal"
    assert plain.support.tolist() == other.support.tolist() == [3, 11, 20]
    assert other.objective == pytest.approx(plain.objective, rel=1e-6)
    np.testing.assert_allclose(other.coef * units[other.support], plain.coef, rtol=1e-4)
    np.testing.assert_array_equal(plain.predict(planted.values), other.predict(planted.values * units + 5 * units))
    # The published units: ten standard deviations.
    by_hand = fit_optimal(
        planted.values / (10 * planted.values.std(axis=0) + 1e-300),
        planted.y,
        3,
        candidates=[3, 11, 20, 5],
        standardise=False,
    )
    np.testing.assert_allclose(by_hand.coef, plain.coef_scaled, rtol=1e-4)
    raw = fit_optimal(planted.values, planted.y, 3, standardise=False)
    np.testing.assert_array_equal(raw.coef, raw.coef_scaled)


def test_a_regression_does_not_depend_on_units(planted: Planted) -> None:
    target = planted.values[:, [3, 11]].sum(axis=1)
    target[::9] = np.nan
    units = 10.0 ** np.linspace(-4, 4, planted.X.shape[1])
    plain, other = (fit_optimal_regression(planted.values * u, target, 2) for u in (1.0, units))
    assert plain.support.tolist() == other.support.tolist() == [3, 11]
    np.testing.assert_allclose(other.predict(planted.values * units), plain.predict(planted.values), rtol=1e-6)


def test_tables_have_the_published_names_best_first(planted: Planted) -> None:
    scores = score_neurons(planted.X, planted.y, planted.groups, **planted.keywords)
    table = scores.table()
    assert set(schemas.NEURON_SCORES.names) - set(table.column_names) == {
        *("run_id", "feature", "layer", "p_value", "q_value"),
        *("validation_mcc_low", "validation_mcc_high", "test_mcc_low", "test_mcc_high"),
    }
    assert all(table.schema.field(name) == schemas.NEURON_SCORES.field(name) for name in table.column_names)
    assert table.num_rows == 40
    assert table["neuron"][0].as_py() == 3
    short = table.slice(0, 10)["validation_mcc"].to_pylist()
    assert short == sorted(short, reverse=True)
    assert table["shortlisted"].to_pylist() == [True] * 10 + [False] * 30
    assert table["layer_rank"].to_pylist()[10:] == list(range(11, 41))
    fits = METHODS["heuristic_sparsity_sweep"](planted.X, planted.y, planted.groups, **planted.keywords)
    found = fits.table()
    assert set(found.column_names) <= set(schemas.PROBE_FITS.names)
    quality = found["validation_mcc"].to_pylist()
    assert quality == sorted(quality, reverse=True)
    assert len(quality) == len(fits)
    assert fits[0].table().num_rows == 1
    best = fit_optimal(planted.values, planted.y, 3).table()
    assert best["neuron"].to_pylist()[0] == 3
    assert best["k"].to_pylist() == [3, 3, 3]
    assert set(best.column_names) <= {*schemas.PROBE_SUPPORTS.names, *schemas.PROBE_FITS.names}


def test_results_show_themselves_on_one_screen(planted: Planted) -> None:
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((200, 3000))
    y = wide[:, 17] > 0.3
    scores, best = score_neurons(wide, y), fit_optimal(wide[:, :60], y, 12, time_limit_seconds=1)
    sweep = METHODS["heuristic_sparsity_sweep"](wide, y)
    dense = METHODS["dense_probe"](planted.X, planted.y, planted.groups, n_bootstrap=20, **planted.keywords)[0]
    for shown in (scores, best, sweep, dense):
        for text in (repr(shown), str(shown)):
            assert len(text.splitlines()) <= 16
            assert max(map(len, text.splitlines())) <= 140
            assert "array(" not in text
        assert shown._repr_html_().count("<tr>") <= 12
    assert "3000 neurons: train 120" in repr(scores)
    assert repr(scores).splitlines()[2].split()[:2] == ["17", "+1"]
    assert "gap" in repr(best)
    assert isinstance(best, OptimalFit)
    assert "95 % interval of the test MCC" in repr(dense)
    assert "dense_probe" in repr(dense)


def test_the_guide_s_example_runs() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "probes.md").read_text(encoding="utf-8")
    found: dict[str, object] = {}
    exec(re.findall(r"```python\n(.*?)```", guide, re.DOTALL)[0], found)
    best = found["best"]
    assert isinstance(best, OptimalFit)
    assert best.support.tolist() == [3, 11]
