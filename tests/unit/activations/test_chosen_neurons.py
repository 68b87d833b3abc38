"""Some neurons of some layers: those of a whole extraction, no more, and named by the model's numbers everywhere."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from sparse_probing.activations import extract_dataset
from sparse_probing.activations.estimate import estimate
from sparse_probing.activations.naming import activations_digest
from sparse_probing.config import ExtractionSpec, load_profile, read_neurons
from sparse_probing.errors import InputError
from sparse_probing.models.resolved import ResolvedModel
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import read_manifest
from sparse_probing.store.matrices import iterate_layers, read_layer
from sparse_probing.store.parquet import read_table
from tests.tiny import random_sequences, save_tiny, write_dataset

# Layers with different numbers of neurons, one with a single one, one with none.
CHOSEN = ((0, 47), (0, 3), (0, 11), (1, 20))
SPEC = {"shard_tokens": 64, "batch_tokens": 48, "calibration_rows": 40}


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def dataset(tmp_path: Path) -> Location:
    sequences = random_sequences(40)
    return write_dataset(tmp_path / "dataset", sequences, [(i, p) for i in range(40) for p in (1, 3)])


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_chosen_neurons_are_columns_of_the_whole(
    tmp_path: Path, resolved: ResolvedModel, dataset: Location, dtype: str
) -> None:
    root = Location.open(tmp_path)
    whole = extract_dataset(dataset, resolved, ExtractionSpec(storage_dtype=dtype, **SPEC), root=root)
    some = extract_dataset(dataset, resolved, ExtractionSpec(storage_dtype=dtype, neurons=CHOSEN, **SPEC), root=root)
    found = list(iterate_layers(some))
    assert [(layer.layer, layer.neurons.tolist()) for layer in found] == [(0, [3, 11, 47]), (1, [20])]
    for layer in found:
        full = read_layer(whole, layer.layer)
        assert full.neurons.tolist() == list(range(48))
        np.testing.assert_array_equal(layer.codes, full.codes[:, layer.neurons])
        np.testing.assert_array_equal(layer.values(), full.values()[:, layer.neurons])
    facts = read_manifest(some).facts
    assert (facts["layers"], facts["n_neurons"], facts["n_neurons_by_layer"]) == ([0, 1], 48, [3, 1])
    assert "neurons.parquet" not in read_manifest(whole).files


def test_readable_without_this_project(tmp_path: Path, resolved: ResolvedModel, dataset: Location) -> None:
    spec = ExtractionSpec(neurons=CHOSEN, **SPEC)
    folder = extract_dataset(dataset, resolved, spec, root=Location.open(tmp_path))
    rows = pq.read_table(f"{folder.path}/layer=00").to_pandas().sort_values("row_id")
    stored = np.frombuffer(b"".join(rows["activation"]), np.uint8).reshape(len(rows), -1)
    neurons = pq.read_table(f"{folder.path}/neurons.parquet").to_pandas().query("layer == 0").sort_values("column")
    ranges = pq.read_table(f"{folder.path}/quantisation.parquet").to_pandas().merge(neurons, on=["layer", "neuron"])
    ranges = ranges.sort_values("column")
    values = ranges["offset"].to_numpy() + ranges["scale"].to_numpy() * (stored + ranges["origin"].to_numpy())
    assert neurons["neuron"].tolist() == [3, 11, 47]
    np.testing.assert_allclose(values, read_layer(folder, 0).values(), rtol=1e-5, atol=1e-6)
    assert sorted(path.name for path in Path(folder.path).glob("layer=*")) == ["layer=00", "layer=01"]


def test_every_neuron_named_is_every_neuron(tmp_path: Path, resolved: ResolvedModel, dataset: Location) -> None:
    root = Location.open(tmp_path)
    everything = tuple((layer, neuron) for layer in range(3) for neuron in range(48))
    folders = [
        extract_dataset(dataset, resolved, ExtractionSpec(neurons=neurons, **SPEC), root=root)
        for neurons in (None, everything)
    ]
    files = [dict(read_manifest(folder).files) for folder in folders]
    assert read_table(folders[1] / "neurons.parquet").num_rows == 3 * 48
    del files[1]["neurons.parquet"]
    assert files[0] == files[1]


def test_the_pass_ends_after_the_last_layer_needed(
    tmp_path: Path, resolved: ResolvedModel, dataset: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparse_probing.activations import extraction

    reached: Counter[int] = Counter()
    load = extraction.load_model

    def watched(*args: object, **options: object) -> object:
        model = load(*args, **options)
        for index, block in enumerate(model.layers):
            block.register_forward_pre_hook(lambda module, inputs, i=index: reached.update([i]))
        return model

    monkeypatch.setattr(extraction, "load_model", watched)
    extract_dataset(dataset, resolved, ExtractionSpec(neurons=CHOSEN, **SPEC), root=Location.open(tmp_path))
    # The self-check runs the whole model once.
    assert reached[0] == reached[1] > 4
    assert set(reached.values()) == {reached[0], 1}


def test_the_estimate_counts_chosen_neurons_alone(tmp_path: Path, resolved: ResolvedModel, dataset: Location) -> None:
    cost = estimate(dataset, resolved, ExtractionSpec(neurons=CHOSEN, **SPEC), trial_tokens=64)
    assert (cost.n_layers, cost.layer_bytes, cost.stored_bytes) == (2, 80 * 3, 80 * 4)
    assert cost.staged_bytes <= 80 * 4 * 2


def test_a_file_of_neurons_counts_by_its_content(tmp_path: Path, resolved: ResolvedModel) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "best.csv").write_text("layer,neuron\n1,20\n0,3\n", encoding="utf-8")
    (tmp_path / "other.csv").write_text("neuron, layer,score\n3,0,0.5\n20,1,0.4\n", encoding="utf-8-sig")
    profiles = []
    for folder, name in ((tmp_path / "one", "best.csv"), (tmp_path, "other.csv")):
        path = folder / "profile.toml"
        path.write_text(
            f'name = "x"\n[[models]]\nid = "m"\n[[collections]]\ncollection = "c"\n[extraction]\nneurons = "{name}"\n',
            encoding="utf-8",
        )
        profiles.append(load_profile(str(path)))
    assert profiles[0].extraction.neurons == ((0, 3), (1, 20))
    digests = {
        activations_digest(spec, resolved, "d")
        for spec in (*(profile.extraction for profile in profiles), ExtractionSpec(neurons=((1, 20), (0, 3))))
    }
    assert len(digests) == 1
    assert digests != {activations_digest(ExtractionSpec(neurons=((1, 21), (0, 3))), resolved, "d")}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("layer;neuron\n1;2\n", "no column layer and neuron"),
        ("layer,score\n1,2\n", "no column neuron"),
        ("layer,neuron\n", "lists no neuron"),
        ("", "no column"),
        ("layer,neuron\n1,2\n1,x\n", "line 3"),
        ("layer,neuron\n1\n", "line 2"),
    ],
)
def test_a_broken_file_of_neurons_is_one_clear_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "neurons.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=expected) as caught:
        read_neurons(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_neurons(tmp_path / "no_such.csv")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"neurons": []}, "empty"),
        ({"neurons": [(0, 1), (1, 1), (0, 1)]}, "layer 0, neuron 1 is listed twice"),
        ({"neurons": [(0, -1)]}, "negative"),
        ({"neurons": [(0, 1)], "layers": [0]}, "both layers and neurons"),
        ({"neurons": "neurons.csv"}, "neurons"),
    ],
)
def test_what_is_no_choice_is_refused(fields: dict[str, object], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        ExtractionSpec(**fields)


@pytest.mark.parametrize(
    ("neurons", "expected"),
    [(((0, 1), (7, 1)), "layer 7 requested.*3 layers"), (((1, 48),), "Neuron 48 of layer 1 requested.* 48 ")],
)
def test_neurons_that_the_model_lacks_are_refused(
    tmp_path: Path, resolved: ResolvedModel, dataset: Location, neurons: tuple[tuple[int, int], ...], expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        extract_dataset(dataset, resolved, ExtractionSpec(neurons=neurons), root=Location.open(tmp_path))
