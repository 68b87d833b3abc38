"""The permutation null of a layer's best neuron: known answers, calibration on null data, few groups."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm

from sparse_probing.probes.false_discoveries import family_q_values
from sparse_probing.probes.labelling import SignedLabels
from sparse_probing.probes.permutations import max_null, permute_labels
from sparse_probing.probes.splits import group_split


def null_layer(seed: int, tokens: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Activations and labels that share documents and nothing else; both depend on the document."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(40), 6)
    X = rng.normal(size=(40, 30))[groups] + 0.7 * rng.normal(size=(240, 30))
    if tokens:
        y = np.where(rng.random(240) < rng.uniform(0.1, 0.7, 40)[groups], 1, -1)
    else:
        y = np.where(rng.random(40) < 0.4, 1, -1)[groups]
    return X, y.astype(np.int8), groups


@pytest.mark.parametrize("tokens", [False, True])
def test_null_features_are_rarely_significant(tokens) -> None:
    draws, hits = 200, 0
    for seed in range(draws):
        X, y, groups = null_layer(seed, tokens)
        found = max_null(X, y, groups, split=np.zeros(len(y)), n_permutations=99, rng=seed)
        hits += bool(family_q_values([found.p_value[0]])[0].min() < 0.05)
    assert hits <= 0.05 * draws + 2 * np.sqrt(0.05 * 0.95 * draws)


def test_a_run_of_null_features_shows_few_discoveries() -> None:
    discoveries = 0
    for seed in range(40):
        X, _, groups = null_layer(seed, tokens=False)
        rng = np.random.default_rng(1000 + seed)
        Y = np.where(rng.random((40, 5)) < 0.4, 1, -1)[groups]
        p = max_null(X, Y, groups, split=np.zeros(len(Y)), n_permutations=99, rng=seed).p_value
        discoveries += sum(bool(q.min() < 0.05) for q in family_q_values(list(p)))
    assert discoveries <= 0.05 * 200


def test_ignoring_groups_would_find_what_is_not_there() -> None:
    """The same null data fail when rows are taken as independent: the test above can fail."""
    hits = 0
    for seed in range(40):
        X, y, _ = null_layer(seed, tokens=False)
        found = max_null(X, y, None, split=np.zeros(len(y)), n_permutations=99, rng=seed)
        hits += bool(found.p_value.min() < 0.05)
    assert hits > 20


def test_planted_neurons_are_significant(planted) -> None:
    found = max_null(planted.X, planted.y, planted.groups, split=planted.split, n_permutations=199)
    assert found.p_value[0, [3, 11]].max() == pytest.approx(1 / 200)
    assert np.median(found.p_value) > 0.2
    assert found.p_value[0, 7] == 1  # constant
    assert found.statistic[0, 3] > 0 > found.statistic[0, 11]


def test_statistic_is_the_rank_sum_test(planted) -> None:
    train = planted.split == 0
    found = max_null(planted.X, planted.y, None, split=planted.split, n_permutations=0)
    positive, values = planted.y[train] > 0, planted.X[train]
    for neuron in (0, 3, 11):
        test = mannwhitneyu(
            values[positive, neuron], values[~positive, neuron], use_continuity=False, method="asymptotic"
        )
        z = found.statistic[0, neuron] * np.sqrt((train.sum() - 1) / train.sum())
        assert 2 * norm.sf(abs(z)) == pytest.approx(test.pvalue, rel=1e-3)


def test_nine_groups_cannot_give_a_small_p_value() -> None:
    """Three of nine projects can be chosen in 84 ways: a perfect neuron's p-value stays near 1/84 and above."""
    groups = np.repeat(np.arange(9), 20)
    y = np.where(groups < 3, 1, -1)
    X = np.column_stack(
        [y + 0.01 * np.random.default_rng(0).normal(size=180), np.random.default_rng(1).normal(size=180)]
    )
    p = max_null(X, y, groups, split=np.zeros(180), n_permutations=2000).p_value[0, 0]
    assert 0.5 / 84 < p < 3 / 84


def test_permutations_keep_what_they_must() -> None:
    groups = np.repeat([0, 1, 2, 3, 4], 4)
    constant = np.repeat([1, -1, 1, -1, -1], 4)
    within = np.tile([1, 1, -1, -1], 5)
    mixed = np.where(groups < 3, constant, within)
    partly = np.where(np.arange(20) % 4 == 0, 0, within)
    plans = permute_labels(
        SignedLabels(np.column_stack([constant, within, mixed, partly])),
        groups,
        split=np.zeros(20),
        n_permutations=50,
        rng=1,
    )
    assert plans.kind == ("groups", "within_groups", "mixed", "within_groups")
    for feature, labels in ((1, within), (3, partly)):
        drawn = np.sign(plans.contrasts[feature])
        np.testing.assert_array_equal(drawn[:, 0], labels)
        np.testing.assert_array_equal(drawn == 0, np.repeat((labels == 0)[:, None], 51, axis=1))
        for group in range(5):
            inside = groups == group
            assert ((drawn[inside] > 0).sum(axis=0) == (labels[inside] > 0).sum()).all()
        assert len(np.unique(drawn, axis=1).T) > 20
    by_group = np.sign(plans.contrasts[0])
    assert by_group.shape == (5, 51)
    assert ((by_group > 0).sum(axis=0) == 2).all()
    in_mixed = np.sign(plans.contrasts[2])
    assert all(len(np.unique(in_mixed[groups == group], axis=0)) == 1 for group in range(3))


def test_one_plan_serves_all_layers(planted) -> None:
    plan = permute_labels(planted.y, planted.groups, split=planted.split, n_permutations=20, rng=3)
    direct = max_null(planted.X, planted.y, planted.groups, split=planted.split, n_permutations=20, rng=3)
    np.testing.assert_array_equal(max_null(planted.X, permutations=plan).p_value, direct.p_value)


def test_fewer_rows_still_show_a_strong_neuron(planted) -> None:
    plan = permute_labels(planted.y, None, split=planted.split, n_permutations=99, max_rows=80, rng=3)
    assert len(plan.rows) == 80
    assert (planted.split[plan.rows] == 0).all()
    assert max_null(planted.X, permutations=plan).p_value[0, 3] == pytest.approx(0.01)


def test_split_of_the_test_part_plays_no_role(planted) -> None:
    changed = planted.X.copy()
    changed[planted.split != 0] = 0
    args = (planted.y, planted.groups)
    one = max_null(planted.X, *args, split=planted.split, n_permutations=20)
    other = max_null(changed, *args, split=planted.split, n_permutations=20)
    np.testing.assert_array_equal(one.p_value, other.p_value)
    assert group_split(planted.groups).shape == planted.split.shape
