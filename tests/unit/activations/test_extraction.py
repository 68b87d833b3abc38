"""The stored artifact: right numbers in the right rows, honest ranges, and damage that is noticed."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from sparse_probing.activations import Selection, extract, extract_dataset
from sparse_probing.activations.capture import Capture, TokenBatch
from sparse_probing.activations.extraction import extract_datasets
from sparse_probing.activations.naming import activations_digest
from sparse_probing.config import ExtractionSpec
from sparse_probing.errors import ArtifactError, DataError, InputError
from sparse_probing.models.loading import load_model
from sparse_probing.models.resolved import ResolvedModel
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import find_manifest, read_manifest, verify_files
from sparse_probing.store.matrices import read_layer
from sparse_probing.store.parquet import read_table
from tests.tiny import random_sequences, save_tiny, write_dataset

SPEC = ExtractionSpec(storage_dtype="float32", shard_tokens=64, batch_tokens=48)
N_SEQUENCES = 40


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


def labelled(sequences: list[np.ndarray], seed: int = 1) -> list[tuple[int, int | None]]:
    """Three positions a sequence, one of them labelled twice; every seventh sequence has no label."""
    rng = np.random.default_rng(seed)
    labels: list[tuple[int, int | None]] = []
    for i, tokens in enumerate(sequences):
        if i % 7 != 3:
            labels += [(i, int(p)) for p in rng.choice(len(tokens), 3, replace=False)]
            labels.append(labels[-1])
    return labels


def reference(resolved: ResolvedModel, sequences: list[np.ndarray], rows: list[tuple[int, int, int]], pooling: str):
    """(n_layers, n_rows, n_neurons) of one sequence at a time, without padding."""
    model = load_model(resolved)
    out = []
    for sequence, start, stop in rows:
        selection = Selection(pooling, *(np.array([value]) for value in (0, start, stop)))
        out.append(next(extract(model, [sequences[sequence]], selection)).values["mlp.hook_post"][:, 0])
    return np.stack([np.array(part) for part in out], axis=1)


def stored(folder: Location) -> np.ndarray:
    layers = read_manifest(folder).facts["layers"]
    return np.stack([read_layer(folder, layer).values() for layer in layers])


def test_rows_are_the_distinct_labelled_positions_in_order(tmp_path: Path, resolved: ResolvedModel) -> None:
    sequences = random_sequences(N_SEQUENCES)
    labels = labelled(sequences)
    dataset = write_dataset(tmp_path / "dataset", sequences, labels[::-1])
    seen: list[tuple[int, int]] = []
    folder = extract_dataset(
        dataset, resolved, SPEC, root=Location.open(tmp_path), progress=lambda done, total: seen.append((done, total))
    )
    pairs = sorted(set(labels))
    rows = read_table(folder / "rows.parquet").to_pydict()
    assert rows["row_id"] == list(range(len(pairs)))
    assert list(zip(rows["seq_id"], rows["position"], strict=True)) == pairs
    assert rows["group_id"] == [f"group-{i}" for i, _ in pairs]
    wanted = reference(resolved, sequences, [(i, p, p + 1) for i, p in pairs], "none")
    np.testing.assert_allclose(stored(folder), wanted, rtol=1e-5, atol=1e-6)
    facts = read_manifest(folder).facts
    used = {i for i, _ in pairs}
    n_tokens = sum(len(sequences[i]) for i in used)
    assert (facts["n_rows"], facts["n_sequences"], facts["n_tokens"]) == (len(pairs), len(used), n_tokens)
    # From the start, after every batch of at most 48 tokens, to the end.
    done = [tokens for tokens, total in seen if total == n_tokens]
    assert (seen[0], seen[-1]) == ((0, n_tokens), (n_tokens, n_tokens))
    assert done == sorted(set(done))
    assert max(np.diff(done)) <= 48
    assert facts["layers"] == [0, 1, 2]
    assert facts["n_neurons"] == 48
    assert folder.path.startswith(f"{tmp_path}/activations/tiny@local/abababababab-")


@pytest.mark.parametrize("pooling", ["mean", "max", "last"])
def test_pooled_rows_use_the_range_and_never_the_first_token(
    tmp_path: Path, resolved: ResolvedModel, pooling: str
) -> None:
    """The model's beginning-of-sequence id is 0: a first token of 0 is left out even where pool_start is 0."""
    sequences = random_sequences(N_SEQUENCES)
    for tokens in sequences[::2]:
        tokens[0] = 0
    ranges = [(0 if i < 20 else 2, len(tokens) - (i % 2)) for i, tokens in enumerate(sequences)]
    dataset = write_dataset(
        tmp_path / "dataset", sequences, [(i, None) for i in range(N_SEQUENCES)], pooling=pooling, ranges=ranges
    )
    folder = extract_dataset(dataset, resolved, SPEC, root=Location.open(tmp_path))
    rows = [(i, 1 if start == 0 and sequences[i][0] == 0 else start, stop) for i, (start, stop) in enumerate(ranges)]
    assert {start for _, start, _ in rows} == {0, 1, 2}
    np.testing.assert_allclose(stored(folder), reference(resolved, sequences, rows, pooling), rtol=1e-5, atol=1e-6)
    assert read_table(folder / "rows.parquet").column("position").null_count == N_SEQUENCES


def test_batches_and_shards_do_not_change_the_numbers(tmp_path: Path, resolved: ResolvedModel) -> None:
    sequences = random_sequences(N_SEQUENCES)
    dataset = write_dataset(tmp_path / "dataset", sequences, labelled(sequences))
    found = [
        stored(
            extract_dataset(
                dataset,
                resolved,
                ExtractionSpec(storage_dtype="float32", shard_tokens=shard, batch_tokens=batch),
                root=Location.open(tmp_path),
            )
        )
        for shard, batch in ((30, 1), (100, 60), (10**6, 10**6))
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[0], found[2], rtol=1e-5, atol=1e-6)


def test_uint8_ranges_come_from_training_rows_and_errors_stay_within_their_bound(
    tmp_path: Path, resolved: ResolvedModel
) -> None:
    sequences = random_sequences(N_SEQUENCES)
    dataset = write_dataset(tmp_path / "dataset", sequences, labelled(sequences))
    root = Location.open(tmp_path)
    exact = stored(extract_dataset(dataset, resolved, SPEC, root=root))
    spec = SPEC.model_copy(update={"storage_dtype": "uint8"})
    folder = extract_dataset(dataset, resolved, spec, root=root)
    training = np.array(read_table(folder / "rows.parquet").column("split").to_pylist()) == "train"
    table = read_table(folder / "quantisation.parquet")
    offset, scale, clipped, error = (
        table.column(name).to_numpy().reshape(3, 48) for name in ("offset", "scale", "clipped_fraction", "max_error")
    )
    low, high = exact[:, training].min(axis=1), exact[:, training].max(axis=1)
    np.testing.assert_allclose(offset, low, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(offset + 255 * scale, high, rtol=1e-3, atol=1e-4)
    assert (exact.max(axis=1) > high).any(), "no test row outside of the training range: the test shows nothing"
    difference = np.abs(stored(folder) - exact)
    rounding = 2.0**-11 * np.abs(exact)
    inside = (exact >= low[:, None]) & (exact <= high[:, None])
    assert (difference <= 0.501 * scale[:, None] + rounding + 1e-6)[inside].all()
    outside = (exact > (high + scale)[:, None]) | (exact < (low - scale)[:, None])
    assert ((outside.mean(axis=1) > 0) <= (clipped > 0)).all()
    facts = read_manifest(folder).facts
    assert facts["max_clipped_fraction"] == pytest.approx(clipped.max())
    assert 0 < facts["max_quantisation_error"] <= facts["quantisation_error_bound"]
    assert facts["quantisation_error_bound"] == pytest.approx(scale.max() / 2, rel=1e-3)
    assert (error <= 0.501 * scale + 1e-6).all()


def test_staged_and_direct_shards_are_encoded_alike(tmp_path: Path, resolved: ResolvedModel) -> None:
    """With the same ranges the same value has the same level, whether or not it was staged."""
    sequences = random_sequences(N_SEQUENCES)
    sequences[5:] = [sequences[i % 5] for i in range(5, N_SEQUENCES)]
    splits = ["train"] * N_SEQUENCES
    labels = [(i, p) for i in range(N_SEQUENCES) for p in range(len(sequences[i]))]
    dataset = write_dataset(tmp_path / "dataset", sequences, labels, splits=splits)
    spec = ExtractionSpec(shard_tokens=sum(map(len, sequences)) // 3, batch_tokens=1, calibration_rows=1)
    folder = extract_dataset(dataset, resolved, spec, root=Location.open(tmp_path))
    rows = read_table(folder / "rows.parquet").to_pydict()
    levels = read_layer(folder, 1).codes
    by_key: dict[tuple[int, int], np.ndarray] = {}
    for row_id, seq_id, position in zip(rows["row_id"], rows["seq_id"], rows["position"], strict=True):
        same = by_key.setdefault((seq_id % 5, position), levels[row_id])
        np.testing.assert_array_equal(levels[row_id], same)
    assert read_manifest(folder).facts["max_clipped_fraction"] == 0


def test_float16_is_the_rounded_activation(tmp_path: Path, resolved: ResolvedModel) -> None:
    sequences = random_sequences(N_SEQUENCES)
    dataset = write_dataset(tmp_path / "dataset", sequences, labelled(sequences))
    root = Location.open(tmp_path)
    exact = stored(extract_dataset(dataset, resolved, SPEC, root=root))
    half = extract_dataset(dataset, resolved, SPEC.model_copy(update={"storage_dtype": "float16"}), root=root)
    np.testing.assert_array_equal(stored(half), exact.astype(np.float16).astype(np.float32))


def test_a_finished_artifact_is_found_and_left_alone(tmp_path: Path, resolved: ResolvedModel) -> None:
    sequences = random_sequences(10)
    dataset = write_dataset(tmp_path / "dataset", sequences, labelled(sequences))
    folder = extract_dataset(dataset, resolved, SPEC, root=Location.open(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in Path(folder.path).rglob("*")}
    assert not any(path.name.startswith(("_", ".tmp-")) for path in before)
    assert extract_dataset(dataset, resolved, SPEC, root=Location.open(tmp_path)) == folder
    assert {path: path.stat().st_mtime_ns for path in Path(folder.path).rglob("*")} == before


def test_what_decides_the_numbers_decides_the_digest(resolved: ResolvedModel) -> None:
    base = activations_digest(SPEC, resolved, "d1")
    assert activations_digest(SPEC.model_copy(update={"hook": "mlp.post"}), resolved, "d1") == base
    others = {
        activations_digest(SPEC, resolved, "d2"),
        activations_digest(SPEC, replace(resolved, weights_digest="other"), "d1"),
        activations_digest(SPEC, replace(resolved, dtype="bfloat16"), "d1"),
        activations_digest(SPEC.model_copy(update={"layers": (1,)}), resolved, "d1"),
    }
    assert len(others | {base}) == 5


def test_a_flipped_byte_is_noticed_before_it_is_used(tmp_path: Path, resolved: ResolvedModel) -> None:
    sequences = random_sequences(10)
    dataset = write_dataset(tmp_path / "dataset", sequences, labelled(sequences))
    folder = extract_dataset(dataset, resolved, SPEC, root=Location.open(tmp_path))
    verify_files(folder, read_manifest(folder))
    path = sorted(Path(folder.path).glob("layer=01/*.parquet"))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match="damaged"):
        read_layer(folder, 1)
    read_layer(folder, 0)


def test_readable_without_this_project(tmp_path: Path, resolved: ResolvedModel) -> None:
    sequences = random_sequences(10)
    dataset = write_dataset(tmp_path / "dataset", sequences, labelled(sequences))
    folder = extract_dataset(dataset, resolved, SPEC, root=Location.open(tmp_path))
    frame = pq.read_table(f"{folder.path}/layer=01").to_pandas().sort_values("row_id")
    matrix = np.frombuffer(b"".join(frame["activation"]), dtype="<f4").reshape(len(frame), -1)
    np.testing.assert_array_equal(matrix, read_layer(folder, 1).values())


def test_no_training_row_is_said_before_the_model_runs(tmp_path: Path, resolved: ResolvedModel) -> None:
    sequences = random_sequences(5)
    dataset = write_dataset(tmp_path / "dataset", sequences, labelled(sequences), splits=["test"] * 5)
    with pytest.raises(DataError, match="No training row"):
        extract_dataset(dataset, resolved, ExtractionSpec(), root=Location.open(tmp_path))


def test_bad_requests_leave_no_finished_artifact(tmp_path: Path, resolved: ResolvedModel) -> None:
    sequences = random_sequences(5)
    root = Location.open(tmp_path)
    dataset = write_dataset(tmp_path / "dataset", sequences, labelled(sequences))
    with pytest.raises(InputError, match="has 3"):
        extract_dataset(dataset, resolved, ExtractionSpec(layers=(5,)), root=root)
    broken = write_dataset(tmp_path / "broken", sequences, [(0, 500)], digest="cd" * 32)
    with pytest.raises(ArtifactError, match="outside of its sequence"):
        extract_dataset(broken, resolved, SPEC, root=root)
    stray = write_dataset(tmp_path / "stray", sequences, [(77, 1)], digest="ef" * 32)
    with pytest.raises(ArtifactError, match="not there"):
        extract_dataset(stray, resolved, SPEC, root=root)
    assert all(
        find_manifest(child) is None for model in (root / "activations").children() for child in model.children()
    )


def test_out_of_memory_halves_the_batches_says_so_and_changes_no_number(
    tmp_path: Path, resolved: ResolvedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = random_sequences(N_SEQUENCES)
    dataset = write_dataset(tmp_path / "dataset", sequences, labelled(sequences))
    whole = stored(extract_dataset(dataset, resolved, SPEC, root=Location.open(tmp_path / "whole")))
    run = Capture.run

    def small_device(self: Capture, batch: TokenBatch) -> dict[str, torch.Tensor]:
        if batch.shape[0] * batch.shape[1] > 30:
            raise torch.OutOfMemoryError("out of memory")
        return run(self, batch)

    monkeypatch.setattr(Capture, "run", small_device)
    folder = extract_dataset(dataset, resolved, SPEC, root=Location.open(tmp_path / "small"))
    np.testing.assert_allclose(stored(folder), whole, rtol=1e-5, atol=1e-6)
    assert min(read_manifest(folder).facts["batch_tokens"]) == 24
    long = write_dataset(tmp_path / "long", [np.arange(2, 40, dtype=np.int32)], [(0, 3)], digest="cd" * 32)
    with pytest.raises(InputError, match="single sequence does not fit"):
        extract_dataset(long, resolved, SPEC, root=Location.open(tmp_path))


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_machines_that_share_an_extraction_make_what_one_makes(
    tmp_path: Path, resolved: ResolvedModel, dtype: str
) -> None:
    sequences = random_sequences(60)
    dataset = write_dataset(tmp_path / "dataset", sequences, labelled(sequences))
    spec = ExtractionSpec(storage_dtype=dtype, shard_tokens=60, batch_tokens=48, calibration_rows=60)
    alone = extract_dataset(dataset, resolved, spec, root=Location.open(tmp_path / "alone"))
    with ThreadPoolExecutor(3) as pool:
        root = Location.open(tmp_path / "shared")
        parts = [pool.submit(extract_dataset, dataset, resolved, spec, root=root, shard=(i, 3)) for i in range(3)]
        folders = {part.result().path for part in parts}
    assert len(folders) == 1
    shared = Location.open(folders.pop())
    assert read_manifest(shared).files == read_manifest(alone).files
    with pytest.raises(InputError, match="Shard 3 of 3"):
        extract_dataset(dataset, resolved, spec, root=root, shard=(3, 3))


@pytest.mark.parametrize("ranges_first", [True, False])
def test_parts_need_nothing_of_each_other(tmp_path: Path, resolved: ResolvedModel, ranges_first: bool) -> None:
    sequences = random_sequences(60)
    dataset = write_dataset(tmp_path / "dataset", sequences, labelled(sequences))
    spec = ExtractionSpec(shard_tokens=60, batch_tokens=48, calibration_rows=60)
    alone = extract_dataset(dataset, resolved, spec, root=Location.open(tmp_path / "alone"))
    root = Location.open(tmp_path / "shared")

    def markers(folder: Location) -> list[str]:
        return [path.name for path in sorted(Path(folder.path).rglob("*.json")) if "staging" not in str(path)]

    if ranges_first:
        (shared,) = extract_datasets(dataset, resolved, [spec], root=root, only_ranges=True)
        # The shards that they are taken from are finished, and no other.
        n_calibration = len(markers(shared))
        assert 0 < n_calibration < read_manifest(alone).facts["n_shards"]
    # One after the other, in any order: nobody waits.
    for part in (2, 0, 1):
        (shared,) = extract_datasets(dataset, resolved, [spec], root=root, shard=(part, 3))
        assert (find_manifest(shared) is not None) == (part == 1)
    assert read_manifest(shared).files == read_manifest(alone).files
    assert read_manifest(shared).facts == read_manifest(alone).facts
    # All is there: taking the ranges again does nothing.
    before = markers(shared)
    extract_datasets(dataset, resolved, [spec], root=root, only_ranges=True)
    assert markers(shared) == before


def test_next_token_reads_the_position_before_and_keeps_the_label_s_row(
    tmp_path: Path, resolved: ResolvedModel
) -> None:
    sequences = random_sequences(12)
    dataset = write_dataset(tmp_path / "dataset", sequences, [(i, p) for i in range(12) for p in (0, 1, 3)])
    folder = extract_dataset(
        dataset, resolved, SPEC.model_copy(update={"next_token": True}), root=Location.open(tmp_path)
    )
    rows = read_table(folder / "rows.parquet").to_pydict()
    assert list(zip(rows["seq_id"], rows["position"], strict=True)) == [(i, p) for i in range(12) for p in (1, 3)]
    wanted = reference(resolved, sequences, [(i, p - 1, p) for i in range(12) for p in (1, 3)], "none")
    np.testing.assert_allclose(stored(folder), wanted, rtol=1e-5, atol=1e-6)


def test_all_positions_are_those_that_pooling_could_use(tmp_path: Path, resolved: ResolvedModel) -> None:
    sequences = random_sequences(12)
    sequences[4][0] = 0
    ranges = [(0, len(tokens) - 1) for tokens in sequences]
    dataset = write_dataset(tmp_path / "dataset", sequences, [(1, 2)], ranges=ranges)
    folder = extract_dataset(
        dataset, resolved, SPEC.model_copy(update={"positions": "all"}), root=Location.open(tmp_path)
    )
    rows = read_table(folder / "rows.parquet").to_pydict()
    wanted = [(i, p) for i, s in enumerate(sequences) for p in range(1 if i == 4 else 0, len(s) - 1)]
    assert list(zip(rows["seq_id"], rows["position"], strict=True)) == wanted
    assert stored(folder).shape == (3, len(wanted), 48)


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file sizes are POSIX")
def test_a_disk_that_takes_no_more_gives_a_clear_error_and_no_finished_artifact(
    tmp_path: Path, resolved: ResolvedModel
) -> None:
    import resource

    sequences = random_sequences(N_SEQUENCES)
    dataset = write_dataset(tmp_path / "dataset", sequences, labelled(sequences))
    root = Location.open(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(ArtifactError, match=r"Cannot write .*part-.*Free space"):
            extract_dataset(dataset, resolved, SPEC, root=root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    folder = next(next((root / "activations").children()).children())
    assert find_manifest(folder) is None
    assert extract_dataset(dataset, resolved, SPEC, root=root) == folder
    verify_files(folder, read_manifest(folder))
