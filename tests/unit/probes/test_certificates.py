"""What a study's certificates say: over how many neurons, at which ridge and unit, and whether that is what was solved."""

from __future__ import annotations

import functools

import gurobipy as gp
import numpy as np
import pytest

from sparse_probing.probes import METHODS
from sparse_probing.probes.optimal import fit_optimal
from sparse_probing.probes.results import ProbeFit
from sparse_probing.schemas import PROBE_FITS

N_NEURONS = 70
CLAIM = ["n_candidates", "n_neurons", "ridge", "unit_standard_deviations"]
METHOD = METHODS["optimal_sparse_probing"]


@functools.cache
def planted_pair() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X, y and split: neurons 66 and 68 make the label, and a random ranking puts one of them last."""
    rng = np.random.default_rng(3)
    X = rng.standard_normal((240, N_NEURONS))
    y = np.where(X[:, 66] + X[:, 68] > 0.8, 1, -1)
    return X * rng.uniform(0.5, 90, N_NEURONS), y, np.repeat([0, 1, 2], [144, 48, 48])


def fitted(**options: object) -> ProbeFit:
    X, y, split = planted_pair()
    return METHOD(X, y, split=split, k_values=(2,), ranking="random", **options)[0]  # type: ignore[arg-type]


def objective_by_gurobi(fit: ProbeFit) -> float:
    """The least λ/2 ‖β‖² + Σ w max(0, 1 − y(xβ + b)) on the fit's support, from its own row and the raw activations."""
    X, y, split = planted_pair()
    train = split == 0
    row, y = fit.row(), y[train].astype(float)
    values = X[train][:, fit.support]
    Z = (values - values.mean(axis=0)) / (row["unit_standard_deviations"] * values.std(axis=0))
    w = np.where(y > 0, 0.5 / (y > 0).mean(), 0.5 / (y < 0).mean())
    with gp.Env(params={"OutputFlag": 0}) as env, gp.Model(env=env) as model:
        beta = model.addMVar(Z.shape[1], lb=-gp.GRB.INFINITY)
        b = model.addMVar(1, lb=-gp.GRB.INFINITY)
        loss = model.addMVar(len(y))
        model.addConstr(loss + (Z * y[:, None]) @ beta + y[:, None] @ b >= 1)
        model.setObjective(0.5 * row["ridge"] * (beta @ beta) + w @ loss, gp.GRB.MINIMIZE)
        model.Params.BarConvTol = 1e-10
        model.optimize()
        assert model.Status == gp.GRB.OPTIMAL
        return float(model.ObjVal)


def test_the_whole_layer_is_searched_unless_candidates_are_asked_for() -> None:
    whole, few = fitted(), fitted(n_candidates=50)
    assert sorted(whole.support) == [66, 68]
    assert sorted(few.support) != [66, 68]
    assert whole.status == few.status == "optimal"
    assert few.objective > whole.objective * 1.01  # type: ignore[operator]
    assert [(fit.n_candidates, fit.n_neurons, fit.ranking) for fit in (whole, few)] == [
        (N_NEURONS, N_NEURONS, None),
        (50, N_NEURONS, "random"),
    ]
    more = fitted(n_candidates=N_NEURONS + 5)
    assert (more.n_candidates, more.ranking, more.objective) == (N_NEURONS, None, whole.objective)


@pytest.mark.parametrize("options", [{}, {"n_candidates": 50}])
def test_ridge_and_unit_are_those_that_the_objective_has(options: dict[str, int]) -> None:
    fit = fitted(**options)
    assert fit.ridge == pytest.approx(144**0.5)
    assert fit.unit_standard_deviations == 10
    assert fit.objective == pytest.approx(objective_by_gurobi(fit), rel=1e-6)


def test_a_tuned_ridge_is_the_one_of_the_row() -> None:
    X, y, split = planted_pair()
    seen = set()
    for fit in METHODS["osp_tuning"](X, y, split=split, k_values=(1, 2)):
        assert fit.message is not None
        factor = float(fit.message.split()[2])
        seen.add(factor)
        assert fit.ridge == pytest.approx(12 / factor)
        assert fit.objective == pytest.approx(objective_by_gurobi(fit), rel=1e-6)
    assert seen - {1.0}


def test_units_of_activations_change_no_claim() -> None:
    X, y, split = planted_pair()
    blown = METHOD(X * np.random.default_rng(0).uniform(0.01, 100, N_NEURONS) + 7, y, split=split, k_values=(2,))[0]
    plain = fitted()
    assert sorted(blown.support) == sorted(plain.support)
    assert blown.objective == pytest.approx(plain.objective, rel=1e-6)
    assert [blown.row()[name] for name in CLAIM] == [plain.row()[name] for name in CLAIM]


def test_pruned_neurons_are_no_candidates() -> None:
    X, y, split = planted_pair()
    fits = METHODS["osp_iterative_pruning"](X, y, split=split, k_values=(2,))
    assert [fit.n_candidates for fit in fits] == list(range(N_NEURONS, N_NEURONS - 10, -1))
    assert {fit.n_neurons for fit in fits} == {N_NEURONS}
    few = METHODS["osp_iterative_pruning"](X, y, split=split, k_values=(2,), n_candidates=50)
    assert [(fit.n_candidates, fit.ranking) for fit in few] == [(50, "mean_dif")] * 10


def test_filters_are_compared_with_the_whole_layer() -> None:
    X, y, split = planted_pair()
    fits = METHODS["test_osp_heuristic_filtering"](X, y, split=split, k_values=(2,))
    assert [(fit.step, fit.n_candidates, fit.ranking) for fit in fits] == [
        (0, 25, "mean_dif"),
        (1, 50, "mean_dif"),
        (2, N_NEURONS, None),
    ]
    assert sorted(fits[-1].support) == [66, 68]


def test_a_claim_says_over_how_many_neurons_and_on_which_scale() -> None:
    shown = repr(fitted(n_candidates=50))
    assert "k = 2 of 50 candidates among 70 neurons" in shown
    assert "at ridge 12 on activations in units of 10 standard deviations" in shown
    X, y, split = planted_pair()
    plain = METHODS["heuristic_sparsity_sweep"](X, y, split=split, k_values=(2,))[0]
    assert "ridge" not in repr(plain)
    assert [plain.row()[name] for name in CLAIM[1:]] == [None, None, None]
    best = fit_optimal(X, y, 2, candidates=np.arange(60))
    assert "2 of 60 candidates among 70 neurons" in repr(best)
    assert "ridge 15.49 on activations in units of 10 standard deviations" in repr(best)
    assert list(best.table().select(CLAIM).to_pylist()[0].values()) == pytest.approx([60, 70, 240**0.5, 10])
    assert best.table().schema.field("ridge") == PROBE_FITS.field("ridge")
    raw = fit_optimal(X, y, 1, standardise=False, time_limit_seconds=1, gamma=0.25)
    assert (raw.unit_standard_deviations, raw.ridge, raw.n_candidates) == (None, 4.0, 70)
    assert "ridge 4 on activations as handed in" in repr(raw)
