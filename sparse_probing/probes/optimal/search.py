"""The best k neurons there are, with a proof: cardinality-constrained probes solved to a certified gap.

This module has the public functions and the order of work. The numerical parts are ``interior_point``
(relaxation), ``hinge_dual`` and ``squared_dual`` (losses), ``cuts`` (bounds, fixing), ``incumbents`` (local search), ``tree``
(branch and bound) and ``integer_model`` (Gurobi). No metrics, no splits: arrays in, a frozen result out.

Long because the searches for labels and for targets go through the same steps, which are read in order.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from threadpoolctl import threadpool_limits

from sparse_probing.errors import DataError
from sparse_probing.probes.labelling import Labels, label_classes, row_mask
from sparse_probing.probes.optimal import integer_model
from sparse_probing.probes.optimal.cuts import Cut, Index, Pool, Problem, fix, make_cut, solve_by_columns
from sparse_probing.probes.optimal.hinge_dual import HingeProblem
from sparse_probing.probes.optimal.incumbents import Incumbent, complete, improve_by_exchange
from sparse_probing.probes.optimal.inputs import (
    Weights,
    check_options,
    checked_data,
    checked_k,
    checked_matrix,
    checked_neurons,
    sample_weights,
)
from sparse_probing.probes.optimal.interior_point import Array
from sparse_probing.probes.optimal.optimal_fit import OptimalFit as OptimalFit
from sparse_probing.probes.optimal.optimal_fit import OptimalFits as OptimalFits
from sparse_probing.probes.optimal.squared_dual import SquaredProblem
from sparse_probing.probes.optimal.tree import Tree
from sparse_probing.probes.solvers.logistic import UNIT_STANDARD_DEVIATIONS, plain_scaled

Solver = Literal["tree", "gurobi"]

INNER_TOLERANCE = 1e-7
FINAL_TOLERANCE = 1e-9
NODE_TOLERANCE = 3e-6


def fit_optimal(
    X: ArrayLike,
    y: Labels,
    k: int,
    *,
    labelled: ArrayLike | None = None,
    standardise: bool = True,
    weights: Weights = "balanced",
    gamma: float | None = None,
    time_limit_seconds: float = 60.0,
    gap_tolerance: float = 1e-4,
    candidates: ArrayLike | None = None,
    warm_start: ArrayLike | None = None,
    solver: Solver = "tree",
    seed: int = 0,
) -> OptimalFit:
    """Fit the probe with weighted hinge loss and ridge on the best k neurons of all.

    Minimises ``‖β‖²/(2γ) + Σ_i w_i max(0, 1 − y_i (x_iᵀβ + b))`` over β with at most k nonzero entries, and b.

    Parameters
    ----------
    X:
        (n_samples, n_neurons) finite activations of any type, in any units. The probe is fitted on every labelled row:
        pass the training rows alone, and keep the others for `OptimalFit.predict`.
    y:
        (n_samples,) of two classes, both present: booleans, 0 and 1, or -1 and +1; NaN for rows without a label.
    labelled:
        (n_samples,) bool: the rows whose y is a label; all of them if absent.
    standardise:
        Fit on activations less their mean, divided by ten times their standard deviation over the labelled rows, as in
        Gurnee et al. (2023). The ridge penalty depends on the scale, and the default ``gamma`` is meant for this
        one; at unit scale the relaxation is weak and few fits can be certified. False uses X unchanged. Coefficients and predictions
        are in units of X either way.
    k:
        Largest number of neurons in the support; all neurons if k exceeds their number.
    weights:
        ``balanced`` (``1/(2 · share of the sample's class)``), None (all one) or (n_samples,) positive weights.
    gamma:
        Inverse ridge penalty; ``n_samples ** -0.5`` by default.
    time_limit_seconds:
        Wall time; when it is reached, the best probe so far is returned with its gap.
    gap_tolerance:
        Relative gap at which a probe counts as optimal.
    candidates:
        Column numbers of the neurons to choose from; all by default. ``support`` holds column numbers of X in any case.
    warm_start:
        A support to start from, of any size.
    solver:
        ``tree``: branch and bound on solved relaxations. ``gurobi``: an integer model with lazy cuts.
    seed:
        Seed of Gurobi; the tree search is deterministic.

    Returns
    -------
    OptimalFit
        The probe, what is proved about it, and its predictions.

    Raises
    ------
    DataError
        If X or y hold something no probe can be fitted to.
    InputError
        If a parameter is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from sparse_probing import fit_optimal
    >>> X = np.random.default_rng(0).standard_normal((300, 20))
    >>> y = X[:, 3] + X[:, 11] > 0
    >>> fit = fit_optimal(X, y, 2)
    >>> fit.support.tolist(), fit.status, fit.gap <= 1e-4
    ([3, 11], 'optimal', True)
    >>> bool(fit.predict(X[:1])[0]) == bool(y[0])
    True

    Source: Bertsimas, Pauphilet and Van Parys, *Sparse classification: a scalable discrete optimization perspective*,
    Machine Learning 110 (2021): the dual, the cut and the relaxation.
    """
    return fit_optimal_path(
        X,
        y,
        [k],
        labelled=labelled,
        standardise=standardise,
        weights=weights,
        gamma=gamma,
        time_limit_seconds=time_limit_seconds,
        gap_tolerance=gap_tolerance,
        candidates=candidates,
        warm_start=warm_start,
        solver=solver,
        seed=seed,
    )[0]


def fit_optimal_path(
    X: ArrayLike,
    y: Labels,
    ks: Iterable[int],
    *,
    labelled: ArrayLike | None = None,
    standardise: bool = True,
    weights: Weights = "balanced",
    gamma: float | None = None,
    time_limit_seconds: float = 60.0,
    gap_tolerance: float = 1e-4,
    candidates: ArrayLike | None = None,
    warm_start: ArrayLike | None = None,
    solver: Solver = "tree",
    seed: int = 0,
) -> OptimalFits:
    """Fit `fit_optimal` for several k, in the order given; the time limit is for each.

    Work goes upwards in k: each best support, with one neuron more, starts the next, so the objective never rises with
    k; the cuts of one k serve the others. Parameters and errors as in `fit_optimal`.

    Parameters
    ----------
    ks:
        Neurons allowed in each fit.

    Returns
    -------
    OptimalFits
        A list with an `OptimalFit` for each k.

    Examples
    --------
    >>> import numpy as np
    >>> from sparse_probing import fit_optimal_path
    >>> X = np.random.default_rng(0).standard_normal((300, 20))
    >>> y = X[:, 3] + X[:, 11] > 0
    >>> fits = fit_optimal_path(X, y, [1, 2])
    >>> fits[1].support.tolist(), fits[1].status
    ([3, 11], 'optimal')
    >>> fits[1].objective <= fits[0].objective
    True
    """
    began = time.perf_counter()
    ks = [checked_k(k) for k in ks]
    check_options(time_limit_seconds, gap_tolerance, gamma, solver)
    matrix, labels, kept = checked_data(X, y, labelled)
    chosen = checked_neurons(candidates, matrix.shape[1], "candidates")
    if chosen is None:
        chosen = np.arange(matrix.shape[1])
    start = checked_neurons(warm_start, matrix.shape[1], "warm_start")
    w = sample_weights(weights, labels, kept)
    if gamma is None:
        gamma = labels.size**-0.5
    n_neurons = matrix.shape[1]
    matrix, units = _standardised(matrix if chosen.size == n_neurons else matrix[:, chosen], standardise, n_neurons)
    problem = HingeProblem(matrix, labels, w, gamma)
    seeds: list[Index] = [] if start is None else [np.flatnonzero(np.isin(chosen, start))]
    options = _Options(time_limit_seconds, gap_tolerance, solver, seed)
    fits = _fit_path(problem, chosen, ks, seeds, options, began)
    return OptimalFits(replace(units.restore(fit, chosen), classes=label_classes(y)) for fit in fits)


def fit_optimal_regression(
    X: ArrayLike,
    y: ArrayLike,
    k: int,
    *,
    labelled: ArrayLike | None = None,
    standardise: bool = True,
    gamma: float | None = None,
    time_limit_seconds: float = 60.0,
    gap_tolerance: float = 1e-4,
    candidates: ArrayLike | None = None,
    warm_start: ArrayLike | None = None,
    solver: Solver = "tree",
    seed: int = 0,
) -> OptimalFit:
    """Fit ridge regression on the best k neurons of all.

    Minimises ``½ Σ_i (y_i − x_iᵀβ − b)² + ‖β‖²/(2γ)`` over β with at most k nonzero entries, and b. ``y`` is a (n_samples,)
    target, finite and not constant, or NaN for rows without one; everything else as in :func:`fit_optimal`.

    Source: Bertsimas and Van Parys, *Sparse high-dimensional regression*, Annals of Statistics 48 (2020).
    """
    began = time.perf_counter()
    k = checked_k(k)
    check_options(time_limit_seconds, gap_tolerance, gamma, solver)
    matrix = checked_matrix(X)
    target = np.asarray(y, dtype=np.float64)
    if target.shape == (matrix.shape[0],):
        known = row_mask(labelled, target.shape) & ~np.isnan(target)
        matrix, target = (matrix, target) if known.all() else (matrix[known], target[known])
    if target.shape != (matrix.shape[0],) or not np.isfinite(target).all() or np.ptp(target) == 0:
        raise DataError(
            f"y has shape {target.shape} beside X of {matrix.shape}; expected one finite target a row, not all equal.",
            remedy="Align targets and activations by row, and leave out a feature without variation.",
        )
    chosen = checked_neurons(candidates, matrix.shape[1], "candidates")
    if chosen is None:
        chosen = np.arange(matrix.shape[1])
    start = checked_neurons(warm_start, matrix.shape[1], "warm_start")
    matrix, units = _standardised(matrix[:, chosen], standardise, matrix.shape[1])
    problem = SquaredProblem(matrix, target, target.size**-0.5 if gamma is None else gamma)
    seeds: list[Index] = [] if start is None else [np.flatnonzero(np.isin(chosen, start))]
    fit = _fit_path(problem, chosen, [k], seeds, _Options(time_limit_seconds, gap_tolerance, solver, seed), began)[0]
    return units.restore(fit, chosen)


def scale_for_optimal(X: ArrayLike) -> Array:
    """(n_neurons,) ten times the standard deviation of each column, one for constant columns: what to divide X by.

    Computed on training rows, applied to all; `fit_optimal` does so by itself unless told not to. This is the scale at
    which the default ``gamma`` regularises as in Gurnee et al. (2023), *Finding Neurons in a Haystack*.
    """
    scale = 10.0 * np.asarray(X, dtype=np.float64).std(axis=0)
    return np.where(scale > 0, scale, 1.0)


@dataclass(frozen=True, eq=False)
class _Units:
    """How fitted columns came from the `n_neurons` of X: ``(X - mean) * factor``, (n_candidates,) each."""

    mean: Array
    factor: Array
    n_neurons: int
    standard_deviations: float | None

    def restore(self, fit: OptimalFit, candidates: Index) -> OptimalFit:
        """The same fit with coefficients in units of X."""
        at = np.searchsorted(candidates, fit.support)
        coef = fit.coef_scaled * self.factor[at]
        return replace(
            fit,
            coef=coef,
            intercept=fit.intercept - float(coef @ self.mean[at]),
            n_neurons=self.n_neurons,
            unit_standard_deviations=self.standard_deviations,
        )


def _standardised(matrix: Array, standardise: bool, n_neurons: int) -> tuple[Array, _Units]:
    if not standardise:
        return matrix, _Units(np.zeros(matrix.shape[1]), np.ones(matrix.shape[1]), n_neurons, None)
    scaled = plain_scaled(matrix)
    return scaled.Z, _Units(scaled.mean, scaled.scale, n_neurons, UNIT_STANDARD_DEVIATIONS)


# --- order of work ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Options:
    time_limit_seconds: float
    gap_tolerance: float
    solver: Solver
    seed: int


def _fit_path(
    problem: Problem, neurons: Index, ks: Sequence[int], seeds: list[Index], options: _Options, began: float
) -> list[OptimalFit]:
    pool = Pool()
    fits: dict[int, OptimalFit] = {}
    # The matrices are small: a second thread costs more than it brings, and one thread rounds the same way every time.
    with threadpool_limits(limits=1, user_api="blas"):
        for k in sorted(set(ks)):
            fits[k] = _fit_one(problem, neurons, k, pool, seeds, options, began)
            began = time.perf_counter()
            seeds = [*seeds, np.searchsorted(neurons, fits[k].support)]
    return [fits[k] for k in ks]


def _fit_one(
    problem: Problem, neurons: Index, k: int, pool: Pool, seeds: list[Index], options: _Options, began: float
) -> OptimalFit:
    deadline = began + options.time_limit_seconds

    def keep_going() -> bool:
        return time.perf_counter() < deadline

    k = min(k, problem.n_neurons)
    # The search is ten times finer than asked: it costs a few nodes, and two runs of one problem then agree.
    slack = 0.1 * options.gap_tolerance
    inner_tolerance = min(INNER_TOLERANCE, 0.1 * slack)
    everything = np.arange(problem.n_neurons)
    cuts_before = pool.added

    # Root: the relaxation over all neurons.
    middle = make_cut(problem, problem.middle())
    pool.add(middle)
    likely = middle.gains.copy()
    for index in seeds:
        likely[index] += middle.gains.max()
    root = solve_by_columns(
        problem,
        everything[:0],
        everything,
        k,
        likely,
        tolerance=1e-6,
        on_cut=pool.add,
        keep_going=keep_going,
    )
    rooted = time.perf_counter()

    # Incumbent: first the rounded relaxation and the warm starts, then exchanges among what is left.
    first = Incumbent(problem, k, inner_tolerance, on_cut=pool.add)
    first.offer(complete(np.flatnonzero(root.shares > 1e-3), root.shares + 1e-9 * root.gains, k))
    for index in seeds:
        first.offer(complete(index, root.gains, k))
    level = first.value - slack * abs(first.value)
    out, _ = fix(pool.cuts, k, level)
    out[list(first.support)] = False
    left = np.flatnonzero(~out)
    bound = max(cut.bound(k) for cut in pool.cuts)
    dropped = level if out.any() else np.inf
    part = problem.restrict(left)
    inner = Pool()
    for cut in pool.cuts:
        inner.add(Cut(cut.base, cut.gains[left]))
    incumbent = Incumbent(part, k, inner_tolerance, on_cut=inner.add)
    starts = [s for s in first.tried if np.isin(s, left).all()]
    for start in starts:
        improve_by_exchange(incumbent, np.searchsorted(left, start), trials=3 * k + 3, keep_going=keep_going)
    improved = time.perf_counter()

    # Fix again with the better incumbent, then search what remains.
    level = incumbent.value - slack * abs(incumbent.value)
    out, must = fix(inner.cuts, k, level)
    nothing_better = max(cut.bound(k) for cut in inner.cuts) >= level or bool((out & must).any()) or int(must.sum()) > k
    if out.any() or must.any():
        dropped = min(dropped, level)
    fixed, free = np.flatnonzero(must), np.flatnonzero(~out & ~must)
    status, nodes = "optimal", 0
    if nothing_better:  # outside of what is left was dropped at no lower level
        bound = max(bound, level)
    elif bound < level:
        likely = root.shares[left] * root.gains.max() + root.gains[left]
        search = _search_tree if options.solver == "tree" else _search_gurobi
        found, nodes, status = search(part, incumbent, fixed, free, likely, inner, slack, options, deadline)
        bound = max(bound, min(found, dropped))
    support = left[list(incumbent.support)]
    coef, intercept, objective = problem.finish(support, FINAL_TOLERANCE)
    # Losses and ridge are sums of squares and hinges; a search cut short may know less than that.
    bound = max(min(bound, objective), 0.0)
    gap = (objective - bound) / abs(objective) if objective else 0.0
    if gap <= options.gap_tolerance:
        status = "optimal"
    elif status == "optimal":
        status = "stalled"
    now = time.perf_counter()
    return OptimalFit(
        support=neurons[support].astype(np.int64),
        coef=coef,
        coef_scaled=coef,
        intercept=intercept,
        objective=objective,
        bound=bound,
        gap=gap,
        status=status,
        n_cuts=pool.added - cuts_before + inner.added,
        n_nodes=nodes,
        n_fixed=int(problem.n_neurons - fixed.size - free.size),
        n_candidates_left=int(free.size + fixed.size),
        n_candidates=problem.n_neurons,
        n_neurons=problem.n_neurons,
        ridge=1.0 / problem.gamma,
        unit_standard_deviations=None,
        seconds=now - began,
        phase_seconds={"root": rooted - began, "incumbent": improved - rooted, "search": now - improved},
    )


def _search_tree(
    problem: Problem,
    incumbent: Incumbent,
    fixed: Index,
    free: Index,
    likely: Array,
    pool: Pool,
    slack: float,
    options: _Options,
    deadline: float,
) -> tuple[float, int, str]:
    """Bound, nodes and status of the search by branch and bound."""

    def keep_going() -> bool:
        return time.perf_counter() < deadline

    tree = Tree(problem, incumbent, slack=slack, tolerance=min(NODE_TOLERANCE, 0.3 * slack), keep_going=keep_going)
    result = tree.search(fixed, free, likely[free])
    return result.bound, result.nodes, "optimal" if result.finished else "time_limit"


def _search_gurobi(
    problem: Problem,
    incumbent: Incumbent,
    fixed: Index,
    free: Index,
    likely: Array,
    pool: Pool,
    slack: float,
    options: _Options,
    deadline: float,
) -> tuple[float, int, str]:
    """Bound, nodes and status of the search by Gurobi's integer model."""
    found = integer_model.search(
        problem,
        incumbent,
        fixed,
        free,
        pool,
        gap=slack,
        seed=options.seed,
        seconds=max(deadline - time.perf_counter(), 0.01),
    )
    return found.bound, found.nodes, found.status
