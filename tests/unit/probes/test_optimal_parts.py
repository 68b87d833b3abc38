"""The inner problem against an independent solver, the cuts against what they claim, and the fixing of neurons."""

from __future__ import annotations

import itertools

import gurobipy as gp
import numpy as np
import pytest

from sparse_probing.probes.optimal.cuts import Cut, fix, make_cut, solve_by_columns
from sparse_probing.probes.optimal.hinge_dual import HingeProblem, _best_intercept
from sparse_probing.probes.optimal.incumbents import Incumbent, complete, improve_by_exchange
from sparse_probing.probes.optimal.interior_point import repair, solve_relaxation, top_sum
from sparse_probing.probes.optimal.squared_dual import SquaredProblem
from sparse_probing.probes.optimal.tree import Tree

NOTHING = np.array([], dtype=np.intp)


def make_problem(seed: int, n: int = 150, d: int = 12, scale: float = 0.3, share: float = 0.3) -> HingeProblem:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) * scale
    t = X[:, :3].sum(axis=1) + 0.3 * scale * rng.standard_normal(n)
    y = np.where(t > np.quantile(t, 1 - share), 1.0, -1.0)
    w = np.where(y > 0, 0.5 / (y > 0).mean(), 0.5 / (y < 0).mean())
    return HingeProblem(X, y, w, n**-0.5)


def dual_by_gurobi(problem: HingeProblem, chosen: np.ndarray) -> float:
    """max Σ u − (γ/2) Σ g², with g as variables of their own."""
    with gp.Env(params={"OutputFlag": 0}) as env, gp.Model(env=env) as model:
        u = model.addMVar(problem.y.size, lb=0.0, ub=problem.w)
        g = model.addMVar(len(chosen), lb=-gp.GRB.INFINITY)
        model.addConstr(problem.Z[chosen] @ u == g)
        model.addConstr(problem.y @ u == 0)
        model.setObjective(u.sum() - 0.5 * problem.gamma * (g @ g), gp.GRB.MAXIMIZE)
        model.Params.BarConvTol = 1e-10
        model.optimize()
        assert model.Status == gp.GRB.OPTIMAL
        return float(model.ObjVal)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [0.05, 0.3, 3.0])
def test_probe_on_a_support_has_the_value_that_gurobi_finds(seed: int, scale: float) -> None:
    problem = make_problem(seed, scale=scale, share=[0.05, 0.2, 0.3, 0.5, 0.9][seed])
    chosen = np.arange(4)
    solved = problem.relax(chosen, NOTHING, 0, tolerance=1e-8)
    expected = dual_by_gurobi(problem, chosen)
    assert solved.bound == pytest.approx(expected, rel=1e-6)
    assert solved.value == pytest.approx(expected, rel=1e-6)
    assert solved.bound <= solved.value + 1e-9
    _, _, objective = problem.finish(chosen, 1e-9)
    assert objective == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("scale", [0.05, 0.3, 3.0])
def test_dual_points_are_feasible(scale: float) -> None:
    problem = make_problem(3, scale=scale)
    u = problem.relax(NOTHING, np.arange(12), 3, tolerance=1e-6).u
    assert (u >= 0).all()
    assert (u <= problem.w).all()
    assert abs(float(problem.y @ u)) <= 1e-12 * problem.w.sum()


def test_repair_makes_anything_feasible() -> None:
    rng = np.random.default_rng(0)
    y = np.where(rng.random(50) < 0.2, 1.0, -1.0)
    w = rng.random(50) + 0.1
    u = repair(rng.standard_normal(50) * 3, y, w)
    assert (u >= 0).all()
    assert (u <= w).all()
    assert abs(float(y @ u)) < 1e-12


@pytest.mark.parametrize("n_fixed", [0, 2])
def test_relaxation_is_the_minimum_over_shares(n_fixed: int) -> None:
    """A convex minimum: no feasible s does better than the bound, and random mixtures come close to the shares."""
    problem = make_problem(1)
    k_free = 3
    relaxed = solve_relaxation(
        problem.Z, problem.y, problem.w, problem.gamma, n_fixed=n_fixed, k_free=k_free, tolerance=1e-7
    )
    assert relaxed.value - relaxed.bound <= 1e-6 * relaxed.value
    assert relaxed.s[n_fixed:].sum() == pytest.approx(k_free, abs=1e-6)
    assert (relaxed.s[:n_fixed] == 1).all()
    rng = np.random.default_rng(0)
    for _ in range(20):
        other = relaxed.s.copy()
        other[n_fixed:] = rng.dirichlet(np.ones(12 - n_fixed)) * k_free
        other[n_fixed:] = np.minimum(other[n_fixed:], 1.0)
        mixed = 0.9 * relaxed.s + 0.1 * other
        chosen = np.arange(12)
        u = problem.dual_at(chosen, mixed, tolerance=1e-8)
        at_mixed = float(u.sum()) - float(mixed @ problem.gains(u))
        assert at_mixed >= relaxed.bound - 1e-6 * relaxed.value


def test_every_cut_lies_below_the_value_at_any_support() -> None:
    problem = make_problem(2)
    rng = np.random.default_rng(5)
    points = [problem.relax(NOTHING, np.arange(12), 2, tolerance=1e-3).u, problem.middle()]
    points += [problem.relax(rng.choice(12, 3, replace=False), NOTHING, 0, tolerance=1e-2).u for _ in range(5)]
    points += [repair(rng.random(150) * problem.w, problem.y, problem.w) for _ in range(5)]
    cuts = [make_cut(problem, u) for u in points]
    for support in itertools.combinations(range(12), 3):
        value = dual_value(problem, np.array(support))
        for cut in cuts:
            assert cut.base - cut.gains[list(support)].sum() <= value + 1e-7


def dual_value(problem: HingeProblem, support: np.ndarray) -> float:
    return problem.relax(support, NOTHING, 0, tolerance=1e-8).value


def test_squared_relaxation_agrees_with_a_grid_of_supports() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((80, 10))
    y = X[:, 0] - X[:, 1] + 0.5 * rng.standard_normal(80)
    problem = SquaredProblem(X, y, 80**-0.5)
    values = {s: problem.finish(np.array(s), 0.0)[2] for s in itertools.combinations(range(10), 2)}
    relaxed = problem.relax(NOTHING, np.arange(10), 2, tolerance=1e-7)
    assert relaxed.value - relaxed.bound <= 1e-6 * relaxed.value
    assert relaxed.bound <= min(values.values()) + 1e-9
    for support, value in values.items():
        cut = make_cut(problem, relaxed.u)
        assert cut.base - cut.gains[list(support)].sum() <= value + 1e-9


def test_pricing_reaches_the_relaxation_over_all_neurons() -> None:
    problem = make_problem(4, d=200)
    everything = np.arange(200)
    direct = problem.relax(NOTHING, everything, 2, tolerance=1e-7)
    # the least likely first: only pricing can bring the right ones in
    gains = problem.gains(problem.middle())
    priced = solve_by_columns(problem, NOTHING, everything, 2, -gains, tolerance=1e-7)
    assert priced.rounds > 1
    assert priced.bound == pytest.approx(direct.bound, rel=1e-5)


def test_fixing_keeps_every_support_below_the_threshold() -> None:
    problem = make_problem(6)
    k = 2
    values = {s: dual_value(problem, np.array(s)) for s in itertools.combinations(range(12), k)}
    cut = make_cut(problem, problem.relax(NOTHING, np.arange(12), k, tolerance=1e-6).u)
    ordered = sorted(values.values())
    fixed_something = False
    for threshold in (ordered[0] + 1e-6, ordered[3], ordered[20]):
        out, must = fix([cut], k, threshold)
        fixed_something |= bool(out.any() or must.any())
        for support, value in values.items():
            if value < threshold - 1e-6:
                assert not out[list(support)].any()
                assert set(np.flatnonzero(must)) <= set(support)
    assert fixed_something


def test_fixing_with_a_hand_made_cut() -> None:
    cut = Cut(10.0, np.array([5.0, 1.0, 0.9, 0.0]))  # k = 2: bound 4
    out, must = fix([cut], 2, threshold=4.5)
    assert out.tolist() == [False, False, False, True]
    assert must.tolist() == [True, False, False, False]


def test_exchange_finds_the_best_pair_from_the_worst() -> None:
    problem = make_problem(7)
    values = {s: dual_value(problem, np.array(s)) for s in itertools.combinations(range(12), 2)}
    incumbent = Incumbent(problem, 2, 1e-8)
    improve_by_exchange(incumbent, max(values, key=values.__getitem__), trials=30, keep_going=lambda: True)
    assert incumbent.value <= min(values.values()) * (1 + 1e-7)
    assert len(incumbent.tried) < len(values)


def test_complete_fills_up_and_cuts_down() -> None:
    gains = np.array([3.0, 1.0, 2.0, 0.0])
    assert complete([3], gains, 2).tolist() == [0, 3]
    assert complete([0, 1, 2], gains, 2).tolist() == [0, 2]


def test_intercept_is_exact() -> None:
    rng = np.random.default_rng(2)
    y = np.where(rng.random(60) < 0.3, 1.0, -1.0)
    w, scores = rng.random(60) + 0.1, rng.standard_normal(60)

    def loss(b: float) -> float:
        return float(w @ np.maximum(0.0, 1.0 - y * (scores + b)))

    best = min(loss(float(b)) for b in y - scores)  # the minimum is at a kink
    assert loss(_best_intercept(scores, y, w)) == pytest.approx(best, rel=1e-12)


def test_top_sum() -> None:
    values = np.array([1.0, 4.0, 2.0])
    assert [top_sum(values, k) for k in (0, 1, 2, 3, 9)] == [0.0, 4.0, 6.0, 7.0, 7.0]


def test_a_coarse_search_claims_no_more_than_it_proved() -> None:
    """With a wide slack the search may stop at a poor support, but its bound has to stay below the best."""
    stopped_short = False
    for seed in range(6):
        problem = make_problem(seed, scale=1.0)
        values = {s: dual_value(problem, np.array(s)) for s in itertools.combinations(range(12), 2)}
        incumbent = Incumbent(problem, 2, 1e-8)
        for support in list(values)[::7]:
            incumbent.offer(support)
        tree = Tree(problem, incumbent, slack=0.3, tolerance=1e-6, keep_going=lambda: True)
        result = tree.search(NOTHING, np.arange(12), problem.gains(problem.middle()))
        assert result.finished
        assert result.bound <= min(values.values()) * (1 + 1e-9)
        assert result.bound >= 0.7 * incumbent.value * (1 - 1e-9)
        stopped_short |= incumbent.value > min(values.values()) * 1.001
    assert stopped_short
