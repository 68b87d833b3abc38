"""What building a dataset tells whoever watches."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from sparse_probing.config import CollectionSpec, ModelSpec
from sparse_probing.datasets import build
from sparse_probing.models import loading
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import write_manifest
from tasks import datasets
from tasks.datasets import build_dataset
from tasks.progress import show_progress


@pytest.mark.parametrize(("fraction", "n_lines"), [(0.02, 0), (0.5, 0), (0.93, 1)])
def test_text_that_the_tokenizer_does_not_know_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fraction: float, n_lines: int
) -> None:
    folder = Location.open(tmp_path) / "datasets" / "text"
    facts = {"unknown_token_fraction": fraction}
    write_manifest(folder, kind="dataset", digest="d", spec={}, inputs={}, facts=facts, files={})
    said: list[str] = []
    monkeypatch.setattr(datasets, "say_and_log", said.append)
    monkeypatch.setattr(datasets, "resolved_model", lambda model: SimpleNamespace(tokenizer_digest="t"))
    monkeypatch.setattr(datasets, "relative", lambda folder: "datasets/text")
    monkeypatch.setenv("SPARSE_PROBING_DATA", str(tmp_path))
    monkeypatch.setattr(loading, "load_tokenizer", lambda resolved: None)
    monkeypatch.setattr(build, "build_dataset", lambda spec, **options: folder)
    datasets.build_dataset.fn(ModelSpec(id="some/model"), CollectionSpec(collection="labelled_text"))
    assert len(said) == n_lines
    for line in said:
        assert "93 %" in line
        assert "labelled_text" in line
        assert "\n" not in line


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
