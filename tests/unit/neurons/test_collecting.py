"""One pass without storage equals what an extraction stores: statistics, contexts, and scores to the last bit."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_probing.activations import extract_dataset
from sparse_probing.activations.capture import Capture, TokenBatch
from sparse_probing.config import ExtractionSpec
from sparse_probing.errors import ArtifactError, DataError, InputError
from sparse_probing.models.loading import load_model
from sparse_probing.models.resolved import ResolvedModel
from sparse_probing.neurons import Collected, calibrate, collect, collecting, load_collected, save_collected
from sparse_probing.probes.labelling import SignedLabels
from sparse_probing.probes.single import NeuronScores, score_counts, score_features
from sparse_probing.probes.single.counts import LevelCounts, count_levels
from sparse_probing.store.filesystem import Location
from sparse_probing.store.labels import read_labels
from sparse_probing.store.manifests import read_manifest
from sparse_probing.store.matrices import iterate_layers
from sparse_probing.store.parquet import read_table
from tests.tiny import random_sequences, write_dataset
from tests.unit.neurons.conftest import make_dataset
from tests.unit.neurons.test_contexts import by_sorting

# Ranges come from fewer rows than training has, and several shards and batches follow them.
SPEC = ExtractionSpec(shard_tokens=128, batch_tokens=64, calibration_rows=60)


def stored(
    dataset: Location, resolved: ResolvedModel, spec: ExtractionSpec, root: Path, dtype: str
) -> tuple[Location, np.ndarray]:
    """An extraction's artifact and its (n_layers, n_rows, n_neurons) codes."""
    spec = spec.model_copy(update={"storage_dtype": dtype})
    folder = extract_dataset(dataset, resolved, spec, root=Location.open(root))
    return folder, np.stack([layer.codes for layer in iterate_layers(folder)])


def assert_equal_scores(one: NeuronScores, two: NeuronScores) -> None:
    """Every array of both has the same bits."""
    for field in fields(NeuronScores):
        left, right = getattr(one, field.name), getattr(two, field.name)
        if field.name in ("metrics", "best_metrics"):
            for split, metrics in left.items():
                for metric, value in metrics.items():
                    assert value.tobytes() == right[split][metric].tobytes(), (split, metric)
        else:
            assert left.tobytes() == right.tobytes(), field.name


def assert_same(one: Collected, two: Collected) -> None:
    """Equal but for the rounding of mean and variance."""
    for field in fields(type(one.statistics)):
        left, right = getattr(one.statistics, field.name), getattr(two.statistics, field.name)
        if field.name in ("mean", "sum_squares"):
            np.testing.assert_allclose(left, right, rtol=1e-10, atol=1e-12)
        else:
            np.testing.assert_array_equal(left, right)
    for part in ("contexts", "levels"):
        for field in fields(type(getattr(one, part))):
            left, right = getattr(getattr(one, part), field.name), getattr(getattr(two, part), field.name)
            np.testing.assert_array_equal(left, right, err_msg=field.name)


@pytest.fixture(scope="module")
def found(dataset: Location, resolved: ResolvedModel) -> Collected:
    return collect(dataset, resolved, SPEC, n_contexts=6, n_bins=20)


def test_statistics_and_contexts_equal_those_of_stored_floats(
    tmp_path: Path, dataset: Location, resolved: ResolvedModel, found: Collected
) -> None:
    folder, values = stored(dataset, resolved, SPEC, tmp_path, "float32")
    rows = read_table(folder / "rows.parquet")
    assert found.is_complete
    assert found.layers == (0, 1, 2)
    assert found.statistics is not None
    assert found.statistics.n_rows == values.shape[1] == 300
    exact = values.astype(np.float64)
    np.testing.assert_allclose(found.statistics.mean, exact.mean(axis=1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.statistics.variance, exact.var(axis=1), rtol=1e-9)
    np.testing.assert_array_equal(found.statistics.low, values.min(axis=1))
    np.testing.assert_array_equal(found.statistics.high, values.max(axis=1))
    np.testing.assert_array_equal(found.statistics.n_positive, (values > 0).sum(axis=1))
    assert found.contexts is not None
    sequence = np.unique(rows.column("seq_id").to_numpy(), return_inverse=True)[1]
    np.testing.assert_array_equal(found.contexts.rows, by_sorting(values, sequence, 6, True))
    layers, _, neurons = np.ogrid[:3, :1, :48]
    taken = values[layers, found.contexts.rows.transpose(0, 2, 1), neurons].transpose(0, 2, 1)
    np.testing.assert_array_equal(found.contexts.values, taken)


@pytest.mark.parametrize(
    ("pooling", "changes"),
    [("none", {}), ("none", {"layers": (2, 0)}), ("mean", {}), ("none", {"hook": "hook_resid_post"})],
)
def test_scores_equal_those_of_stored_levels_to_the_last_bit(
    tmp_path: Path, resolved: ResolvedModel, pooling: str, changes: dict[str, object]
) -> None:
    dataset = make_dataset(tmp_path / "dataset", pooling)
    spec = SPEC.model_copy(update=changes)
    done = collect(dataset, resolved, spec, what=["levels"])
    assert done.levels is not None
    folder, _ = stored(dataset, resolved, spec, tmp_path, "uint8")
    labels = read_labels(dataset, folder)
    assert set(done.levels.features) == set(labels.features) == {"often", "seldom", "rest"}
    assert (labels.labels == 0).any(), "a row that has no label of a feature must not count for it"
    assert read_manifest(folder).facts["max_clipped_fraction"] > 0, "some value must lie outside of the ranges"
    for layer in iterate_layers(folder):
        quantisation = {"offset": layer.offset, "scale": layer.scale}
        by_hand = count_levels(layer.codes, SignedLabels(labels.labels), labels.split, **quantisation)
        scores = score_features(layer.codes, SignedLabels(labels.labels), split=labels.split, **quantisation)
        for column, feature in enumerate(labels.features):
            counts = LevelCounts(**done.counts(feature, layer.layer))
            np.testing.assert_array_equal(counts.counts, by_hand[column].counts)
            assert_equal_scores(score_counts(counts), scores[column])


def test_clipped_rows_are_told(tmp_path: Path, dataset: Location, resolved: ResolvedModel, found: Collected) -> None:
    folder, _ = stored(dataset, resolved, SPEC, tmp_path, "uint8")
    table = read_table(folder / "quantisation.parquet")
    assert found.levels is not None
    fraction = table.column("clipped_fraction").to_numpy().reshape(3, 48)
    np.testing.assert_allclose(found.levels.n_clipped / found.levels.n_rows, fraction, rtol=1e-6)


def test_parts_in_any_order_make_the_whole(dataset: Location, resolved: ResolvedModel, found: Collected) -> None:
    ranges = calibrate(dataset, resolved, SPEC)
    parts = [collect(dataset, resolved, SPEC, n_contexts=6, n_bins=20, ranges=ranges, shard=(i, 3)) for i in range(3)]
    assert not parts[0].is_complete
    for order in ((0, 1, 2), (2, 0, 1)):
        first, second, third = (parts[i] for i in order)
        whole = first.merge(second.merge(third))
        assert whole.is_complete
        assert_same(whole, found)
    with pytest.raises(InputError, match="in common"):
        parts[0].merge(parts[0])
    with pytest.raises(InputError, match="cannot be merged"):
        parts[0].merge(collect(dataset, resolved, SPEC, what=["contexts"], shard=(1, 3)))
    other = SPEC.model_copy(update={"batch_tokens": 65})
    with pytest.raises(InputError, match="of one pass"):
        parts[0].merge(collect(dataset, resolved, other, n_contexts=6, n_bins=20, shard=(1, 3)))


def test_counts_of_two_datasets_add_up_whatever_columns_they_share(
    tmp_path: Path, dataset: Location, resolved: ResolvedModel, found: Collected
) -> None:
    """In one dataset all features are labelled alike, in the other they are not."""
    assert found.ranges is not None
    assert found.levels is not None
    sequences = random_sequences(30, seed=5)
    other = write_dataset(tmp_path / "other", sequences, [(i, 2) for i in range(30)])
    alone = collect(other, resolved, SPEC, what=["levels"], ranges=found.ranges).levels
    assert alone is not None
    assert len(set(found.levels.labelled)) == 2
    assert len(set(alone.labelled + alone.positive)) == 2
    same_labels = replace(alone, features=found.levels.features, labelled=(0, 0, 0), positive=(1, 1, 1))
    both = found.levels.merge(same_labels)
    assert both.n_rows == found.levels.n_rows + 30
    for feature in both.features:
        wanted = LevelCounts(**found.levels.of(feature, 1)) + LevelCounts(**alone.of("feature", 1))
        np.testing.assert_array_equal(both.of(feature, 1)["counts"], wanted.counts)
    with pytest.raises(InputError, match="cannot be merged"):
        found.levels.merge(alone)


def test_calibration_rows_are_held_as_far_as_there_is_room(
    monkeypatch: pytest.MonkeyPatch, dataset: Location, resolved: ResolvedModel
) -> None:
    spec = SPEC.model_copy(update={"calibration_rows": 150})
    n_runs = 0
    run = collecting.Capture.run

    def counted(self: Capture, batch: TokenBatch) -> dict[str, torch.Tensor]:
        nonlocal n_runs
        n_runs += 1
        return run(self, batch)

    monkeypatch.setattr(collecting.Capture, "run", counted)
    found, runs = [], []
    for room in (1 << 30, 50_000, 0):
        monkeypatch.setattr(collecting, "_KEPT_BYTES", room)
        n_runs = 0
        found.append(collect(dataset, resolved, spec, n_contexts=6, n_bins=20))
        runs.append(n_runs)
    assert runs[0] < runs[1] < runs[2]
    for other in found[1:]:
        assert_same(other, found[0])


def test_make_up_of_batches_matters_only_by_rounding(
    dataset: Location, resolved: ResolvedModel, found: Collected
) -> None:
    other = collect(
        dataset,
        load_model(resolved),
        SPEC.model_copy(update={"batch_tokens": 1}),
        n_contexts=6,
        n_bins=20,
        ranges=found.ranges,
    )
    assert other.statistics is not None
    assert found.statistics is not None
    np.testing.assert_allclose(other.statistics.mean, found.statistics.mean, rtol=1e-5, atol=1e-6)
    assert other.contexts is not None
    assert found.contexts is not None
    np.testing.assert_allclose(other.contexts.values, found.contexts.values, rtol=1e-5, atol=1e-6)


def test_ranges_come_from_training_rows_alone(tmp_path: Path, resolved: ResolvedModel) -> None:
    """Text that only validation and test hold, however extreme its activations, moves no range."""
    sequences = random_sequences(20)
    splits = ["train"] * 10 + ["test"] * 10
    rows = [(i, 3) for i in range(20)]
    ranges = []
    for name, seed in (("one", 1), ("two", 2)):
        others = random_sequences(10, seed=seed)
        dataset = write_dataset(tmp_path / name, [*sequences[:10], *others], rows, splits=splits)
        ranges.append(calibrate(dataset, resolved, SPEC))
    np.testing.assert_array_equal(ranges[0].offset, ranges[1].offset)
    np.testing.assert_array_equal(ranges[0].scale, ranges[1].scale)
    untrained = write_dataset(tmp_path / "untrained", sequences, rows, splits=["test"] * 20)
    with pytest.raises(DataError, match="No training row"):
        collect(untrained, resolved, SPEC)
    assert collect(untrained, resolved, SPEC, what=["contexts"]).contexts is not None


def test_how_an_extraction_would_store_plays_no_part(
    dataset: Location, resolved: ResolvedModel, found: Collected
) -> None:
    spec = SPEC.model_copy(update={"storage_dtype": "float32"})
    other = collect(dataset, resolved, spec, n_contexts=6, n_bins=20)
    assert (other.digest, other.spec) == (found.digest, found.spec)
    assert_same(other, found)


def test_text_without_labels_has_statistics_and_contexts(tmp_path: Path, resolved: ResolvedModel) -> None:
    sequences = random_sequences(15)
    dataset = write_dataset(tmp_path / "dataset", sequences, [])
    spec = SPEC.model_copy(update={"positions": "all"})
    done = collect(dataset, resolved, spec, what=["statistics", "contexts"], n_contexts=20)
    assert done.statistics is not None
    assert done.statistics.n_rows == sum(len(tokens) - 1 for tokens in sequences)
    assert done.contexts is not None
    assert (done.contexts.rows[..., :15] >= 0).all(), "one context of each of the fifteen sequences"
    assert (done.contexts.rows[..., 15:] == -1).all()
    with pytest.raises(InputError, match="no classification feature"):
        collect(dataset, resolved, spec)


def test_only_labelled_rows_count_among_all_positions(
    dataset: Location, resolved: ResolvedModel, found: Collected
) -> None:
    spec = SPEC.model_copy(update={"positions": "all"})
    done = collect(dataset, resolved, spec, what=["levels"], features=["seldom"], ranges=found.ranges).levels
    assert done is not None
    assert found.levels is not None
    labels = read_table(dataset / "labels.parquet").to_pandas()
    # The first position is outside of what pooling may use: a label there has no row among all positions.
    wanted = labels[(labels.feature == "seldom") & (labels.position > 0)]
    assert 0 < len(wanted) < len(labels[labels.feature == "seldom"])
    counts = done.of("seldom", 0)["counts"]
    assert (counts.sum(axis=(0, 3)) == [[(wanted.label < 0).sum()], [(wanted.label > 0).sum()]]).all()


def test_parts_travel_as_files(tmp_path: Path, dataset: Location, resolved: ResolvedModel, found: Collected) -> None:
    root = Location.open(tmp_path)
    for i in range(2):
        part = collect(dataset, resolved, SPEC, n_contexts=6, n_bins=20, ranges=found.ranges, shard=(i, 2))
        save_collected(part, root / f"part-{i}.npz")
    whole = load_collected(root / "part-1.npz").merge(load_collected(root / "part-0.npz"))
    assert whole.is_complete
    assert (whole.spec, whole.layers, whole.digest) == (found.spec, found.layers, found.digest)
    assert_same(whole, found)
    bare = collect(dataset, resolved, SPEC, what=["contexts"], n_contexts=6)
    save_collected(bare, root / "contexts.npz")
    read = load_collected(root / "contexts.npz")
    assert (read.ranges, read.statistics, read.levels) == (None, None, None)
    assert read.merge(replace(bare, shards=frozenset())).shards == bare.shards


def test_a_damaged_file_is_noticed(tmp_path: Path, found: Collected) -> None:
    location = Location.open(tmp_path) / "part.npz"
    with pytest.raises(ArtifactError):
        load_collected(location)
    save_collected(found, location)
    data = location.read_bytes()
    for damaged in (data[: len(data) // 2], data[:5000] + b"?" * 100 + data[5100:], b"", b"text"):
        location.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"Collect that part again"):
            load_collected(location)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"what": []}, "asked for"),
        ({"what": ["means"]}, "asked for"),
        ({"shard": (2, 2)}, "0 ≤ i < n"),
        ({"features": ["amount"]}, "amount asked for"),
        ({"features": []}, "no feature asked for"),
    ],
)
def test_what_is_not_there_is_refused(
    dataset: Location, resolved: ResolvedModel, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        collect(dataset, resolved, SPEC, **arguments)


def test_counts_that_are_not_there_are_refused(dataset: Location, resolved: ResolvedModel, found: Collected) -> None:
    with pytest.raises(InputError, match="layer 3 asked for"):
        found.counts("often", 3)
    with pytest.raises(InputError, match="'amount' in layer 0 asked for"):
        found.counts("amount", 0)
    with pytest.raises(InputError, match="there are none"):
        collect(dataset, resolved, SPEC, what=["contexts"]).counts("often", 0)


def test_ranges_of_another_model_are_refused(dataset: Location, resolved: ResolvedModel, found: Collected) -> None:
    with pytest.raises(InputError, match="Ranges of"):
        collect(dataset, resolved, SPEC.model_copy(update={"layers": (1,)}), ranges=found.ranges)
