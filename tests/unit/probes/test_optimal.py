"""Certified probes: planted supports, exhaustive search, invariances, hostile input, limits."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import pytest

from sparse_probing.errors import DataError, InputError
from sparse_probing.probes import optimal
from sparse_probing.probes.optimal import integer_model, scale_for_optimal
from sparse_probing.probes.optimal.hinge_dual import HingeProblem
from sparse_probing.probes.optimal.squared_dual import SquaredProblem

# What is proved is compared with the problem on X itself; `test_answers` has the defaults.
fit_optimal = functools.partial(optimal.fit_optimal, standardise=False)
fit_optimal_path = functools.partial(optimal.fit_optimal_path, standardise=False)
fit_optimal_regression = functools.partial(optimal.fit_optimal_regression, standardise=False)

SOLVERS = ["tree", "gurobi"]


def make_data(
    seed: int, n: int = 300, d: int = 40, planted: int = 3, noise: float = 0.5, share: float = 0.3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correlated neurons, some of which make the label. Returns X at the method's scale, y, the planted neurons."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) + 0.7 * rng.standard_normal((n, 3)) @ rng.standard_normal((3, d))
    chosen = np.sort(rng.choice(d, planted, replace=False))
    t = (X / X.std(axis=0))[:, chosen].sum(axis=1) + noise * rng.standard_normal(n)
    return X / scale_for_optimal(X), np.where(t > np.quantile(t, 1 - share), 1, -1), chosen


def value_of(X: np.ndarray, y: np.ndarray, support: tuple[int, ...]) -> float:
    w = np.where(y > 0, 0.5 / (y > 0).mean(), 0.5 / (y < 0).mean())
    return HingeProblem(X, y.astype(float), w, len(y) ** -0.5).finish(np.array(support), 1e-9)[2]


def hinge_objective(X: np.ndarray, y: np.ndarray, fit: optimal.OptimalFit) -> float:
    w = np.where(y > 0, 0.5 / (y > 0).mean(), 0.5 / (y < 0).mean())
    ridge = float(fit.coef @ fit.coef) / (2 * len(y) ** -0.5)
    return ridge + float(w @ np.maximum(0, 1 - y * fit.decision_function(X)))


def test_finds_planted_neurons() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((500, 300))
    planted = np.array([17, 99, 250])
    t = X[:, planted].sum(axis=1) + 0.3 * rng.standard_normal(500)
    fit = fit_optimal(X / scale_for_optimal(X), np.where(t > 0.5, 1, -1), 3)
    assert fit.status == "optimal"
    assert fit.support.tolist() == planted.tolist()
    assert (fit.coef > 0).all()
    assert fit.n_fixed > 200


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("seed", "k", "share"), [(0, 1, 0.3), (1, 2, 0.3), (2, 2, 0.1), (3, 2, 0.5)])
def test_equals_exhaustive_search(solver: optimal.Solver, seed: int, k: int, share: float) -> None:
    X, y, _ = make_data(seed, n=150, share=share)
    best = min(value_of(X, y, support) for support in itertools.combinations(range(X.shape[1]), k))
    fit = fit_optimal(X, y, k, solver=solver)
    assert fit.status == "optimal"
    assert fit.objective == pytest.approx(best, rel=2e-5)
    assert fit.bound <= best * (1 + 1e-9)


def test_exhaustive_search_at_unit_scale_where_the_relaxation_is_weak() -> None:
    X, y, _ = make_data(5, n=120, d=16)
    X = X * 10
    values = [value_of(X, y, support) for support in itertools.combinations(range(16), 3)]
    for solver in ("tree", "gurobi"):
        fit = fit_optimal(X, y, 3, solver=solver)  # type: ignore[arg-type]
        assert fit.objective == pytest.approx(min(values), rel=2e-5)
        assert fit.bound <= min(values) * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_both_masters_agree(seed: int) -> None:
    X, y, _ = make_data(seed, d=120, planted=5, noise=2.0)
    tree, gurobi = (fit_optimal(X, y, 5, solver=solver) for solver in ("tree", "gurobi"))  # type: ignore[arg-type]
    assert tree.status == gurobi.status == "optimal"
    assert tree.objective == pytest.approx(gurobi.objective, rel=1.1e-5)
    assert max(tree.bound, gurobi.bound) <= min(tree.objective, gurobi.objective) * (1 + 1e-9)


def test_result_is_consistent() -> None:
    X, y, _ = make_data(1)
    fit = fit_optimal(X, y, 4)
    assert fit.objective == pytest.approx(hinge_objective(X, y, fit), rel=1e-12)
    assert fit.gap == pytest.approx((fit.objective - fit.bound) / fit.objective)
    assert fit.gap <= 1e-4
    assert fit.support.shape == fit.coef.shape == (4,)
    assert (np.diff(fit.support) > 0).all()
    with pytest.raises(dataclasses.FrozenInstanceError):
        fit.gap = 0.0  # type: ignore[misc]


def test_permuting_neurons_permutes_the_support() -> None:
    X, y, _ = make_data(2)
    order = np.random.default_rng(0).permutation(X.shape[1])
    plain, shuffled = fit_optimal(X, y, 3), fit_optimal(X[:, order], y, 3)
    assert sorted(order[shuffled.support]) == plain.support.tolist()
    assert shuffled.objective == pytest.approx(plain.objective, rel=1e-7)


def test_swapping_the_classes_turns_the_probe_round() -> None:
    X, y, _ = make_data(2)
    plain, turned = fit_optimal(X, y, 3), fit_optimal(X, -y, 3)
    assert turned.support.tolist() == plain.support.tolist()
    np.testing.assert_allclose(turned.coef, -plain.coef, rtol=1e-2, atol=1e-3)
    assert turned.objective == pytest.approx(plain.objective, rel=1e-7)


def test_objective_falls_along_the_path_and_beats_preselection() -> None:
    X, y, _ = make_data(3, d=150, planted=6, noise=1.5)
    few = np.argsort(-np.abs(X[y > 0].mean(axis=0) - X[y < 0].mean(axis=0)))[:15]
    path = fit_optimal_path(X, y, [5, 1, 2, 3, 4])
    assert [fit.support.size for fit in path] == [5, 1, 2, 3, 4]
    objectives = [fit.objective for fit in sorted(path, key=lambda fit: fit.support.size)]
    assert (np.diff(objectives) <= 0).all()
    for fit in path:
        k = fit.support.size
        assert fit.status == "optimal"
        assert fit.objective == pytest.approx(fit_optimal(X, y, k).objective, rel=1.1e-5)
        preselected = fit_optimal(X, y, k, candidates=few)
        assert set(preselected.support) <= set(few)
        assert fit.objective <= preselected.objective * (1 + 1e-5)
        assert fit.objective <= value_of(X, y, tuple(np.sort(few[:k]))) * (1 + 1e-9)


def test_warm_start_is_never_lost() -> None:
    X, y, _ = make_data(4, d=400, planted=6, noise=1.0)
    good = fit_optimal(X, y, 6)
    fit = fit_optimal(X, y, 6, warm_start=good.support, time_limit_seconds=1e-6)
    assert fit.objective <= good.objective * (1 + 1e-7)


def test_same_input_same_output() -> None:
    X, y, _ = make_data(6, d=100, noise=2.0)
    for solver in ("tree", "gurobi"):
        one, two = (fit_optimal(X, y, 4, solver=solver) for _ in range(2))  # type: ignore[arg-type]
        assert one.support.tolist() == two.support.tolist()
        assert (one.objective, one.bound, one.n_cuts, one.n_nodes) == (
            two.objective,
            two.bound,
            two.n_cuts,
            two.n_nodes,
        )
        assert one.coef.tolist() == two.coef.tolist()


@pytest.mark.parametrize("solver", SOLVERS)
def test_time_limit_gives_a_probe_and_a_valid_bound(solver: optimal.Solver) -> None:
    X, y, _ = make_data(7, n=400, d=600, planted=8, noise=3.0)
    X = X * 10  # a weak relaxation: hopeless in this time
    fit = fit_optimal(X, y, 6, time_limit_seconds=0.05, solver=solver)
    assert fit.status == "time_limit"
    assert fit.support.size == 6
    assert 0 <= fit.bound < fit.objective
    assert fit.gap > 1e-4
    assert fit.objective == pytest.approx(hinge_objective(X, y, fit))
    better = fit_optimal(X, y, 6, time_limit_seconds=1.5)
    assert fit.bound <= better.objective


def test_more_neurons_than_the_licence_takes() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((60, 2300)), np.where(np.arange(60) % 3 == 0, 1, -1)
    fit = fit_optimal(X, y, 4, solver="gurobi")
    assert fit.status == "size_limit"
    assert fit.n_candidates_left > 2000
    assert fit.bound <= fit.objective
    assert fit.support.size == 4


def test_many_neurons_are_fixed_before_the_search() -> None:
    rng = np.random.default_rng(1)
    X = rng.standard_normal((400, 5000), dtype=np.float32)
    t = X[:, :4].sum(axis=1) + 0.5 * rng.standard_normal(400)
    fit = fit_optimal(X / scale_for_optimal(X), np.where(t > 1, 1, -1), 4)
    assert fit.status == "optimal"
    assert fit.support.tolist() == [0, 1, 2, 3]


def test_an_error_in_the_callback_surfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, _ = make_data(5, d=16)

    def fail(*args: object) -> None:
        raise ZeroDivisionError("separation broke")

    monkeypatch.setattr(integer_model, "cut_at_support", fail)
    monkeypatch.setattr(integer_model, "cut_at_shares", fail)
    with pytest.raises(ZeroDivisionError, match="separation broke"):
        fit_optimal(X * 10, y, 3, solver="gurobi")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8])
def test_other_types(dtype: type) -> None:
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((200, 30)) * 20).astype(dtype)
    y = np.where(X[:, 3].astype(float) + X[:, 8] > 10, 1, -1)
    fit = fit_optimal(X, y, 2, gamma=1e-5)
    assert fit.support.tolist() == [3, 8]
    assert fit.coef.dtype == np.float64


def test_constant_and_duplicated_columns() -> None:
    X, y, _ = make_data(8, d=20)
    plain = fit_optimal(X, y, 3)
    hostile = np.column_stack([X, np.zeros(len(y)), np.full(len(y), 7.0), X[:, plain.support[0]]])
    fit = fit_optimal(hostile, y, 3)
    assert fit.status == "optimal"
    # the same neuron twice carries half the ridge, so its copy may only help
    assert fit.objective <= plain.objective * (1 + 1e-5)
    assert not set(fit.support) & {20, 21}
    nothing = fit_optimal(np.ones((30, 4)), np.where(np.arange(30) % 2, 1, -1), 2)
    assert nothing.status == "optimal"
    assert nothing.objective == pytest.approx(30.0)


def test_k_beyond_the_neurons_and_more_neurons_than_samples() -> None:
    X, y, _ = make_data(9, d=5)
    fit = fit_optimal(X, y, 9)
    assert fit.support.tolist() == [0, 1, 2, 3, 4]
    assert fit.status == "optimal"
    rng = np.random.default_rng(0)
    few = fit_optimal(rng.standard_normal((6, 50)), np.array([1, -1, 1, -1, 1, -1]), 8, time_limit_seconds=1)
    assert few.support.size == 8
    assert few.bound <= few.objective
    two = fit_optimal(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([1, -1]), 1)
    assert two.status == "optimal"


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_extreme_scales_stay_finite_and_valid(factor: float) -> None:
    X, y, _ = make_data(9, d=20)
    fit = fit_optimal(X * factor, y, 2, time_limit_seconds=3)
    best = min(value_of(X * factor, y, support) for support in itertools.combinations(range(20), 2))
    assert np.isfinite(fit.objective)
    assert fit.bound <= best * (1 + 1e-6)


@pytest.mark.parametrize("weights", [None, "own"])
def test_other_weights(weights: str | None) -> None:
    X, y, _ = make_data(1, n=200)
    own = np.random.default_rng(0).random(200) + 0.5 if weights else None
    fit = fit_optimal(X, y, 1, weights=own)
    w = np.ones(200) if own is None else own
    problem = HingeProblem(X, y.astype(float), w, 200**-0.5)
    assert fit.objective == pytest.approx(min(problem.finish(np.array([j]), 1e-9)[2] for j in range(40)), rel=2e-5)


def test_regression_equals_exhaustive_search() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((120, 25)) + 3.0
    y = X[:, 4] - 2 * X[:, 9] + rng.standard_normal(120) + 50.0
    gamma = 120**-0.5

    def objective(support: tuple[int, ...]) -> float:
        A = X[:, support] - X[:, support].mean(axis=0)
        t = y - y.mean()
        beta = np.linalg.solve(A.T @ A + np.eye(len(support)) / gamma, A.T @ t)
        return 0.5 * float(((t - A @ beta) ** 2).sum()) + float(beta @ beta) / (2 * gamma)

    best = min(itertools.combinations(range(25), 2), key=objective)
    for solver in ("tree", "gurobi"):
        fit = fit_optimal_regression(X, y, 2, solver=solver)  # type: ignore[arg-type]
        assert fit.status == "optimal"
        assert tuple(fit.support) == best
        assert fit.objective == pytest.approx(objective(best), rel=1e-9)
        residual = y - fit.decision_function(X)
        assert abs(residual.mean()) < 1e-9


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("seed", range(60))
def test_small_problems_of_every_kind_equal_exhaustive_search(seed: int) -> None:
    """Few or many samples, weak and strong ridge, rectified, rounded and duplicated neurons, both losses and solvers."""
    rng = np.random.default_rng(seed)
    n, d, k = int(rng.integers(4, 80)), int(rng.integers(2, 13)), int(rng.integers(1, 4))
    X = rng.standard_normal((n, d)) * 10 ** rng.uniform(-2.5, 1.5)
    X = [X, np.maximum(X, 0.0), np.round(X, 1), np.column_stack([X, X[:, 0]])][seed % 4]
    target = X[:, 0] + rng.random() * X[:, 1] + 2 * rng.random() * X.std() * rng.standard_normal(n)
    y = np.where(target > np.median(target), 1, -1)
    y[0], y[1] = 1, -1
    gamma = n**-0.5 * 10 ** rng.uniform(-1, 1)
    solver: optimal.Solver = "gurobi" if seed % 3 == 0 else "tree"
    problem: HingeProblem | SquaredProblem
    if seed % 5 == 0:
        noisy = target + rng.standard_normal(n)
        problem = SquaredProblem(X, noisy, gamma)
        fit = fit_optimal_regression(X, noisy, k, gamma=gamma, solver=solver)
    else:
        w = np.where(y > 0, 0.5 / (y > 0).mean(), 0.5 / (y < 0).mean())
        problem = HingeProblem(X, y.astype(float), w, gamma)
        fit = fit_optimal(X, y, k, gamma=gamma, solver=solver)
    supports = itertools.combinations(range(X.shape[1]), min(k, X.shape[1]))
    best = min(problem.finish(np.array(support), 1e-9)[2] for support in supports)
    assert fit.status == "optimal"
    assert fit.bound <= best * (1 + 1e-7)
    assert fit.objective <= best * (1 + 1.2e-5)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"X": np.full((4, 2), np.nan)}, DataError, "not finite"),
        ({"X": np.full((4, 2), np.inf)}, DataError, "not finite"),
        ({"X": np.ones(4)}, DataError, "shape"),
        ({"X": np.ones((4, 0))}, DataError, "shape"),
        ({"y": [1, 1, 1, 1]}, DataError, "one class"),
        ({"y": [0, 1, 0, -1]}, DataError, "0 may mean"),
        ({"y": [1, 2, 1, 2]}, DataError, "Label 2"),
        ({"y": [1, -1]}, DataError, "one label a row"),
        ({"y": [1, 1, np.nan, 1]}, DataError, "one class"),
        ({"y": [np.nan] * 4}, DataError, "no label"),
        ({"k": 0}, InputError, "k is 0"),
        ({"k": 1.5}, InputError, "k is 1.5"),
        ({"gamma": -1.0}, InputError, "gamma"),
        ({"gap_tolerance": 0.0}, InputError, "gap_tolerance"),
        ({"time_limit_seconds": 0.0}, InputError, "time_limit_seconds"),
        ({"candidates": [7]}, InputError, "candidates"),
        ({"warm_start": [-1]}, InputError, "warm_start"),
        ({"solver": "none"}, InputError, "solver"),
        ({"weights": "even"}, InputError, "weights"),
        ({"weights": [1, 1, 0, 1]}, DataError, "weights"),
    ],
)
def test_bad_input_is_refused(change: dict[str, object], error: type[Exception], match: str) -> None:
    arguments: dict[str, object] = {"X": np.eye(4), "y": [1, -1, 1, -1], "k": 1} | change
    with pytest.raises(error, match=match) as caught:
        fit_optimal(**arguments)  # type: ignore[arg-type]
    assert caught.value.remedy  # type: ignore[attr-defined]


def test_regression_refuses_a_constant_target() -> None:
    with pytest.raises(DataError, match="not all equal"):
        fit_optimal_regression(np.eye(4), np.ones(4), 1)
