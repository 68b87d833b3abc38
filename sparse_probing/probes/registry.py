"""The registry of probing methods: the reference's sixteen experiment names, one signature, loaded when called.

A `Method` prepares the arrays and passes a frozen `Request` to one function of `experiments`; nothing is fitted here.
Importing this module imports no solver: `METHODS[name]` loads the function's module when it is first called.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from sparse_probing import showing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    from sparse_probing.probes.data import ProbeData
    from sparse_probing.probes.labelling import Labels
    from sparse_probing.probes.results import ProbeFit, ProbeFits
    from sparse_probing.probes.single.neuron_scores import NeuronScores


Solver = Literal["tree", "gurobi"]


class Options(TypedDict, total=False):
    """Options of a method; each has a default.

    Keys
    ----
    k_values:
        Support sizes; the method's own if absent.
    ranking:
        One of `ranking.CRITERIA`, ``mean_dif`` if absent: how candidates are chosen.
    n_candidates:
        Neurons that the optimal methods choose from, the best of the ranking: 50 in Gurnee et al. (2023). The whole layer
        if absent, so that what they prove holds for every neuron.
    scores:
        Result of `score_neurons` on the same arrays, so that the ranking need not count again.
    n_bootstrap:
        Draws behind the interval of the test metric; 0, the default, for none.
    time_limit_seconds, solver:
        Of each optimal selection: 60 seconds, and ``tree`` (needs no licence) or ``gurobi`` (an integer model).
    audit:
        Values of k at which Gurobi's integer model repeats the search of an optimal method; True for all, False (the default)
        for none. `audited_by` and `audit_gap` of a fit hold the outcome; if there is none, `message` says why.
    """

    k_values: Sequence[int] | None
    ranking: str
    n_candidates: int | None
    scores: NeuronScores | None
    n_bootstrap: int
    time_limit_seconds: float
    solver: Solver
    audit: bool | Collection[int]


@dataclass(frozen=True, eq=False)
class Request:
    """Argument of a method's function: the method's name, the prepared rows of one feature, and `Options` with defaults."""

    method: str
    data: ProbeData
    rng: np.random.Generator
    k_values: Sequence[int] | None = None
    ranking: str = "mean_dif"
    n_candidates: int | None = None
    scores: NeuronScores | None = None
    n_bootstrap: int = 0
    time_limit_seconds: float = 60.0
    solver: Solver = "tree"
    audit: bool | Collection[int] = False

    def wants_audit(self, k: int) -> bool:
        """Whether a certificate of this size is audited."""
        return self.audit if isinstance(self.audit, bool) else k in self.audit


@dataclass(frozen=True)
class Method:
    """A probing method under one of the reference's names.

    Attributes
    ----------
    name:
        Key in `METHODS`.
    function:
        ``module:function`` within `experiments`; takes a `Request`, returns a list of `ProbeFit`.
    task:
        Whether y holds labels or a real-valued target.
    summary:
        One line for lists.

    Examples
    --------
    >>> import numpy as np
    >>> from sparse_probing import METHODS
    >>> X = np.random.default_rng(0).standard_normal((400, 20))
    >>> y = X[:, 3] + X[:, 11] > 0
    >>> fits = METHODS["heuristic_sparsity_sweep"](X, y, k_values=[1, 2, 4])
    >>> fits.best_first()[0].k >= 2
    True
    >>> fits.table().column_names[:3]
    ['method', 'variant', 'ranking']
    """

    name: str
    function: str
    summary: str
    task: Literal["classification", "regression"] = "classification"

    @property
    def is_optimal(self) -> bool:
        """Whether its fits carry a certificate."""
        return self.function.startswith("optimal:")

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
        rng: np.random.Generator | int = 0,
        **options: Unpack[Options],
    ) -> ProbeFits:
        """Check one feature's arrays, then `fit` them.

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
        rng:
            Generator or seed.
        **options:
            As in `fit`.

        Raises
        ------
        DataError
            If the arrays do not fit together, an activation is not finite, or train lacks a class.
        InputError
            If the ranking is unknown or a solver's package is missing.
        """
        from sparse_probing.probes.data import prepare, prepare_targets

        make = prepare if self.task == "classification" else prepare_targets
        data = make(X, y, groups, labelled=labelled, split=split, offset=offset, scale=scale, rng=rng)  # type: ignore[arg-type]
        return self.fit(data, rng=rng, **options)

    def fit(self, data: ProbeData, *, rng: np.random.Generator | int = 0, **options: Unpack[Options]) -> ProbeFits:
        """Fit on train, tune on validation, report on test.

        Parameters
        ----------
        data:
            From `data.prepare`; from `data.prepare_targets` if `task` is regression.
        rng:
            Generator or seed of whatever is random.
        **options:
            Any of `Options`.

        Raises
        ------
        DataError
            If a regression method is given labels.
        InputError
            If the ranking is unknown or a solver's package is missing.
        """
        import numpy as np

        from sparse_probing.probes.results import ProbeFits

        function: Callable[[Request], list[ProbeFit]] = _load(self.function)
        return ProbeFits(function(Request(self.name, data, np.random.default_rng(rng), **options)))


def _load(path: str) -> Callable[..., Any]:
    """``module:function`` of `experiments`, imported now."""
    module, _, function = path.partition(":")
    found: Callable[..., Any] = getattr(import_module(f"sparse_probing.probes.experiments.{module}"), function)
    return found


_ALL = (
    Method("dense_probe", "dense:dense", "every neuron at once, ridge strength chosen on validation"),
    Method("enumerate_monosemantic", "heuristic:monosemantic", "each of the best 30 neurons alone"),
    Method("optimal_sparse_probing", "optimal:sweep", "provably best k of all neurons, k = 1 to 8"),
    Method("osp_tuning", "optimal:tune", "the same with the regularisation chosen on validation"),
    Method(
        "osp_iterative_pruning",
        "optimal:prune",
        "best five neurons, ten times, the strongest removed each time",
    ),
    Method("heuristic_sparsity_sweep", "heuristic:sweep", "logistic regression on the top k of a ranking"),
    Method("fast_heuristic_sparsity_sweep", "heuristic:fast_sweep", "the same at powers of two"),
    Method("telescopic_sparsity_sweep", "telescopic:sweep", "elastic net, candidates dropped as k falls"),
    Method("tune_telescoping_sparsity_sweep", "telescopic:tune", "the same, its penalty chosen on validation"),
    Method("rotation_baseline", "rotation:candidates", "sweep over random directions of the best neurons' span"),
    Method("rotation_baseline_dxd", "rotation:whole", "sweep over a random basis of the whole layer"),
    Method("iterative_pruning_rotation_baseline_dxd", "rotation:prune", "iterative pruning in a random basis"),
    Method(
        "test_osp_heuristic_filtering",
        "optimal:compare_filters",
        "what the number of candidates costs the optimum",
    ),
    Method("compare_feature_selection", "heuristic:compare_criteria", "one sweep per ranking criterion"),
    Method("dense_regression_probe", "regression:dense", "ridge regression on every neuron", "regression"),
    Method("heuristic_sparse_regression_sweep", "regression:sweep", "least squares on the top k", "regression"),
)


class Methods(Mapping[str, Method]):
    """Methods by name; a mapping that can show itself."""

    def __init__(self, methods: Iterable[Method]) -> None:
        self._methods = {method.name: method for method in methods}

    def __getitem__(self, name: str) -> Method:
        return self._methods[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._methods)

    def __len__(self) -> int:
        return len(self._methods)

    def _shown(self) -> tuple[str, dict[str, list[str]], str]:
        columns: dict[str, list[str]] = {
            "name": list(self._methods),
            "task": [method.task for method in self._methods.values()],
            "what it fits": [method.summary for method in self._methods.values()],
        }
        return f"{len(self)} probing methods", columns, ""

    def __repr__(self) -> str:
        return showing.as_text(*self._shown())

    def _repr_html_(self) -> str:
        return showing.as_html(*self._shown())


METHODS = Methods(_ALL)
"""The sixteen experiment names of Gurnee et al. (2023), each with its `Method`."""
