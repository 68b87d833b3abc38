"""The registry of probing methods: the reference's sixteen experiment names, one signature, loaded when called.

A `Method` prepares the arrays and hands a frozen `Request` to one function of another module; nothing is fitted here.
Importing this module imports no solver: `METHODS[name]` loads the function's module when it is first called.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    from sparse_probing.probes.data import ProbeData
    from sparse_probing.probes.labelling import Labels
    from sparse_probing.probes.neuron_scores import NeuronScores
    from sparse_probing.probes.results import ProbeFit, ProbeFits


Solver = Literal["tree", "gurobi"]


@dataclass(frozen=True, eq=False)
class Request:
    """What a method's function gets.

    Attributes
    ----------
    method:
        The name it was called by, for its fits.
    data:
        Prepared rows of one feature (`regression.TargetData` for regression methods).
    k_values:
        Sizes asked for, None for the method's own.
    ranking:
        Criterion that chooses candidates.
    n_candidates:
        Neurons that exact selection chooses from, the best of the ranking; None for the whole layer.
    scores:
        Single-neuron scores of the same arrays, if there are any.
    n_bootstrap:
        Draws of test intervals; 0 for none.
    time_limit_seconds, solver:
        Of each exact selection.
    audit:
        Sizes whose certificates are audited; None for all.
    rng:
        Generator of whatever is random.
    """

    method: str
    data: ProbeData
    k_values: tuple[int, ...] | None
    ranking: str
    n_candidates: int | None
    scores: NeuronScores | None
    n_bootstrap: int
    time_limit_seconds: float
    solver: Solver
    audit: frozenset[int] | None
    rng: np.random.Generator


@dataclass(frozen=True)
class Method:
    """A probing method under one of the reference's names.

    Attributes
    ----------
    name:
        Key in `METHODS`.
    function:
        ``module:function`` within this package; takes a `Request`, returns a list of `ProbeFit`.
    task:
        Whether y holds labels or a real-valued target.
    summary:
        One line for lists.
    """

    name: str
    function: str
    summary: str
    task: Literal["classification", "regression"] = "classification"

    @property
    def is_exact(self) -> bool:
        """Whether its fits carry a certificate."""
        return self.function.startswith("exact:")

    def __call__(
        self,
        X: ArrayLike,
        y: Labels,
        groups: ArrayLike | None = None,
        *,
        labelled: ArrayLike | None = None,
        split: ArrayLike | None = None,
        offset: ArrayLike | None = None,
        scale: ArrayLike | None = None,
        k_values: Sequence[int] | None = None,
        ranking: str = "mean_dif",
        n_candidates: int | None = None,
        scores: NeuronScores | None = None,
        n_bootstrap: int = 0,
        time_limit_seconds: float = 60.0,
        solver: Solver = "tree",
        audit: bool | Collection[int] = False,
        rng: np.random.Generator | int = 0,
    ) -> ProbeFits:
        """Fit on train, tune on validation, report on test.

        Parameters
        ----------
        X:
            (n_samples, n_neurons) uint8 levels (activation = offset + scale * level) or floats.
        y:
            (n_samples,) of two classes, coded as in `single.score_neurons`: booleans, 0 and 1, or -1 and +1. A float
            target if `task` is regression. NaN is a row without either.
        groups:
            (n_samples,) what must not be split and is resampled as a whole; each sample its own group if absent.
        split:
            (n_samples,) 0 train, 1 validation, 2 test; 60/20/20 by group if absent.
        labelled:
            (n_samples,) bool: the rows whose y counts; all of them if absent.
        offset, scale:
            (n_neurons,) of uint8 levels.
        k_values:
            Support sizes; the method's own if absent.
        ranking:
            One of `ranking.CRITERIA`: how candidates are chosen.
        n_candidates:
            Neurons that the exact methods choose from, the best of the ranking: 50 in Gurnee et al. (2023). The whole layer
            if absent, so that what they prove holds for every neuron.
        scores:
            `score_neurons` of the same arrays, to rank by without counting again.
        n_bootstrap:
            Draws behind the interval of the test MCC; 0 for none.
        time_limit_seconds, solver:
            Of each exact selection: ``tree`` needs no solver, ``gurobi`` is an integer model.
        audit:
            Sizes at which Gurobi's integer model searches anew what an exact method proved, True for all: `audited_by` and
            `audit_gap` of a fit hold the outcome, `message` why there is none.
        rng:
            Generator or seed.

        Raises
        ------
        DataError
            If the arrays do not fit together, an activation is not finite, or train lacks a class.
        InputError
            If the ranking is unknown or a solver's package is missing.
        """
        import numpy as np

        from sparse_probing.probes.results import ProbeFits

        loader = "data:prepare" if self.task == "classification" else "regression:prepare_targets"
        data = _load(loader)(X, y, groups, labelled=labelled, split=split, offset=offset, scale=scale, rng=rng)
        generator = np.random.default_rng(rng)
        request = Request(
            method=self.name,
            data=data,
            k_values=None if k_values is None else tuple(k_values),
            ranking=ranking,
            n_candidates=n_candidates,
            scores=scores,
            n_bootstrap=n_bootstrap,
            time_limit_seconds=time_limit_seconds,
            solver=solver,
            audit=None if audit is True else frozenset(audit or ()),
            rng=generator,
        )
        fits: list[ProbeFit] = _load(self.function)(request)
        return ProbeFits(fits)


def _load(path: str) -> Callable[..., Any]:
    """``module:function`` of this package, imported now."""
    module, _, function = path.partition(":")
    found: Callable[..., Any] = getattr(import_module(f"sparse_probing.probes.{module}"), function)
    return found


_ALL = (
    Method("dense_probe", "dense:dense", "every neuron at once, ridge strength chosen on validation"),
    Method("enumerate_monosemantic", "heuristic:monosemantic", "each of the best 30 neurons alone"),
    Method("optimal_sparse_probing", "exact:sweep", "provably best k of all neurons, k = 1 to 8"),
    Method("osp_tuning", "exact:tune", "the same with the regularisation chosen on validation"),
    Method("osp_iterative_pruning", "exact:prune", "best five neurons, ten times, the strongest removed each time"),
    Method("heuristic_sparsity_sweep", "heuristic:sweep", "logistic regression on the top k of a ranking"),
    Method("fast_heuristic_sparsity_sweep", "heuristic:fast_sweep", "the same at powers of two"),
    Method("telescopic_sparsity_sweep", "telescopic:sweep", "elastic net, candidates dropped as k falls"),
    Method("tune_telescoping_sparsity_sweep", "telescopic:tune", "the same, its penalty chosen on validation"),
    Method("rotation_baseline", "rotation:candidates", "sweep over random directions of the best neurons' span"),
    Method("rotation_baseline_dxd", "rotation:whole", "sweep over a random basis of the whole layer"),
    Method("iterative_pruning_rotation_baseline_dxd", "rotation:prune", "iterative pruning in a random basis"),
    Method("test_osp_heuristic_filtering", "exact:compare_filters", "what the number of candidates costs the optimum"),
    Method("compare_feature_selection", "heuristic:compare_criteria", "one sweep per ranking criterion"),
    Method("dense_regression_probe", "regression:dense", "ridge regression on every neuron", "regression"),
    Method("heuristic_sparse_regression_sweep", "regression:sweep", "least squares on the top k", "regression"),
)
METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _ALL})
