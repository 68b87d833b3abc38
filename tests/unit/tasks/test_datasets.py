"""What the task that builds datasets tells whoever watches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from sparse_probing.config import CollectionSpec, ModelSpec
from tasks.datasets import build_dataset
from tasks.progress import show_progress


def test_skipped_rows_are_said_also_of_a_finished_dataset(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_model: Path,
    sentences: list[str],
) -> None:
    monkeypatch.setenv("SPARSE_PROBING_DATA", str(tmp_path / "data"))
    rows = [{"text": text, "label": "abc"[number % 3]} for number, text in enumerate(sentences[:1200:4])]
    rows += [{"text": "no label"}, {"text": "", "label": "a"}, {"text": "  ", "label": "b"}]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = {"path": str(texts), "classes": ["a", "b"], "sequences_per_class": 30}
    collection = CollectionSpec(collection="labelled_text", context_length=32, options=options)
    for _ in range(2):
        with show_progress(Console(), with_prefect=False):
            build_dataset.fn(ModelSpec(id=str(tiny_model)), collection)
        said = [line.partition("] ")[2] for line in capsys.readouterr().out.splitlines() if "skipped" in line]
        assert said == [
            "Build labelled_text: skipped 100 rows with a label that was not asked for (first: texts.jsonl row 3, 'c')",
            "Build labelled_text: warning: skipped 1 row with no label (first: texts.jsonl row 301)",
            "Build labelled_text: warning: skipped 2 rows with no text (first: texts.jsonl row 302)",
        ]
