"""One flipped byte in any stored Parquet file, wherever it is, is found by its digest before the file is used."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sparse_probing.activations import extract_dataset
from sparse_probing.config import ExtractionSpec
from sparse_probing.errors import ArtifactError
from sparse_probing.models.resolved import ResolvedModel
from sparse_probing.store.datasets import dataset_frames
from sparse_probing.store.filesystem import Location
from sparse_probing.store.labels import read_labels
from sparse_probing.store.manifests import read_manifest
from sparse_probing.store.matrices import iterate_layers
from sparse_probing.store.results import read_part, write_part
from tests.sql.rows import table
from tests.tiny import random_sequences, save_tiny, write_dataset

SPEC = ExtractionSpec(shard_tokens=160, batch_tokens=80, calibration_rows=60)


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, resolved: ResolvedModel) -> tuple[Path, Path]:
    """Folders of a dataset and of the activations extracted from it."""
    folder = tmp_path_factory.mktemp("stored")
    sequences = random_sequences(30)
    labels = [(i, int(p)) for i, tokens in enumerate(sequences) for p in range(1, len(tokens), 4)]
    dataset = write_dataset(folder / "dataset", sequences, labels)
    return folder / "dataset", Path(extract_dataset(dataset, resolved, SPEC, root=Location.open(folder)).path)


def flip_a_byte(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(bytes(data))


def found_in_each_file(folder: Path, copy: Path, use: Callable[[Location], object]) -> int:
    """Damage a copy's files in turn, at a random byte each; how many there were."""
    rng = np.random.default_rng(0)
    names = list(read_manifest(Location.open(folder)).files)
    for name in names:
        shutil.copytree(folder, copy)
        use(Location.open(copy))
        flip_a_byte(copy / name, rng)
        with pytest.raises(ArtifactError, match=rf"{re.escape(str(copy / name))} is damaged: SHA-256"):
            use(Location.open(copy))
        shutil.rmtree(copy)
    return len(names)


def test_of_a_dataset_that_is_extracted(tmp_path: Path, stored: tuple[Path, Path], resolved: ResolvedModel) -> None:
    runs = iter(range(100))

    def use(dataset: Location) -> None:
        extract_dataset(dataset, resolved, SPEC, root=Location.open(tmp_path / f"run-{next(runs)}"))

    assert found_in_each_file(stored[0], tmp_path / "dataset", use) == 2
    assert found_in_each_file(stored[0], tmp_path / "dataset", dataset_frames) == 2


def test_of_activations_that_are_probed(tmp_path: Path, stored: tuple[Path, Path]) -> None:
    # Labels as a study writes them say what each feature is.
    facts = [{"name": "feature", "task": "classification", "level": "token"}]
    manifest = stored[0] / "manifest.json"
    dataset = tmp_path / "dataset"
    shutil.copytree(stored[0], dataset)
    text = manifest.read_text(encoding="utf-8")
    described = re.sub(r'"features": \[[^\]]*\]', '"features": ' + str(facts).replace("'", '"'), text)
    (dataset / "manifest.json").write_text(described, encoding="utf-8")
    (dataset / "made.json").unlink()

    def use(activations: Location) -> None:
        read_labels(Location.open(dataset), activations)
        for _ in iterate_layers(activations):
            pass

    assert found_in_each_file(stored[1], tmp_path / "activations", use) >= 8


def test_of_a_run_that_is_finished_later(tmp_path: Path) -> None:
    root = Location.open(tmp_path)
    part = {"neuron_scores": table("neuron_scores", [{"neuron": i} for i in range(300)])}
    write_part(root, "r1", "layer-00", part)
    path = next(tmp_path.rglob("neuron_scores.parquet"))
    rng = np.random.default_rng(1)
    whole = path.read_bytes()
    for _ in range(50):
        flip_a_byte(path, rng)
        with pytest.raises(ArtifactError, match="is damaged: SHA-256"):
            read_part(root, "r1", "layer-00", "neuron_scores")
        path.write_bytes(whole)
    assert read_part(root, "r1", "layer-00", "neuron_scores").equals(part["neuron_scores"])
