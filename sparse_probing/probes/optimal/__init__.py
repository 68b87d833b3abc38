"""The best k neurons with a proof: search, bounds, and audits of what was proved. gurobipy in `integer_model` alone."""

from sparse_probing.probes.optimal.optimal_fit import OptimalFit, OptimalFits
from sparse_probing.probes.optimal.search import (
    fit_optimal,
    fit_optimal_path,
    fit_optimal_regression,
    scale_for_optimal,
)

__all__ = [
    "OptimalFit",
    "OptimalFits",
    "fit_optimal",
    "fit_optimal_path",
    "fit_optimal_regression",
    "scale_for_optimal",
]
