"""What a fitted probe hands back: one frozen record for every method, and its way into table rows.

`ProbeFit` carries the columns of `schemas.PROBE_FITS` and `schemas.PROBE_SUPPORTS` that a probe can know; the run, the
feature, the layer and the fit's id are added by whoever called the method. No fitting and no metric happens here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_probing.errors import InputError
from sparse_probing.schemas import CLASSIFICATION_METRICS, REGRESSION_METRICS, SPLITS

# How a fit ended. Only the first two mean that the method did all it set out to do.
STATUSES = (
    "optimal",  # proven optimal to the tolerance asked for
    "ok",  # fitted; the method proves nothing
    "not_converged",  # the last iterate is reported, short of the tolerance
    "time_limit",  # the best incumbent at the limit, with its bound and gap
    "failed",  # no fit; `message` says why
    "skipped",  # not attempted; `message` says why
)
# real, or which baseline
VARIANTS = ("real", "prevalence", "shuffled_labels", "random_rotation", "token_identity", "dense")

Metrics = Mapping[str, Mapping[str, float]]


def _no_support() -> NDArray[np.intp]:
    return np.empty(0, dtype=np.intp)


def _no_coef() -> NDArray[np.float64]:
    return np.empty(0, dtype=np.float64)


def _no_metrics() -> Metrics:
    return MappingProxyType({})


@dataclass(frozen=True, eq=False)
class ProbeFit:
    """One fit: a method at one k, on one layer and feature.

    Attributes
    ----------
    method:
        Name in `probes.METHODS`.
    variant:
        ``real`` or the baseline it is (see `VARIANTS`).
    ranking:
        Criterion that chose the candidates on train, or None.
    k:
        Neurons in the probe (the number asked for; `support` has fewer if an elastic net left some at zero).
    n_candidates:
        Neurons the method could choose from.
    step:
        Counter of pruning or tuning steps; 0 where a method has none.
    status, converged, message:
        See `STATUSES`. `converged` is False whenever the reported numbers are not those of a finished optimisation.
    objective, bound, gap, n_cuts:
        Of the method's own training problem; None where it has none.
    seconds:
        Wall-clock time of the fit, evaluation left out.
    metrics:
        ``metrics[split][metric]``; a split or metric that does not exist is absent, never NaN.
    test_mcc_low, test_mcc_high:
        95 % group-bootstrap interval of the test MCC, None if there are fewer than two test groups or it was not asked for.
    test_r2_low, test_r2_high:
        The same of the test R², for regression probes.
    support:
        (n_support,) indices of neurons (of directions, for rotations), most important first.
    coef, intercept:
        (n_support,) and scalar, in units of log-odds (hinge margin for optimal probes) per unit of *activation*:
        ``score = intercept + X[:, support] @ coef``. Predict +1 where the score exceeds 0.
    """

    method: str
    k: int
    n_candidates: int
    status: str
    converged: bool
    seconds: float
    variant: str = "real"
    ranking: str | None = None
    step: int = 0
    objective: float | None = None
    bound: float | None = None
    gap: float | None = None
    n_cuts: int | None = None
    message: str | None = None
    metrics: Metrics = field(default_factory=_no_metrics)
    test_mcc_low: float | None = None
    test_mcc_high: float | None = None
    test_r2_low: float | None = None
    test_r2_high: float | None = None
    support: NDArray[np.intp] = field(default_factory=_no_support)
    coef: NDArray[np.float64] = field(default_factory=_no_coef)
    intercept: float = 0.0

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise InputError(f"Fit status {self.status!r}; expected one of {', '.join(STATUSES)}.")
        if self.variant not in VARIANTS:
            raise InputError(f"Fit variant {self.variant!r}; expected one of {', '.join(VARIANTS)}.")
        if len(self.support) != len(self.coef):
            raise InputError(f"Support of {len(self.support)} neurons with {len(self.coef)} coefficients.")

    def with_variant(self, variant: str) -> ProbeFit:
        """The same fit, marked as a baseline."""
        return replace(self, variant=variant)

    def row(self) -> dict[str, Any]:
        """Columns of `schemas.PROBE_FITS` but run_id, fit_id, feature and layer; what is unknown is None."""
        row: dict[str, Any] = {
            "method": self.method,
            "variant": self.variant,
            "ranking": self.ranking,
            "k": int(self.k),
            "n_candidates": int(self.n_candidates),
            "step": int(self.step),
            "status": self.status,
            "converged": bool(self.converged),
            "objective": _finite(self.objective),
            "bound": _finite(self.bound),
            "gap": _finite(self.gap),
            "n_cuts": None if self.n_cuts is None else int(self.n_cuts),
            "fit_seconds": float(self.seconds),
            "message": self.message,
        }
        for split in SPLITS:
            values = self.metrics.get(split, {})
            for metric in CLASSIFICATION_METRICS + REGRESSION_METRICS:
                row[f"{split}_{metric}"] = _finite(values.get(metric))
        for bound in ("test_mcc_low", "test_mcc_high", "test_r2_low", "test_r2_high"):
            row[bound] = _finite(getattr(self, bound))
        return row

    def support_rows(self) -> list[dict[str, Any]]:
        """Columns of `schemas.PROBE_SUPPORTS` but run_id, fit_id and layer: one row per neuron of the support."""
        return [
            {"neuron": int(neuron), "position_in_support": position, "coef": float(coef)}
            for position, (neuron, coef) in enumerate(zip(self.support, self.coef, strict=True))
        ]


def unfitted(
    method: str,
    k: int,
    message: str,
    *,
    n_candidates: int = 0,
    status: str = "failed",
    variant: str = "real",
    ranking: str | None = None,
    step: int = 0,
    seconds: float = 0.0,
) -> ProbeFit:
    """A fit that did not come about, as the row that says so."""
    return ProbeFit(
        method=method,
        k=k,
        n_candidates=n_candidates,
        status=status,
        converged=False,
        seconds=seconds,
        variant=variant,
        ranking=ranking,
        step=step,
        message=message,
    )


def _finite(value: float | None) -> float | None:
    """None for what is unknown or not finite: tables hold null, never NaN."""
    return float(value) if value is not None and math.isfinite(value) else None
