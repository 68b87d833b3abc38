"""Threads that run stages find every late import done."""

from __future__ import annotations

import sys

from sparse_probing.runs import imports
from tasks.imports import FOR_PROBES


def test_the_list_is_that_of_the_tasks() -> None:
    assert imports.LATE_IMPORTS == FOR_PROBES


def test_all_are_imported() -> None:
    imports.import_for_stages()
    assert set(imports.LATE_IMPORTS) - imports.OPTIONAL <= set(sys.modules)
