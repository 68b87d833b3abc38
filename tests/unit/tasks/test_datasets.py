"""What building a dataset tells whoever watches."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from sparse_probing.config import CollectionSpec, ModelSpec
from sparse_probing.datasets import build
from sparse_probing.models import loading
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import write_manifest
from tasks import datasets


@pytest.mark.parametrize(("fraction", "n_lines"), [(0.02, 0), (0.5, 0), (0.93, 1)])
def test_text_that_the_tokenizer_does_not_know_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fraction: float, n_lines: int
) -> None:
    folder = Location.open(tmp_path) / "datasets" / "text"
    facts = {"unknown_token_fraction": fraction}
    write_manifest(folder, kind="dataset", digest="d", spec={}, inputs={}, facts=facts, files={})
    said: list[str] = []
    monkeypatch.setattr(datasets, "say", said.append)
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
