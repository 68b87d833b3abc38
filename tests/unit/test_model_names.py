"""Two models of one study must be told apart by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_probing.activations.naming import activations_digest, activations_folder
from sparse_probing.config import ExtractionSpec, StudySpec, load_profile
from sparse_probing.errors import InputError
from sparse_probing.models.resolved import ResolvedModel
from sparse_probing.store.filesystem import Location


def profile(folder: Path, models: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(f'name = "mine"\n{models}\n[[collections]]\ncollection = "text_features"\n', encoding="utf-8")
    return path


def test_two_models_of_one_name_are_refused_with_the_remedy(tmp_path: Path) -> None:
    two = '[[models]]\nid = "a/final"\n[[models]]\nid = "b/final"\n'
    with pytest.raises(InputError, match=r"'a/final' and 'b/final' are both called 'final'.*models\.name") as caught:
        load_profile(str(profile(tmp_path, two)))
    assert "\n" not in str(caught.value)
    named = two.replace('id = "b/final"', 'id = "b/final"\nname = "final-b"')
    assert [model.short_name for model in load_profile(str(profile(tmp_path, named))).models] == ["final", "final-b"]


def test_revisions_of_one_model_share_its_name() -> None:
    models = [{"id": "hub/tiny", "revision": revision} for revision in ("step1", "step2")]
    study = StudySpec(name="mine", models=models, collections=[{"collection": "text_features"}])  # type: ignore[arg-type]
    assert {model.short_name for model in study.models} == {"tiny"}


def test_activations_of_other_weights_lie_elsewhere(tmp_path: Path) -> None:
    """Also where name and revision agree: final in folders a and b, or a folder that was overwritten."""
    folders = set()
    for weights in ("weights of a", "weights of b"):
        resolved = ResolvedModel(
            tmp_path, "final", "a/final", "local", "llama", 2, 8, weights, "tokenizer", "float32", "sdpa"
        )
        digest = activations_digest(ExtractionSpec(), resolved, "dataset")
        folders.add(str(activations_folder(Location.open(tmp_path), resolved, "dataset", digest)))
    assert len(folders) == 2
    assert len({folder.rsplit("/", 1)[0] for folder in folders}) == 1
