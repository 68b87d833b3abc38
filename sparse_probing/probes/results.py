"""The result of a fitted probe: one frozen record for every method, and its conversion to table rows.

`ProbeFit` carries the columns of `schemas.PROBE_FITS` and `schemas.PROBE_SUPPORTS` that a probe can know; the run, the
feature, the layer and the fit's id are added by the caller. No fitting and no metric happens here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparse_probing import showing
from sparse_probing.errors import InputError
from sparse_probing.schemas import CLASSIFICATION_METRICS, PROBE_FITS, REGRESSION_METRICS, SPLITS

# How a fit ended. Only the first two mean that the method did all it set out to do.
STATUSES = (
    "optimal",  # proven optimal to the tolerance asked for
    "ok",  # fitted; the method proves nothing
    "not_converged",  # the last iterate is reported, short of the tolerance
    "time_limit",  # the best incumbent at the limit, with its bound and gap
    "size_limit",  # the best incumbent, with its bound and gap: more neurons were left than the solver's licence takes
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


@dataclass(frozen=True, eq=False, repr=False)
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
    n_neurons, ridge, unit_standard_deviations:
        What a certificate holds for, None for methods that prove nothing: the neurons of the layer, of which `n_candidates`
        were searched; λ in the training problem's λ/2 ‖β‖²; and the unit of the activations that β multiplies there, in
        standard deviations of the training rows.
    step:
        Counter of pruning or tuning steps; 0 for methods without steps.
    status, converged, message:
        See `STATUSES`. `converged` is False whenever the reported numbers are not those of a finished optimisation.
    objective, bound, gap, n_cuts:
        Of the method's own training problem; None where it has none.
    audited_by, audit_gap:
        Name and version of the solver that searched anew what a certificate claims, and ``(objective − its optimum) /
        |objective|``; None where none did. `message` says so where one was asked for and could not.
    seconds:
        Wall-clock time of the fit, evaluation and audit left out.
    metrics:
        ``metrics[split][metric]``; a split or metric that does not exist is absent, never NaN.
    test_mcc_low, test_mcc_high:
        95 % interval of the test MCC over groups (see `uncertainty.score_interval`), None if there are fewer than two test groups or
        it was not asked for.
    test_r2_low, test_r2_high:
        The same of the test R², for regression probes.
    test_predicted, test_truth:
        (n_test,) what the probe predicts on the feature's test rows, bool or target; and what it was judged by there, where that
        is not the feature's own labels (shuffled ones). None where nothing was predicted.
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
    n_neurons: int | None = None
    ridge: float | None = None
    unit_standard_deviations: float | None = None
    step: int = 0
    objective: float | None = None
    bound: float | None = None
    gap: float | None = None
    n_cuts: int | None = None
    audited_by: str | None = None
    audit_gap: float | None = None
    message: str | None = None
    metrics: Metrics = field(default_factory=_no_metrics)
    test_mcc_low: float | None = None
    test_mcc_high: float | None = None
    test_r2_low: float | None = None
    test_r2_high: float | None = None
    test_predicted: NDArray[Any] | None = None
    test_truth: NDArray[Any] | None = None
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
            "n_neurons": None if self.n_neurons is None else int(self.n_neurons),
            "ridge": finite(self.ridge),
            "unit_standard_deviations": finite(self.unit_standard_deviations),
            "step": int(self.step),
            "status": self.status,
            "converged": bool(self.converged),
            "objective": finite(self.objective),
            "bound": finite(self.bound),
            "gap": finite(self.gap),
            "n_cuts": None if self.n_cuts is None else int(self.n_cuts),
            "audited_by": self.audited_by,
            "audit_gap": finite(self.audit_gap),
            "fit_seconds": float(self.seconds),
            "message": self.message,
        }
        for split in SPLITS:
            values = self.metrics.get(split, {})
            for metric in CLASSIFICATION_METRICS + REGRESSION_METRICS:
                row[f"{split}_{metric}"] = finite(values.get(metric))
        for bound in ("test_mcc_low", "test_mcc_high", "test_r2_low", "test_r2_high"):
            row[bound] = finite(getattr(self, bound))
        return row

    def support_rows(self) -> list[dict[str, Any]]:
        """Columns of `schemas.PROBE_SUPPORTS` but run_id, fit_id and layer: one row per neuron of the support."""
        return [
            {"neuron": int(neuron), "position_in_support": position, "coef": float(coef)}
            for position, (neuron, coef) in enumerate(zip(self.support, self.coef, strict=True))
        ]

    def table(self) -> pa.Table:
        """One row under the names of table `probe_fits` (see `ProbeFits.table`)."""
        return ProbeFits([self]).table()

    def _shown(self) -> tuple[str, dict[str, list[str]], str]:
        numbers = self.metrics.get("train", {})
        shown = [name for name in ("mcc", "f1", "precision", "recall", "roc_auc", "r2", "pearson") if name in numbers]
        columns = {"split": [name for name in SPLITS if name in self.metrics]}
        for name in shown:
            columns[name] = [showing.decimals(self.metrics[split].get(name)) for split in columns["split"]]
        ranked = f", ranking {self.ranking}" if self.ranking else ""
        variant = "" if self.variant == "real" else f" ({self.variant})"
        proof = "" if self.gap is None else f", gap {self.gap:.1e}"
        of = "candidates" if self.n_neurons is None else f"candidates among {self.n_neurons} neurons"
        headline = (
            f"ProbeFit {self.method}{variant}: k = {self.k} of {self.n_candidates} {of}{ranked}, "
            f"{self.status}{proof}, {self.seconds:.2f} s"
        )
        tail = (
            _proof_text(self) + _interval_text(self) + [_support_text(self)] + ([self.message] if self.message else [])
        )
        return headline, columns if len(columns["split"]) else {}, "\n".join(filter(None, tail))

    def __repr__(self) -> str:
        return showing.as_text(*self._shown())

    def _repr_html_(self) -> str:
        return showing.as_html(*self._shown())


class ProbeFits(list[ProbeFit]):
    """Fits of one method, in its own order; a list that can show itself."""

    def best_first(self) -> list[ProbeFit]:
        """Fits by validation MCC (R² for regression), those without one last; equals by k."""

        def quality(fit: ProbeFit) -> float:
            found = fit.metrics.get("validation", {})
            value = found.get("mcc", found.get("r2", -math.inf))
            return value if math.isfinite(value) else -math.inf

        return sorted(self, key=lambda fit: (-quality(fit), fit.k))

    def table(self) -> pa.Table:
        """One row per fit, best first, under the names of table `probe_fits`, less run, fit, feature and layer."""
        fields = [one for one in PROBE_FITS if one.name not in ("run_id", "fit_id", "feature", "layer")]
        return pa.Table.from_pylist([fit.row() for fit in self.best_first()], schema=pa.schema(fields))

    def _shown(self) -> tuple[str, dict[str, list[str]], str]:
        best = self.best_first()[: showing.N_SHOWN]
        judged = "r2" if any("r2" in fit.metrics.get("train", {}) for fit in best) else "mcc"
        columns = {"method": [fit.method for fit in best], "k": [str(fit.k) for fit in best]}
        for split in SPLITS:
            columns[f"{split}_{judged}"] = [showing.decimals(fit.metrics.get(split, {}).get(judged)) for fit in best]
        columns["status"] = [fit.status for fit in best]
        rest = len(self) - len(best)
        more = f"and {rest} more fits; .table() has all" if rest else ""
        return f"{len(self)} fit{'' if len(self) == 1 else 's'}, best on validation first", columns, more

    def __repr__(self) -> str:
        return showing.as_text(*self._shown())

    def _repr_html_(self) -> str:
        return showing.as_html(*self._shown())


def _interval_text(fit: ProbeFit) -> list[str]:
    bounds = (("MCC", fit.test_mcc_low, fit.test_mcc_high), ("R²", fit.test_r2_low, fit.test_r2_high))
    return [
        f"95 % interval of the test {name}: [{low:.3f}, {high:.3f}]"
        for name, low, high in bounds
        if low is not None and high is not None
    ]


def _support_text(fit: ProbeFit) -> str:
    if not len(fit.support):
        return ""
    named = [
        f"{neuron} ({showing.digits(coef)})"
        for neuron, coef in zip(fit.support[: showing.N_SHOWN], fit.coef[: showing.N_SHOWN], strict=True)
    ]
    rest = len(fit.support) - len(named)
    what = "directions" if fit.variant == "random_rotation" else "neurons"
    return f"{what} (coef): {', '.join(named)}" + (f" and {rest} more" if rest else "")


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
    """The record of a fit that failed or was not attempted, with the reason."""
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


def _proof_text(fit: ProbeFit) -> list[str]:
    if fit.gap is None or fit.ridge is None or fit.unit_standard_deviations is None:
        return []
    unit = f"activations in units of {fit.unit_standard_deviations:g} standard deviations"
    audit = "" if fit.audit_gap is None else f"; audited by {fit.audited_by}, gap {fit.audit_gap:.1e}"
    return [f"objective {fit.objective:.6g}, bound {fit.bound:.6g}, at ridge {fit.ridge:.4g} on {unit}{audit}"]


def finite(value: float | None) -> float | None:
    """None for what is unknown or not finite: tables hold null, never NaN."""
    return float(value) if value is not None and math.isfinite(value) else None
