"""Lines of logs: numbers as people read them."""

from __future__ import annotations

import pytest

from tasks.logs import as_ranges, line, log, logged


def test_a_line_names_its_numbers() -> None:
    numbers = {"model": "tiny", "layer": 0, "n_of_rows": 12345, "neurons": None, "whole": True, "seconds": 1234.5}
    assert (
        line("Layer probed", numbers)
        == "Layer probed: model tiny, layer 0, n of rows 12,345, whole yes, seconds 1,234.5"
    )


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([3], "3"), ([0, 1, 2], "0–2"), ([7, 0, 1, 3, 4], "0–1 and 3–4 and 7")]
)
def test_layers_as_ranges(numbers: list[int], text: str) -> None:
    assert as_ranges(numbers) == text


def test_outside_of_a_run_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    log("Layer probed", layer=0)
    with logged("Dataset", rows=1) as numbers:
        numbers["bytes"] = 2
    assert caplog.records == []
