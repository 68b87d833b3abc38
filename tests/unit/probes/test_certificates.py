"""What a study's certificates say, and whether it is so: neurons searched, ridge and unit, and audits by another solver."""

from __future__ import annotations

import functools
import itertools
import sys
from dataclasses import replace

import gurobipy as gp
import numpy as np
import pytest

from sparse_probing.probes import METHODS, optimal
from sparse_probing.probes.optimal import fit_optimal
from sparse_probing.probes.optimal.audits import audit_hinge
from sparse_probing.probes.optimal.hinge_dual import HingeProblem
from sparse_probing.probes.results import ProbeFit
from sparse_probing.probes.solvers.logistic import plain_scaled
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


# --- audits -----------------------------------------------------------------------------------------------------------

RIDGE = 150**0.5
GUROBI = "gurobi " + ".".join(map(str, gp.gurobi.version()))


def scaled_data(seed: int, n: int = 150, d: int = 14) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) + 0.7 * rng.standard_normal((n, 2)) @ rng.standard_normal((2, d))
    t = X[:, :3].sum(axis=1) + rng.standard_normal(n)
    return plain_scaled(X).Z, np.where(t > np.quantile(t, 0.7), 1.0, -1.0)


def ranked_supports(Z: np.ndarray, y: np.ndarray, k: int) -> list[tuple[float, tuple[int, ...]]]:
    """Objective and neurons of every support, best first."""
    w = np.where(y > 0, 0.5 / (y > 0).mean(), 0.5 / (y < 0).mean())
    problem = HingeProblem(Z, y, w, 1 / RIDGE)
    supports = itertools.combinations(range(Z.shape[1]), k)
    return sorted((problem.finish(np.array(support), 1e-9)[2], support) for support in supports)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 2, 3])
def test_an_audit_tells_how_far_a_support_is_from_the_best_of_all(seed: int, k: int) -> None:
    Z, y = scaled_data(seed)
    every = ranked_supports(Z, y, k)
    best = every[0][0]
    for place in (0, 1, len(every) // 2, len(every) - 1):
        objective, support = every[place]
        audit = audit_hinge(Z, y, np.array(support), objective, ridge=RIDGE)
        assert audit.audited_by == GUROBI
        assert audit.audit_gap == pytest.approx((objective - best) / objective, abs=3e-6)
        # Only what cannot be in a better support is left out.
        assert audit.n_left >= len(set(support) | (set(every[0][1]) if place else set()))


def test_an_objective_that_the_support_does_not_have_is_found_out() -> None:
    Z, y = scaled_data(0)
    objective, support = ranked_supports(Z, y, 2)[0]
    for factor in (0.9, 0.999, 1.001, 1.1):
        audit = audit_hinge(Z, y, np.array(support), factor * objective, ridge=RIDGE)
        assert audit.audit_gap == pytest.approx(1 - 1 / factor, abs=3e-6)


def test_an_audit_depends_on_its_input_alone() -> None:
    Z, y = scaled_data(1, d=60)
    support = np.array([0, 1, 5])
    first = audit_hinge(Z, y, support, 120.0, ridge=RIDGE)
    assert audit_hinge(Z, y, support, 120.0, ridge=RIDGE) == first
    order = np.random.default_rng(0).permutation(60)
    turned = audit_hinge(Z[:, order], -y, np.flatnonzero(np.isin(order, support)), 120.0, ridge=RIDGE)
    assert turned.audit_gap == pytest.approx(first.audit_gap, abs=3e-6)


def test_what_cannot_be_audited_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    wide, y = plain_scaled(rng.standard_normal((60, 2300))).Z, np.where(np.arange(60) % 3 == 0, 1.0, -1.0)
    audit = audit_hinge(wide, y, np.arange(4), 60.0, ridge=60**0.5)
    assert (audit.audited_by, audit.audit_gap) == (None, None)
    assert audit.message == f"not audited: {audit.n_left:,} neurons are left, Gurobi's licence takes 1,999"
    assert audit.n_left > 1999
    Z, y = scaled_data(2, d=60)
    audit = audit_hinge(Z * 10, y, np.arange(5), 150.0, ridge=RIDGE, max_cuts=3)
    assert audit.message == f"not audited: Gurobi's model of {audit.n_left} neurons was not solved within 3 cuts"
    monkeypatch.setitem(sys.modules, "gurobipy", None)
    audit = audit_hinge(Z, y, np.arange(2), 150.0, ridge=RIDGE)
    assert (audit.audited_by, audit.message) == (None, "not audited: gurobipy is not installed.")


EXACT = [name for name, method in METHODS.items() if method.is_optimal]


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("options", [{}, {"n_candidates": 30}])
def test_certificates_of_every_exact_method_are_confirmed(name: str, options: dict[str, int]) -> None:
    X, y, split = planted_pair()
    fits = METHODS[name](X, y, split=split, k_values=(1, 3), audit=[3], **options)  # type: ignore[arg-type]
    plain = METHODS[name](X, y, split=split, k_values=(1, 3), **options)  # type: ignore[arg-type]
    assert {fit.audited_by for fit in fits if fit.k == 3} == {GUROBI}
    for fit, other in zip(fits, plain, strict=True):
        assert replace(fit, audited_by=None, audit_gap=None, seconds=0).row() == replace(other, seconds=0).row()
        if fit.k == 1:
            assert fit.audited_by is fit.audit_gap is None
        else:
            assert fit.audit_gap is not None
            assert fit.gap is not None
            assert -1e-6 < fit.audit_gap < fit.gap + 1e-6
            assert f"audited by {GUROBI}, gap" in repr(fit)


def test_the_methods_with_a_certificate() -> None:
    assert EXACT == ["optimal_sparse_probing", "osp_tuning", "osp_iterative_pruning", "test_osp_heuristic_filtering"]


def test_a_search_that_errs_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = optimal.fit_optimal_path

    def blind(Z: np.ndarray, *rest: object, **options: object) -> list[optimal.OptimalFit]:
        """The optimum without neuron 66, called the optimum."""
        Z = Z.copy()
        Z[:, 66] = 0
        return honest(Z, *rest, **options)  # type: ignore[arg-type]

    assert abs(fitted(audit=True).audit_gap) < 1e-6  # type: ignore[arg-type]
    monkeypatch.setattr(optimal, "fit_optimal_path", blind)
    fit = fitted(audit=True)
    assert fit.status == "optimal"
    assert fit.audit_gap > 1e-3 > fit.gap  # type: ignore[operator]


def test_a_fit_without_a_proof_has_no_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = optimal.fit_optimal_path

    def hasty(*rest: object, **options: object) -> list[optimal.OptimalFit]:
        return [replace(fit, status="time_limit", gap=0.5) for fit in honest(*rest, **options)]  # type: ignore[arg-type]

    monkeypatch.setattr(optimal, "fit_optimal_path", hasty)
    fit = fitted(audit=True)
    assert (fit.status, fit.audited_by, fit.message) == ("time_limit", None, "not audited: no optimum was proved")


@pytest.mark.parametrize("name", EXACT)
def test_the_solver_asked_for_searches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, asked = optimal.fit_optimal_path, []

    def path(*rest: object, **options: object) -> list[optimal.OptimalFit]:
        asked.append(options["solver"])
        return honest(*rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(optimal, "fit_optimal_path", path)
    X, y, split = planted_pair()
    for solver in ("tree", "gurobi"):
        fits = METHODS[name](X, y, split=split, k_values=(2,), solver=solver)  # type: ignore[arg-type]
        assert {fit.status for fit in fits} == {"optimal"}
        assert set(asked) == {solver}
        asked.clear()


def test_more_neurons_than_gurobi_takes_are_a_status_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = optimal.fit_optimal_path

    def full(*rest: object, **options: object) -> list[optimal.OptimalFit]:
        assert options["solver"] == "gurobi"
        found = honest(*rest, **options)  # type: ignore[arg-type]
        return [replace(fit, status="size_limit", n_candidates_left=2034, gap=0.5) for fit in found]

    monkeypatch.setattr(optimal, "fit_optimal_path", full)
    fit = fitted(solver="gurobi")
    assert (fit.status, fit.converged, fit.gap) == ("size_limit", False, 0.5)
    assert fit.message == "2,034 neurons were left to Gurobi, more than its licence takes; solver 'tree' has no limit."
