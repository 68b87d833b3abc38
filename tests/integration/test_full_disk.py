"""A disk that runs full at every possible moment: one clear error, nothing that looks finished, the same bytes later.

The disk is a real one, a small tmpfs, filled with ballast that leaves a little more room each time, so that every write
of the work is at some time the one that fails: its file, its folder, its last page.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import pytest
import torch

from sparse_probing import schemas
from sparse_probing.activations import extract_dataset, extraction
from sparse_probing.config import ExtractionSpec
from sparse_probing.errors import ArtifactError
from sparse_probing.models.resolved import ResolvedModel
from sparse_probing.store.filesystem import TEMPORARY_PREFIX, Location
from sparse_probing.store.manifests import find_manifest, read_manifest, verify_files
from sparse_probing.store.results import is_finished, is_part_done, read_part, write_part
from sparse_probing.store.results import write_run as write_results
from sparse_probing.warehouse import checks
from sparse_probing.warehouse.loading import load_results, publish, set_threshold
from tests.integration.conftest import mount
from tests.sql.rows import table, write_run
from tests.tiny import random_sequences, save_tiny, write_dataset

PAGE = 4096


@dataclass(frozen=True)
class Disk:
    """A small filesystem of its own."""

    folder: Path

    def allow(self, *, n_bytes: int = 16 << 20, n_files: int = 1000) -> None:
        """Let it hold so many bytes, and so many files and folders; no fewer than it holds already."""
        assert mount("-o", f"remount,size={n_bytes},nr_inodes={n_files}", str(self.folder)) == ""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if not sys.platform.startswith("linux"):
        pytest.skip("tmpfs is Linux's")
    folder = tmp_path / "disk"
    folder.mkdir()
    if refusal := mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)):
        pytest.skip(f"a small disk cannot be mounted here: {refusal}")
    yield Disk(folder)
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def dataset(tmp_path: Path) -> Location:
    sequences = random_sequences(48)
    labels = [(i, int(p)) for i, tokens in enumerate(sequences) for p in range(1, len(tokens), 2)]
    return write_dataset(tmp_path / "dataset", sequences, labels)


def data_files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "made.json"
    }


def failures(work: Callable[[], object], allow: Callable[[int], None], check: Callable[[], None]) -> int:
    """Run the work again and again with a little more room; how often it failed, always in one way, until it did not."""
    for step in range(300):
        allow(step)
        try:
            work()
        except ArtifactError as error:
            said = str(error)
        else:
            return step
        assert re.search(r"(?s)/disk/.*No space left on device.*Free space", said), said
        check()
    raise AssertionError("it never fitted")


@pytest.mark.parametrize("runs_out", ["bytes", "files"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_an_extraction(
    tmp_path: Path,
    disk: Disk,
    resolved: ResolvedModel,
    dataset: Location,
    dtype: str,
    runs_out: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Others may fill the disk after it was found large enough.
    monkeypatch.setattr(extraction, "check_space", lambda *arguments: None)
    spec = ExtractionSpec(storage_dtype=dtype, shard_tokens=160, batch_tokens=80, calibration_rows=60)
    quiet = Path(extract_dataset(dataset, resolved, spec, root=Location.open(tmp_path / "quiet")).path)
    artifact = disk.folder / quiet.relative_to(tmp_path / "quiet")

    def work() -> None:
        extract_dataset(dataset, resolved, spec, root=Location.open(disk.folder))

    def unfinished() -> None:
        assert find_manifest(Location.open(artifact)) is None
        assert list(disk.folder.rglob(f"{TEMPORARY_PREFIX}*")) == []

    def allow(step: int) -> None:
        disk.allow(n_bytes=(step + 1) * PAGE) if runs_out == "bytes" else disk.allow(n_files=step + 2)

    assert failures(work, allow, unfinished) >= 10, "the disk was too large for this to show anything"
    assert data_files(artifact) == data_files(quiet)
    verify_files(Location.open(artifact), read_manifest(Location.open(artifact)))


@pytest.mark.parametrize("runs_out", ["bytes", "files"])
def test_the_results_of_a_run(disk: Disk, runs_out: str) -> None:
    root = Location.open(disk.folder)
    scores = {"neuron_scores": table("neuron_scores", [{"neuron": i} for i in range(300)])}
    runs = table("runs", [{}])

    def work() -> None:
        if not is_part_done(root, "r1", "layer-00"):
            write_part(root, "r1", "layer-00", scores)
        tables = {kind: [schemas.TABLES[kind].empty_table()] for kind in schemas.RESULT_KINDS}
        tables |= {"neuron_scores": [read_part(root, "r1", "layer-00", "neuron_scores")], "runs": [runs]}
        write_results(root, "r1", tables, spec={}, digest="d")

    def unfinished() -> None:
        assert not is_finished(root, "r1")
        assert list(disk.folder.rglob(f"{TEMPORARY_PREFIX}*")) == []
        if is_part_done(root, "r1", "layer-00"):
            assert read_part(root, "r1", "layer-00", "neuron_scores").equals(scores["neuron_scores"])

    def allow(step: int) -> None:
        disk.allow(n_bytes=(step + 1) * PAGE) if runs_out == "bytes" else disk.allow(n_files=step + 2)

    assert failures(work, allow, unfinished) >= 10
    folder = root / "results" / "neuron_scores" / "r1"
    verify_files(folder, read_manifest(folder))
    assert is_finished(root, "r1")


def contents(database: Path) -> dict[str, list[tuple[object, ...]]]:
    connection = duckdb.connect(str(database), read_only=True)
    try:
        tables = [*schemas.TABLES, "interest_thresholds"]
        return {name: sorted(connection.execute(f"select * from {name}").fetchall(), key=repr) for name in tables}
    finally:
        connection.close()


def test_the_published_database(tmp_path: Path, disk: Disk) -> None:
    """Old results stay published and an edited threshold stays edited, however often a load finds no room."""
    first, second = Location.open(tmp_path / "first"), Location.open(tmp_path / "second")
    write_run(first, "a")
    for run_id in ("a", "b", "c"):
        write_run(second, run_id, features=tuple(f"feature-{i}" for i in range(150)))

    def publish_all(folder: Path) -> tuple[Path, Callable[[], None]]:
        working, snapshot = folder / "working.duckdb", folder / "snapshot.duckdb"
        load_results(working, first)
        set_threshold(working, "text_features", "validation_mcc", 0.123)
        publish(working, snapshot)

        def again() -> None:
            load_results(working, second)
            publish(working, snapshot)

        return snapshot, again

    quiet, work = publish_all(tmp_path)
    before = contents(quiet)
    work()
    disk.allow()
    snapshot, work = publish_all(disk.folder)
    used = sum(path.stat().st_blocks * 512 for path in disk.folder.rglob("*"))

    def allow(step: int) -> None:
        present = sum(path.stat().st_blocks * 512 for path in disk.folder.rglob("*"))
        disk.allow(n_bytes=max(present, used + step * 96 * PAGE))

    def unpublished() -> None:
        assert contents(snapshot) == before
        assert sorted(path.name for path in disk.folder.iterdir() if path.suffix != ".wal") == [
            "published.json", "snapshot.duckdb", "working.duckdb",
        ]  # fmt: skip

    assert failures(work, allow, unpublished) >= 5
    assert contents(snapshot) == contents(quiet) != before


def test_what_checks_record(tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcomes of before stay until all of the new ones are recorded."""
    disk.allow()
    root = Location.open(tmp_path / "first")
    write_run(root, "a")
    working = disk.folder / "working.duckdb"
    load_results(working, root)
    first = checks.run_checks(working, ["a"], root)[0]
    before = contents(working)["check_results"]
    many = [replace(first, run_id=f"r{i}", detail="word " * 200) for i in range(1500)]
    monkeypatch.setattr(checks, "_check_views", lambda *arguments: many)
    monkeypatch.setattr(checks, "_check_entering_frames", lambda *arguments: [])
    used = sum(path.stat().st_blocks * 512 for path in disk.folder.rglob("*"))

    def allow(step: int) -> None:
        present = sum(path.stat().st_blocks * 512 for path in disk.folder.rglob("*"))
        disk.allow(n_bytes=max(present, used + step * 64 * PAGE))

    def unrecorded() -> None:
        duckdb.connect(str(working)).close()
        assert contents(working)["check_results"] == before

    run_ids = [result.run_id for result in many]
    assert failures(lambda: checks.run_checks(working, run_ids, root), allow, unrecorded) >= 1
    assert len(contents(working)["check_results"]) == len(before) + len(many)
