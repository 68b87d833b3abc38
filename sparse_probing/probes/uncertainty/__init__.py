"""How sure a score is: intervals of scores and differences, permutation nulls, false discovery rates."""

from sparse_probing.probes.uncertainty.intervals import (
    difference_interval,
    neuron_intervals,
    neuron_predictions,
    r2_difference_interval,
    r2_interval,
    score_interval,
)

__all__ = [
    "difference_interval",
    "neuron_intervals",
    "neuron_predictions",
    "r2_difference_interval",
    "r2_interval",
    "score_interval",
]
