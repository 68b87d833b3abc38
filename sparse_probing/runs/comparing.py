"""Intervals of the differences between probes that the database compares. No database is read or written here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparse_probing.probes.uncertainty import difference_interval, r2_difference_interval

if TYPE_CHECKING:
    from sparse_probing.warehouse.comparing import SharedRows

# All comparisons share their draws, so that a pair has the same interval whenever it is compared.
SEED = 0


def intervals(rows: SharedRows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Limits of a probe's test score less that of each other; see `warehouse.comparing.Intervals`."""
    low, high = np.full(len(rows.others), np.nan), np.full(len(rows.others), np.nan)
    alike = [place for place, truth in enumerate(rows.other_truths) if truth is None and rows.metric == "mcc"]
    if alike:
        stacked = np.stack([rows.others[place] for place in alike], axis=1)
        low[alike], high[alike] = difference_interval(
            rows.truth, rows.predicted, stacked, rows.groups, rng=SEED, n_bootstrap=rows.n_draws
        )
    for place in sorted(set(range(len(rows.others))) - set(alike)):
        other, truth = rows.others[place], rows.other_truths[place]
        if rows.metric == "mcc":
            one, two = difference_interval(
                rows.truth,
                rows.predicted,
                other,
                rows.groups,
                other_positive=truth,
                rng=SEED,
                n_bootstrap=rows.n_draws,
            )
            low[place], high[place] = one[0], two[0]
        else:
            low[place], high[place] = r2_difference_interval(
                rows.truth, rows.predicted, other, rows.groups, other_target=truth, rng=SEED, n_bootstrap=rows.n_draws
            )
    return low, high
