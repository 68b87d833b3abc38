"""Single-neuron scores: planted neurons, scikit-learn on the same values, streaming, symmetries, hostile input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score

from sparse_probing.errors import DataError
from sparse_probing.probes.labelling import SignedLabels
from sparse_probing.probes.metrics import classification_metrics
from sparse_probing.probes.single import (
    NeuronScores,
    levels,
    score_counts,
    score_features,
    score_neurons,
    trainable_features,
)
from sparse_probing.probes.single.counts import LevelCounts, count_levels, quantise
from sparse_probing.schemas import CLASSIFICATION_METRICS, SPLITS

ARRAYS = ("coef", "intercept", "coef_scaled", "converged", "best_threshold", "best_direction", "mean_difference")
ARRAYS += ("f_statistic", "mutual_information", "activation_std")


def assert_identical(left: NeuronScores, right: NeuronScores, order: np.ndarray | slice = slice(None)) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(left, name)[order], getattr(right, name), err_msg=name)
    for split in SPLITS:
        for metric in CLASSIFICATION_METRICS:
            for which in ("metrics", "best_metrics"):
                a, b = getattr(left, which)[split][metric], getattr(right, which)[split][metric]
                np.testing.assert_array_equal(a[order], b, err_msg=f"{which} {split} {metric}")


@pytest.fixture(scope="module")
def scores(planted) -> NeuronScores:
    return score_neurons(planted.X, planted.y, planted.groups, **planted.keywords)


def test_planted_neurons_come_first(scores, planted) -> None:
    order = np.argsort(-scores.best_metrics["train"]["mcc"], kind="stable")
    assert order[:3].tolist() == [3, 11, 20]
    assert scores.metrics["test"]["mcc"][3] > 0.9
    assert scores.best_direction[[3, 11]].tolist() == [1, -1]
    assert scores.coef[3] > 0 > scores.coef[11]
    assert scores.converged.all()
    assert scores.class_sizes.sum() == len(planted.y)


@pytest.mark.parametrize("which", ["metrics", "best_metrics"])
def test_every_metric_equals_that_of_the_scores(scores, planted, which) -> None:
    for neuron in range(planted.X.shape[1]):
        value = planted.values[:, neuron]
        if which == "metrics":
            score = scores.intercept[neuron] + scores.coef[neuron] * value
        else:
            score = scores.best_direction[neuron] * (value - scores.best_threshold[neuron])
        if neuron == 7 and which == "metrics":
            score = np.zeros(len(value))
        score = np.round(score, 9)  # equal levels are ties, whatever the rounding of offset + scale * level
        for code, split in enumerate(SPLITS):
            rows = planted.split == code
            expected = classification_metrics(planted.y[rows], score[rows])
            found = {name: values[neuron] for name, values in getattr(scores, which)[split].items()}
            assert found == pytest.approx(expected, abs=1e-9), (neuron, split)


def test_coefficients_equal_scikit_learn(scores, planted) -> None:
    train = planted.split == 0
    for neuron in (0, 3, 11, 20, 33):
        value = planted.values[train, neuron]
        unit = 10 * value.std()
        reference = LogisticRegression(C=1.0, class_weight="balanced", solver="lbfgs", tol=1e-11, max_iter=5000)
        reference.fit(value[:, None] / unit, planted.y[train])
        assert scores.coef_scaled[neuron] == pytest.approx(reference.coef_[0, 0], abs=1e-5)
        assert scores.coef[neuron] == pytest.approx(reference.coef_[0, 0] / unit, rel=1e-4, abs=1e-6)
        assert scores.intercept[neuron] == pytest.approx(reference.intercept_[0], abs=1e-4)


def test_training_statistics_equal_scikit_learn(scores, planted) -> None:
    train = planted.split == 0
    values, y = planted.values[train], planted.y[train]
    expected = values[y > 0].mean(axis=0) - values[y < 0].mean(axis=0)
    np.testing.assert_allclose(scores.mean_difference, expected, atol=1e-12)
    varied = np.arange(planted.X.shape[1]) != 7
    np.testing.assert_allclose(scores.f_statistic[varied], f_classif(values[:, varied], y)[0], rtol=1e-9, atol=1e-9)
    assert scores.f_statistic[7] == 0
    assert scores.coef[7] == 0


def test_best_threshold_is_the_best_of_all(scores, planted) -> None:
    train = planted.split == 0
    for neuron in (0, 3, 11, 20):
        value, y = planted.values[train, neuron], planted.y[train]
        tried = [classification_metrics(y, value, threshold=cut)["mcc"] for cut in np.unique(value)]
        assert scores.best_metrics["train"]["mcc"][neuron] == pytest.approx(np.max(np.abs(tried)), abs=1e-12)


def test_mutual_information_equals_scikit_learn_on_the_same_bins() -> None:
    rng = np.random.default_rng(3)
    level = np.repeat(np.arange(16) * 9, 25)  # sixteen levels of equal frequency: each is a bin
    y = np.where(rng.random(400) < 0.2 + 0.6 * (level > 60), 1, -1)
    found = score_neurons(level[:, None].astype(np.uint8), y, split=np.zeros(400)).mutual_information[0]
    assert found == pytest.approx(mutual_info_score(y, level), abs=1e-12)


def test_features_together_equal_features_alone(planted) -> None:
    rng = np.random.default_rng(1)
    other = rng.choice(np.array([-1, 0, 1], np.int8), size=(len(planted.y), 3))
    table = np.column_stack([planted.y, other])
    together = score_features(planted.X, SignedLabels(table), planted.groups, **planted.keywords)
    for feature, one in enumerate(together):
        assert_identical(
            one, score_neurons(planted.X, SignedLabels(table[:, feature]), planted.groups, **planted.keywords)
        )


def test_streaming_equals_batch_to_the_last_bit(scores, planted) -> None:
    shards = np.array_split(np.random.default_rng(2).permutation(len(planted.y)), 5)
    parts = [
        count_levels(planted.X[rows], planted.y[rows], planted.split[rows], offset=planted.offset, scale=planted.scale)[
            0
        ]
        for rows in shards
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert_identical(score_counts(total), scores)


@pytest.mark.parametrize("marks", [(0, 1), (0, -1), (1, 0), (1, -1), (-1, 1)])
def test_a_shard_in_which_features_have_one_class_or_no_label(marks) -> None:
    """Two columns of labels in all, but not those of one feature."""
    codes = np.random.default_rng(8).integers(0, 256, (9, 4), dtype=np.uint8)
    labels = np.tile(np.array(marks, np.int8), (9, 1))
    labels[6:, 0] = 0
    for feature, counted in enumerate(count_levels(codes, SignedLabels(labels), np.zeros(9, np.int8))):
        for code, sign in enumerate((-1, 1)):
            for neuron in range(4):
                rows = labels[:, feature] == sign
                wanted = np.bincount(codes[rows, neuron], minlength=256)
                np.testing.assert_array_equal(counted.counts[0, code, neuron], wanted)


def test_counts_of_different_quantisation_do_not_add(planted) -> None:
    one = count_levels(planted.X, planted.y, planted.split)[0]
    other = LevelCounts(one.counts, one.offset + 1, one.scale)
    with pytest.raises(DataError, match="quantisation"):
        one + other


def test_permuting_neurons_permutes_scores(scores, planted) -> None:
    order = np.random.default_rng(4).permutation(planted.X.shape[1])
    keywords = {"split": planted.split, "offset": planted.offset[order], "scale": planted.scale[order]}
    assert_identical(scores, score_neurons(planted.X[:, order], planted.y, **keywords), order)


def test_turning_a_neuron_turns_its_direction(planted) -> None:
    plain = score_neurons(planted.X, planted.y, split=planted.split)
    turned = score_neurons(255 - planted.X, planted.y, split=planted.split)
    varied = np.arange(planted.X.shape[1]) != 7
    np.testing.assert_allclose(turned.coef, -plain.coef, atol=1e-9)
    np.testing.assert_allclose(turned.mean_difference, -plain.mean_difference, atol=1e-9)
    for metric in ("mcc", "roc_auc", "average_precision"):
        np.testing.assert_allclose(turned.metrics["test"][metric], plain.metrics["test"][metric], atol=1e-12)
    np.testing.assert_allclose(turned.best_metrics["train"]["mcc"], plain.best_metrics["train"]["mcc"], atol=1e-12)
    assert (turned.best_direction[[3, 11, 20]] == -plain.best_direction[[3, 11, 20]]).all()
    negative = score_neurons(planted.X, planted.y, split=planted.split, scale=-np.ones(planted.X.shape[1]))
    np.testing.assert_array_equal(negative.best_direction[varied], -plain.best_direction[varied])
    np.testing.assert_allclose(negative.coef, -plain.coef, atol=1e-12)


def test_duplicated_columns_have_equal_scores(planted) -> None:
    found = score_neurons(planted.X[:, [3, 3, 11, 3]], planted.y, split=planted.split)
    assert found.coef[0] == found.coef[1] == found.coef[3]


def test_floats_are_scored_on_their_levels(planted) -> None:
    exact = score_neurons(planted.values, planted.y, split=planted.split)
    levels_given = score_neurons(planted.X, planted.y, **planted.keywords)
    np.testing.assert_allclose(exact.metrics["test"]["mcc"][3], levels_given.metrics["test"]["mcc"][3], atol=0.05)
    half = score_neurons(planted.values.astype(np.float16), planted.y, split=planted.split)
    np.testing.assert_allclose(half.coef[[3, 11]], exact.coef[[3, 11]], rtol=0.02)


def test_quantisation_looks_at_training_rows_alone() -> None:
    values = np.array([[0.0], [1.0], [50.0]])
    codes, offset, scale = quantise(values, np.array([True, True, False]))
    assert (offset[0], scale[0]) == (0, 1)  # whole numbers keep their own steps
    assert codes[:, 0].tolist() == [0, 1, 1]
    uneven = quantise(np.array([[0.5], [1.25], [9.0]]), np.array([True, True, False]))
    assert uneven[0][:, 0].tolist() == [0, 255, 255]


def test_a_default_split_keeps_groups_whole(planted) -> None:
    found = score_neurons(planted.X, planted.y, planted.groups)
    assert found.class_sizes.min() > 0
    assert found.metrics["test"]["mcc"][3] > 0.8


def test_unconverged_fits_say_so(planted, monkeypatch) -> None:
    monkeypatch.setattr(levels, "MAX_ITERATIONS", 1)
    assert not score_neurons(planted.X, planted.y, split=planted.split).converged.all()


def test_separable_classes_have_finite_coefficients() -> None:
    X = np.array([[0], [0], [1], [255], [255], [254]], np.uint8)
    y = np.array([-1, -1, -1, 1, 1, 1])
    found = score_neurons(X, y, split=np.zeros(6))
    assert found.converged[0]
    assert np.isfinite(found.coef[0])
    assert found.metrics["train"]["mcc"][0] == pytest.approx(1)
    assert 1 < found.best_threshold[0] < 254
    assert np.isnan(found.metrics["test"]["mcc"]).all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"y": np.ones(6)}, "needs both classes"),
        ({"y": np.array([1, -1, 1, -1, 1, 2])}, "Label 2"),
        ({"y": np.array([1, -1, 1])}, "3"),
        ({"split": np.full(6, 3)}, "Split code 3"),
        ({"split": np.array([0, 1, 1, 1, 1, 1])}, "needs both classes"),
        ({"X": np.full((6, 2), np.nan)}, "not finite"),
        ({"X": np.full((6, 2), np.inf, np.float16)}, "not finite"),
        ({"X": np.array([["a"] * 2] * 6)}, "type"),
        ({"X": np.zeros((6, 0), np.uint8)}, "at least one neuron"),
        ({"X": np.zeros(6, np.uint8)}, "shape"),
        ({"offset": np.zeros(5)}, "offset"),
    ],
)
def test_what_cannot_be_scored_is_refused(change, match) -> None:
    arguments = {
        "X": np.arange(12, dtype=np.uint8).reshape(6, 2),
        "y": np.array([1, -1, 1, -1, 1, -1]),
        "split": np.zeros(6),
    } | change
    with pytest.raises(DataError, match=match):
        score_neurons(arguments.pop("X"), arguments.pop("y"), **arguments)


def test_trainable_features_names_the_usable_ones() -> None:
    Y = np.array([[1, 1, 0], [-1, 1, -1], [1, -1, 1]])
    assert trainable_features(SignedLabels(Y), np.array([0, 0, 2])).tolist() == [True, False, False]


def test_the_widest_range_of_floats_gives_finite_scores() -> None:
    found = score_neurons(np.array([[np.finfo(np.float64).max], [0.0]]), np.array([1, -1]), split=np.zeros(2, np.int8))
    assert np.isfinite(found.mean_difference).all()
    assert np.isfinite(found.best_threshold).all()


@given(
    npst.arrays(
        st.sampled_from([np.float16, np.float32, np.float64, np.uint8]),
        st.tuples(st.integers(2, 12), st.integers(1, 4)),
        elements=None,
    ),
    st.data(),
)
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
def test_hostile_arrays_give_a_data_error_or_finite_scores(X: np.ndarray, data: st.DataObject) -> None:
    n = len(X)
    y = data.draw(npst.arrays(np.int8, n, elements=st.sampled_from([-1, 0, 1])))
    split = data.draw(npst.arrays(np.int8, n, elements=st.sampled_from([0, 1, 2])))
    try:
        with np.errstate(all="ignore"):
            found = score_neurons(X, SignedLabels(y), split=split)
    except DataError:
        train = y[split == 0]
        finite = np.isfinite(X.astype(np.float64)).all() and np.isfinite(np.ptp(X.astype(np.float64), axis=0)).all()
        assert not finite or not ((train > 0).any() and (train < 0).any())
        return
    assert found.converged.all()
    for name in ("coef_scaled", "best_threshold", "mean_difference", "mutual_information"):
        assert np.isfinite(getattr(found, name)).all(), name
    for code, split_name in enumerate(SPLITS):
        sizes = found.class_sizes[code]
        for metric in CLASSIFICATION_METRICS:
            value = found.metrics[split_name][metric]
            assert np.isnan(value).all() if sizes.sum() == 0 else np.isfinite(value).all()
