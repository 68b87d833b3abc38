"""Rules on a frame, judged by Great Expectations: which hold, which rows break the others, and what that costs.

Which rules there are, and on which frames, is the concern of `checks`. Great Expectations cannot talk to DuckDB, so it is
fed frames. Importing this module takes seconds: import it late.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

import great_expectations as gx
import great_expectations.expectations
import pandas as pd

# For `checks`, too: imported there, it could come before the setting above.
gxe = gx.expectations

# It reports every temporary folder that it makes, and sets this level itself when it is imported.
logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)

DETAIL_CHARACTERS = 500


@dataclass(frozen=True)
class CheckResult:
    """One check on one run: a row of `schemas.CHECK_RESULTS`, fields in its order.

    Attributes
    ----------
    severity:
        ``error`` or ``warning``: the gravest of the violations, or what one would cost where there is none.
    n_violations:
        Rows that violate the check; 1 if it could not be executed.
    detail:
        The first violation as text; None if the check passed.
    """

    run_id: str
    check_name: str
    suite: str
    severity: str
    n_violations: int
    passed: bool
    detail: str | None
    checked_at: datetime

    @property
    def line(self) -> str:
        """The outcome of a failed check, for messages."""
        return f"{self.check_name}: {self.n_violations} violation(s), first: {self.detail}"


@dataclass(frozen=True)
class Rule:
    """A named expectation and what breaking it costs."""

    name: str
    expectation: Any
    severity: str = "error"


@dataclass(frozen=True)
class Outcome:
    """How a rule came out on a frame. `rows` are the positions that break it; None if the whole frame does."""

    passed: bool
    rows: tuple[int, ...] | None
    detail: str


def complete(prefix: str, columns: Sequence[str]) -> list[Rule]:
    """Row count above zero and no nulls: what ToBeBetween and ToBeInSet let pass."""
    rules = [Rule(f"{prefix}_not_empty", gxe.ExpectTableRowCountToBeBetween(min_value=1))]
    for name in columns:
        rules.append(Rule(f"{prefix}_{name}_not_null", gxe.ExpectColumnValuesToNotBeNull(column=name)))
    return rules


def validate(frame: pd.DataFrame, rules: Sequence[Rule]) -> Mapping[str, Outcome]:
    """Validate a frame against rules in an ephemeral context; outcome by the rule's name."""
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    asset = context.data_sources.add_pandas("frames").add_dataframe_asset("frame")
    batch = asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": frame.reset_index(drop=True)})
    expectations = []
    for rule in rules:
        rule.expectation.meta = {"rule": rule.name}
        expectations.append(rule.expectation)
    suite = gx.ExpectationSuite(name="rules", expectations=expectations)
    outcomes = {}
    for result in batch.validate(suite, result_format={"result_format": "COMPLETE"}).results:
        name = result.expectation_config.meta["rule"]
        found = dict(result.result or {})
        rows = found.get("unexpected_index_list")
        outcomes[name] = Outcome(
            passed=bool(result.success),
            rows=tuple(int(row) for row in rows) if rows is not None else None,
            detail=_describe(found, result.exception_info),
        )
    return outcomes


def _describe(found: Mapping[str, Any], exception_info: Any) -> str:
    unexpected = found.get("unexpected_list")
    if unexpected:
        return f"found {unexpected[0]!r}"
    if "observed_value" in found:
        return f"found {found['observed_value']!r}"
    for part in [exception_info, *dict(exception_info or {}).values()]:
        if isinstance(part, Mapping) and part.get("exception_message"):
            return " ".join(str(part["exception_message"]).split())
    return "could not be judged"


def holds(outcome: Outcome, row: int) -> bool:
    """Whether a row keeps the rule."""
    return outcome.passed if outcome.rows is None else row not in outcome.rows


def as_result(run_id: str, suite: str, rule: Rule, outcome: Outcome, now: datetime) -> CheckResult:
    """What is recorded of a rule on a run."""
    detail = None
    if not outcome.passed:
        where = f"row {outcome.rows[0]}: " if outcome.rows else ""
        detail = (where + outcome.detail)[:DETAIL_CHARACTERS]
    n_violations = 0 if outcome.passed else max(1, len(outcome.rows or ()))
    return CheckResult(run_id, rule.name, suite, rule.severity, n_violations, outcome.passed, detail, now)
