"""Contexts as text: the right token is marked, in the right sentence, with nothing lost around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sparse_probing import schemas
from sparse_probing.activations import Selection, extract
from sparse_probing.activations.plan import read_corpus
from sparse_probing.config import ExtractionSpec, ModelSpec
from sparse_probing.errors import InputError
from sparse_probing.models.loading import load_model, load_tokenizer, resolve_model
from sparse_probing.models.resolved import ResolvedModel
from sparse_probing.neurons import Collected, collect
from sparse_probing.neurons.contexts import context_table
from sparse_probing.store.filesystem import Location
from tests.tiny import write_dataset

SPEC = ExtractionSpec(positions="all", layers=(0, 2))


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    return resolve_model(ModelSpec(id=str(tiny_model)), models_dir=tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def tokenizer(model: ResolvedModel) -> Any:
    return load_tokenizer(model)


@pytest.fixture(scope="module")
def sequences(sentences: list[str], tokenizer: Any) -> list[np.ndarray]:
    """Sentences of many scripts behind a beginning token; most characters are several byte tokens."""
    return [np.array([0, *tokenizer(text)["input_ids"]][:64], dtype=np.int32) for text in sentences[::3000]]


@pytest.fixture(scope="module")
def dataset(sequences: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Location:
    return write_dataset(tmp_path_factory.mktemp("contexts") / "dataset", sequences, [])


@pytest.fixture(scope="module")
def found(dataset: Location, model: ResolvedModel) -> Collected:
    return collect(dataset, model, SPEC, what=["contexts"], n_contexts=4)


def test_each_row_shows_the_token_that_was_read(
    dataset: Location, model: ResolvedModel, tokenizer: Any, sequences: list[np.ndarray], found: Collected
) -> None:
    table = found.context_table(dataset, tokenizer, neurons=[(2, 5), (0, 63), (2, 0)], window=6)
    assert table.schema == schemas.NEURON_CONTEXTS
    rows = table.to_pylist()
    assert [(row["layer"], row["neuron"], row["rank"]) for row in rows] == [
        (layer, neuron, rank) for layer, neuron in [(2, 5), (0, 63), (2, 0)] for rank in range(1, 5)
    ]
    runnable = load_model(model)
    for row in rows:
        tokens, at = sequences[row["seq_id"]], row["position"]
        text = row["before"] + row["token"] + row["after"]
        window = tokens[max(0, at - 6) : at + 7].tolist()
        if "\ufffd" not in tokenizer.decode(window) + row["token"] + row["before"]:
            assert text == tokenizer.decode(window)
            assert row["token"] == tokenizer.decode([tokens[at]])
        # The activation told is that of this token, run alone in its sequence.
        selection = Selection("none", *(np.array([value]) for value in (0, at, at + 1)))
        value = next(extract(runnable, [tokens], selection)).values["mlp.hook_post"][row["layer"], 0, row["neuron"]]
        assert row["activation"] == pytest.approx(float(value), rel=1e-4, abs=1e-6)
    assert any("\ufffd" not in row["before"] + row["token"] + row["after"] for row in rows)


def test_all_neurons_in_order(dataset: Location, tokenizer: Any, found: Collected) -> None:
    table = found.context_table(dataset, tokenizer, window=2)
    assert table.num_rows == 2 * 64 * 4
    assert pa.compute.unique(table.column("layer")).to_pylist() == [0, 2]
    activation = table.column("activation").to_numpy().reshape(128, 4)
    assert (np.diff(activation, axis=1) <= 0).all()


def test_a_row_read_one_token_earlier_marks_the_token_read(
    tmp_path: Path, model: ResolvedModel, tokenizer: Any, sequences: list[np.ndarray]
) -> None:
    dataset = write_dataset(tmp_path / "dataset", sequences, [(i, 9) for i in range(len(sequences))])
    spec = ExtractionSpec(next_token=True)
    done = collect(dataset, model, spec, what=["contexts"], n_contexts=2)
    assert set(done.context_table(dataset, tokenizer).column("position").to_pylist()) == {8}


def test_a_pooled_row_marks_its_range(tmp_path: Path, model: ResolvedModel, tokenizer: Any) -> None:
    text = "one two three four five six seven eight nine ten"
    tokens = np.array([0, *tokenizer(text)["input_ids"]], dtype=np.int32)
    rows = {}
    for pooling in ("mean", "last"):
        folder = tmp_path / pooling
        dataset = write_dataset(
            folder, [tokens] * 5, [(i, None) for i in range(5)], pooling=pooling, ranges=[(3, 8)] * 5
        )
        done = collect(dataset, model, what=["contexts"], n_contexts=2)
        rows[pooling] = done.context_table(dataset, tokenizer, neurons=[(1, 7)], window=2).to_pylist()
        # Equal sequences: the lower row id comes first.
        assert [row["row_id"] for row in rows[pooling]] == [0, 1]
    mean, last = rows["mean"][0], rows["last"][0]
    assert (mean["position"], last["position"]) == (None, 7)
    decoded = [tokenizer.decode(tokens[a:b].tolist()) for a, b in ((1, 3), (3, 8), (8, 10), (5, 7), (7, 8))]
    assert [mean["before"], mean["token"], mean["after"]] == decoded[:3]
    assert [last["before"], last["token"], last["after"]] == [decoded[3], decoded[4], decoded[2]]
    long = write_dataset(tmp_path / "long", [tokens] * 5, [(i, None) for i in range(5)], pooling="mean")
    done = collect(long, model, what=["contexts"], n_contexts=1)
    row = done.context_table(long, tokenizer, neurons=[(0, 0)], window=1).to_pylist()[0]
    parts = [tokenizer.decode(tokens[a:b].tolist()) for a, b in ((0, 1), (1, 4), (4, 5))]
    assert [row["before"], row["token"], row["after"]] == parts


def test_what_is_not_there_is_refused(
    tmp_path: Path, dataset: Location, model: ResolvedModel, tokenizer: Any, found: Collected
) -> None:
    with pytest.raises(InputError, match=r"\(1, 0\) asked for"):
        found.context_table(dataset, tokenizer, neurons=[(1, 0)])
    small = write_dataset(tmp_path / "small", [np.array([0, 5, 6], np.int32)], [], digest="cd" * 32)
    with pytest.raises(InputError, match="has digest cdcd"):
        found.context_table(small, tokenizer)
    assert found.contexts is not None
    with pytest.raises(InputError, match="corpus of 2 rows"):
        context_table(found.contexts, read_corpus(small, bos_token_id=0, positions="all"), tokenizer, layers=(0, 2))
    with pytest.raises(InputError, match="No contexts"):
        collect(dataset, model, SPEC, what=["statistics"]).context_table(dataset, tokenizer)
