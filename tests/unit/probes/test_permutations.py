"""The permutation null of a layer's best neuron: known answers, calibration on null data, few groups."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm

from sparse_probing.probes.labelling import SignedLabels
from sparse_probing.probes.splits import group_split
from sparse_probing.probes.uncertainty.false_discoveries import family_q_values
from sparse_probing.probes.uncertainty.permutations import TIMES_MORE, max_null, permute_labels, sequential_p_value


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


@pytest.mark.parametrize("n_first", [19, 99, 200])
def test_sequential_p_values_are_exact_under_the_null(n_first: int) -> None:
    """Every place among the permuted statistics is as likely: outcomes are weighed by an urn, not by the package's law."""
    rng = np.random.default_rng(n_first)
    n_all, n_draws = TIMES_MORE * n_first, 200_000
    # The true statistic's place: the chance that a permutation reaches it is uniform.
    chance = rng.random(n_draws)
    first = rng.binomial(n_first, chance)
    p = sequential_p_value(first, first + rng.binomial(n_all - n_first, chance), n_first)
    assert p.min() == pytest.approx(1 / (n_first + 1))
    for level in (1 / (n_first + 1), 0.02, 0.05, 0.0725, 0.1, 0.3):
        error = 3 * np.sqrt(level * (1 - level) / n_draws)
        assert (p <= level + 1e-12).mean() <= level + error
    # Nothing is lost where the test goes on.
    if n_first > 100:
        assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.003)


def test_sequential_p_values_follow_the_order_of_statistics() -> None:
    first = np.array([1, 1, 1, 5, 19, 20, 40])
    everything = np.array([1, 4, 30, 70, 180, 190, 400])
    p = sequential_p_value(first, everything, 200)
    assert (np.diff(p) > 0).all()
    assert p[0] > 1 / 201
    assert p[5] == 21 / 201
    # In the second stage, about the share of all permutations that reach the statistic.
    assert p[3] == pytest.approx(71 / 2001, abs=0.004)


def test_more_permutations_are_drawn_where_a_decision_is_near() -> None:
    rng = np.random.default_rng(3)
    y = np.where(np.arange(60) % 2 == 0, 1, -1)
    noise, others = rng.standard_normal(60), rng.standard_normal((60, 6))
    found = max_null(np.column_stack([0.35 * y + noise, others]), y, None, split=np.zeros(60), n_permutations=99, rng=1)
    assert found.n_permutations.tolist() == [990]
    assert 0.01 < found.p_value[0, 0] < 0.1
    many = max_null(
        np.column_stack([0.35 * y + noise, others]), y, None, split=np.zeros(60), n_permutations=4999, rng=2
    )
    assert found.p_value[0, 0] == pytest.approx(many.p_value[0, 0], abs=0.02)
    for strength in (1.0, 0.0):
        X = np.column_stack([strength * y + noise, others])
        clear = max_null(X, y, None, split=np.zeros(60), n_permutations=99, rng=1)
        assert clear.n_permutations.tolist() == [99]
