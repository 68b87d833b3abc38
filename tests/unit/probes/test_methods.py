"""Sweeps, baselines and the registry: planted supports, one row per fit, honest labels, lazy imports."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from sparse_probing import schemas
from sparse_probing.errors import DataError, InputError
from sparse_probing.probes import METHODS
from sparse_probing.probes.data import prepare, prepare_targets
from sparse_probing.probes.experiments import baselines
from sparse_probing.probes.experiments.dense import fit_dense
from sparse_probing.probes.experiments.heuristic import default_k_values
from sparse_probing.probes.experiments.regression import _shuffled, target_baselines
from sparse_probing.probes.ranking import CRITERIA, rank_neurons
from sparse_probing.probes.results import ProbeFit, unfitted
from sparse_probing.probes.single import score_neurons

REFERENCE = [
    "dense_probe",
    "enumerate_monosemantic",
    "optimal_sparse_probing",
    "osp_tuning",
    "osp_iterative_pruning",
    "heuristic_sparsity_sweep",
    "fast_heuristic_sparsity_sweep",
    "telescopic_sparsity_sweep",
    "tune_telescoping_sparsity_sweep",
    "rotation_baseline",
    "rotation_baseline_dxd",
    "iterative_pruning_rotation_baseline_dxd",
    "test_osp_heuristic_filtering",
    "compare_feature_selection",
    "dense_regression_probe",
    "heuristic_sparse_regression_sweep",
]
PLANTED = [3, 11, 20]
SWEEP = "heuristic_sparsity_sweep"


@pytest.fixture(scope="module")
def arguments(planted):
    return (planted.X, planted.y, planted.groups), planted.keywords


def test_the_sixteen_names() -> None:
    assert set(REFERENCE) <= set(METHODS)


def test_importing_the_probes_loads_no_solver() -> None:
    code = "import sys, sparse_probing.probes as p; len(p.METHODS); print({'torch', 'gurobipy', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", REFERENCE)
def test_every_method_fits_evaluates_and_fills_its_rows(name, planted) -> None:
    method = METHODS[name]
    y = planted.y
    if method.task == "regression":
        y = planted.values[:, PLANTED].sum(axis=1)
        y[::50] = np.nan
    fits = method(
        planted.X, y, planted.groups, k_values=(1, 2, 3), n_bootstrap=30, time_limit_seconds=10, **planted.keywords
    )
    assert fits
    columns = set(schemas.PROBE_FITS.names) - {"run_id", "fit_id", "feature", "layer"}
    for fit in fits:
        assert isinstance(fit, ProbeFit)
        assert fit.method == name
        assert set(fit.row()) == columns
        assert len(fit.support) <= fit.k
        assert fit.converged, fit.message
        assert fit.status in ("ok", "optimal")
        assert set(fit.metrics) == set(schemas.SPLITS)
        assert fit.seconds > 0
        assert [row["position_in_support"] for row in fit.support_rows()] == list(range(len(fit.support)))
    metric = "mcc" if method.task == "classification" else "r2"
    best = max(fit.metrics["test"][metric] for fit in fits)
    assert best > (0.3 if "rotation" in name else 0.8)


@pytest.mark.parametrize("name", ["heuristic_sparsity_sweep", "telescopic_sparsity_sweep", "optimal_sparse_probing"])
def test_planted_supports_are_found(name, planted) -> None:
    found = METHODS[name](planted.X, planted.y, planted.groups, k_values=(2, 3), **planted.keywords)
    assert [sorted(fit.support) for fit in found][1] == PLANTED
    assert set(found[0].support) <= set(PLANTED)
    again = METHODS[name](planted.X, planted.y, planted.groups, k_values=(2, 3), **planted.keywords)
    assert [fit.metrics for fit in again] == [fit.metrics for fit in found]


def test_reported_coefficients_give_the_reported_metrics(planted) -> None:
    for fit in METHODS[SWEEP](planted.X, planted.y, planted.groups, k_values=(1, 5, 30), **planted.keywords):
        score = fit.intercept + planted.values[:, fit.support] @ fit.coef
        test = planted.split == 2
        right = float(np.mean((score[test] > 0) == (planted.y[test] > 0)))
        assert fit.metrics["test"]["accuracy"] == pytest.approx(right)


def test_scores_save_counting_and_change_nothing(arguments) -> None:
    arrays, keywords = arguments
    scores = score_neurons(*arrays, **keywords)
    data = prepare(*arrays, **keywords)
    for criterion in ("mean_dif", "f_stat", "mi"):
        np.testing.assert_array_equal(rank_neurons(data, criterion), rank_neurons(data, criterion, scores=scores))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_rankings_look_at_train_alone(planted, criterion) -> None:
    data = prepare(planted.X, planted.y, planted.groups, **planted.keywords)
    order = rank_neurons(data, criterion)
    assert sorted(order) == list(range(data.n_neurons))
    if criterion != "random":
        assert order[0] == 3
    changed = data.X.copy()
    changed[data.split != 0] = 255 - changed[data.split != 0]
    np.testing.assert_array_equal(order, rank_neurons(replace(data, X=changed), criterion))


def test_mean_difference_ranks_do_not_depend_on_scale(planted) -> None:
    data = prepare(planted.X, planted.y, planted.groups, **planted.keywords)
    blown = replace(data, scale=data.scale * np.random.default_rng(0).uniform(0.1, 100, data.n_neurons))
    np.testing.assert_array_equal(rank_neurons(data), rank_neurons(blown))


def test_unknown_ranking_is_refused(arguments) -> None:
    with pytest.raises(InputError, match="known are"):
        METHODS[SWEEP](*arguments[0], ranking="magic", **arguments[1])


def test_more_neurons_than_there_are_means_all_of_them(planted) -> None:
    fits = METHODS[SWEEP](planted.X[:, :5], planted.y, split=planted.split, k_values=(2, 8, 64))
    assert [fit.k for fit in fits] == [2, 5]


def test_no_validation_rows(planted) -> None:
    split = np.where(planted.split == 1, 0, planted.split)
    for name in ("dense_probe", "tune_telescoping_sparsity_sweep", "osp_tuning", "heuristic_sparsity_sweep"):
        fits = METHODS[name](planted.X, planted.y, planted.groups, split=split, k_values=(2,))
        assert set(fits[0].metrics) == {"train", "test"}
        assert fits[0].row()["validation_mcc"] is None


def test_customary_k_values() -> None:
    assert default_k_values(256) == (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 32, 64, 128, 256)
    assert default_k_values(5) == (1, 2, 3, 4, 5)


def test_pruning_removes_the_strongest_neuron_each_time(planted) -> None:
    fits = METHODS["osp_iterative_pruning"](planted.X, planted.y, planted.groups, k_values=(3,), **planted.keywords)
    assert [fit.step for fit in fits] == list(range(10))
    assert sorted(fits[0].support) == PLANTED
    assert 3 not in fits[1].support
    assert fits[3].metrics["test"]["mcc"] < 0.5 < fits[0].metrics["test"]["mcc"]


def test_baselines_tell_what_chance_tells(planted) -> None:
    token_ids = np.where(planted.y > 0, 5, 9) + np.random.default_rng(0).integers(0, 2, len(planted.y))
    data = prepare(planted.X, planted.y, planted.groups, **planted.keywords)
    fits = baselines.feature_baselines(data, token_ids=token_ids, n_bootstrap=50)
    by_variant = {fit.variant: fit for fit in fits}
    assert set(by_variant) == {"prevalence", "shuffled_labels", "random_rotation", "token_identity", "dense"}
    test = planted.split == 2
    share = float(np.mean(planted.y[test] > 0))
    assert by_variant["prevalence"].metrics["test"]["f1"] == pytest.approx(2 * share / (1 + share))
    assert by_variant["token_identity"].metrics["test"]["mcc"] == pytest.approx(1)
    assert by_variant["dense"].metrics["test"]["mcc"] > 0.9
    assert by_variant["random_rotation"].metrics["test"]["mcc"] < by_variant["dense"].metrics["test"]["mcc"]


def test_shuffled_labels_are_chance_on_test(planted) -> None:
    data = prepare(planted.X, planted.y, planted.groups, **planted.keywords)
    found = [baselines.shuffled_labels_baseline(data, rng=seed).metrics for seed in range(30)]
    assert abs(np.mean([one["test"]["mcc"] for one in found])) < 0.1
    assert np.mean([one["train"]["mcc"] for one in found]) > 0.1  # the best of forty


def test_unseen_tokens_and_missing_ids(planted) -> None:
    data = prepare(planted.X, planted.y, planted.groups, **planted.keywords)
    assert baselines.token_identity_baseline(data, np.arange(len(planted.y))).metrics["test"]["mcc"] == 0
    with pytest.raises(DataError, match="token ids"):
        baselines.token_identity_baseline(data, np.arange(3))


def test_a_rotation_is_orthogonal_and_keeps_the_dense_probe(planted) -> None:
    rotation = baselines.random_rotation(40, 1)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(40), atol=1e-5)
    data = prepare(planted.X, planted.y, planted.groups, **planted.keywords)
    rotated = baselines.rotate(data, rotation)
    assert not np.allclose(rotated.values(), data.values())
    # Distances are kept, and with them what a ridge on all neurons of one scale can find.
    np.testing.assert_allclose(np.ptp(rotated.values() @ rotation.T, axis=0), np.ptp(data.values(), axis=0), atol=1e-4)
    before, after = (fit_dense(one, (1.0,), 0).metrics["test"]["mcc"] for one in (data, rotated))
    assert after > 0.9
    assert before > 0.9


def test_dense_regression_equals_ridge(planted) -> None:
    target = planted.values[:, PLANTED].sum(axis=1) + np.random.default_rng(0).normal(size=len(planted.y))
    fit = METHODS["dense_regression_probe"](planted.X, target, planted.groups, **planted.keywords)[0]
    strength = float(fit.message.split()[1])
    train = planted.split == 0
    values = planted.values[train]
    unit = np.where(values.std(axis=0) > 1e-9, 10 * values.std(axis=0), 1)
    reference = Ridge(alpha=strength * train.sum()).fit(values / unit, target[train])
    np.testing.assert_allclose(fit.coef, reference.coef_ / unit, atol=1e-7)


def test_regression_baselines_know_less_than_the_probe(planted) -> None:
    target = planted.values[:, PLANTED].sum(axis=1)
    token_ids = np.arange(len(target)) % 7
    data = prepare_targets(planted.X, target, planted.groups, **planted.keywords)
    found = {fit.variant: fit for fit in target_baselines(data, token_ids=token_ids, n_bootstrap=50, rng=0)}
    probe = METHODS["heuristic_sparse_regression_sweep"](
        planted.X, target, planted.groups, k_values=(3,), **planted.keywords
    )[0]
    assert probe.metrics["test"]["r2"] > 0.8
    assert set(found) == {"prevalence", "shuffled_labels", "token_identity"}
    assert abs(found["prevalence"].metrics["train"]["r2"]) < 1e-12
    for fit in found.values():
        assert fit.metrics["test"]["r2"] < 0.1
        assert fit.test_r2_low <= fit.metrics["test"]["r2"] <= fit.test_r2_high


def test_baselines_of_targets_that_are_mostly_at_their_largest(planted) -> None:
    # The median is the maximum, so that no target lies above it.
    target = np.where(planted.values[:, PLANTED[0]] > np.quantile(planted.values[:, PLANTED[0]], 0.3), 1.0, 0.0)
    data = prepare_targets(planted.X, target, planted.groups, **planted.keywords)
    fits = target_baselines(data, rng=0)
    shuffled = next(fit for fit in fits if fit.variant == "shuffled_labels")
    assert np.isfinite(shuffled.coef).all()
    assert shuffled.metrics["test"]["r2"] < 0.2
    assert 0 < _shuffled(data, np.random.default_rng(0)).positive[data.rows("train")].sum() < len(data.rows("train"))


def test_targets_of_whole_groups_stay_whole_when_shuffled(planted) -> None:
    of_group = np.random.default_rng(1).standard_normal(int(planted.groups.max()) + 1)
    data = prepare_targets(planted.X, of_group[planted.groups], planted.groups, **planted.keywords)
    shuffled = _shuffled(data, np.random.default_rng(0))
    for code in range(3):
        rows = data.rows(code)
        pairs = set(zip(shuffled.groups[rows].tolist(), shuffled.target[rows].tolist(), strict=True))
        assert len(pairs) == len(set(data.groups[rows].tolist()))
        assert {value for _, value in pairs} == set(data.target[rows].tolist())


def test_constant_targets_are_refused(planted) -> None:
    with pytest.raises(DataError, match="varied"):
        METHODS["dense_regression_probe"](planted.X, np.ones(len(planted.y)), split=planted.split)


def test_a_failure_is_a_row() -> None:
    fit = unfitted("osp_tuning", 4, "no licence", n_candidates=50)
    assert fit.row()["status"] == "failed"
    assert fit.row()["message"] == "no licence"
    assert fit.row()["test_mcc"] is None
    assert fit.support_rows() == []
    with pytest.raises(InputError, match="status"):
        replace(fit, status="splendid")
