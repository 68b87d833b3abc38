"""Several hooks in one pass: each artifact has the bytes that it would have alone, and none is made twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from sparse_probing.activations import extract_dataset, extract_datasets
from sparse_probing.activations.capture import Capture, TokenBatch
from sparse_probing.activations.estimate import estimate
from sparse_probing.config import ExtractionSpec, StudySpec
from sparse_probing.errors import ArtifactError, InputError
from sparse_probing.models.resolved import ResolvedModel
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import find_manifest, read_manifest, verify_files
from tests.tiny import random_sequences, save_tiny, write_dataset

COMMON = {"shard_tokens": 60, "batch_tokens": 48, "calibration_rows": 60}
SPECS = [
    ExtractionSpec(**COMMON),
    ExtractionSpec(hook="hook_resid_post", **COMMON),
    ExtractionSpec(hook="hook_attn_out", storage_dtype="float16", layers=(0, 2), **COMMON),
    ExtractionSpec(neurons=((0, 7), (0, 8), (1, 40)), **COMMON),
    ExtractionSpec(hook="mlp.hook_pre", storage_dtype="float32", layers=(1,), **COMMON),
]


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def dataset(tmp_path: Path) -> Location:
    sequences = random_sequences(60)
    return write_dataset(tmp_path / "dataset", sequences, [(i, p) for i in range(60) for p in (1, 3)])


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each forward pass."""
    seen: list[int] = []
    run = Capture.run

    def counted(self: Capture, batch: TokenBatch) -> object:
        seen.append(batch.shape[0] * batch.shape[1])
        return run(self, batch)

    monkeypatch.setattr(Capture, "run", counted)
    return seen


def everything(folder: Location) -> tuple[object, ...]:
    """What must agree: the files, their digests, and the manifest."""
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    return manifest.digest, manifest.spec, manifest.files, manifest.facts


def relative(folder: Location, root: Path) -> str:
    return str(Path(folder.path).relative_to(root))


def test_each_has_the_bytes_that_it_has_alone(
    tmp_path: Path, resolved: ResolvedModel, dataset: Location, passes: list[int]
) -> None:
    together = extract_datasets(dataset, resolved, SPECS, root=Location.open(tmp_path / "together"))
    n_together = len(passes)
    alone = [extract_dataset(dataset, resolved, spec, root=Location.open(tmp_path / "alone")) for spec in SPECS]
    assert len(passes) - n_together == len(SPECS) * n_together
    assert len({folder.path for folder in together}) == len(SPECS)
    for one, other in zip(together, alone, strict=True):
        assert relative(one, tmp_path / "together") == relative(other, tmp_path / "alone")
        assert everything(one) == everything(other)
    left = [path.name for path in (tmp_path / "together").rglob("*") if path.name.startswith(("_", ".tmp-"))]
    assert left == []


def test_what_one_artifact_lacks_is_run_for_it_alone(
    tmp_path: Path, resolved: ResolvedModel, dataset: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that fails half-way leaves some artifacts with a shard and others without."""
    from sparse_probing.activations.shards import ShardStore

    root, write = Location.open(tmp_path / "broken"), ShardStore.write_shard

    def failing(self: ShardStore, shard: int, *arguments: object, **options: object) -> None:
        if shard == 10 and self.columns.width == 16:
            raise ArtifactError("no space")
        write(self, shard, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ShardStore, "write_shard", failing)
        with pytest.raises(ArtifactError, match="no space"):
            extract_datasets(dataset, resolved, SPECS[:2], root=root)
    markers = {path: path.stat().st_mtime_ns for path in (tmp_path / "broken").rglob("_shards/*.json")}
    by_artifact = {path.parent.parent.name for path in markers if path.stem == "00010"}
    assert len(by_artifact) == 1, "both or neither has the shard: the test shows nothing"
    before = {
        path: path.stat().st_mtime_ns
        for marker in markers
        for path in marker.parent.parent.glob(f"layer=*/part-{marker.stem}.parquet")
    }
    assert len(before) >= 3 * len(markers)
    together = extract_datasets(dataset, resolved, SPECS[:2], root=root)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for folder, spec in zip(together, SPECS, strict=False):
        alone = extract_dataset(dataset, resolved, spec, root=Location.open(tmp_path / "alone"))
        assert everything(folder) == everything(alone)


def test_finished_ones_are_left_alone(
    tmp_path: Path, resolved: ResolvedModel, dataset: Location, passes: list[int]
) -> None:
    root = Location.open(tmp_path)
    first = extract_dataset(dataset, resolved, SPECS[1], root=root)
    before = {path: path.stat().st_mtime_ns for path in Path(first.path).rglob("*")}
    folders = extract_datasets(dataset, resolved, [*SPECS, SPECS[0]], root=root)
    assert folders[1] == first
    assert folders[-1] == folders[0]
    assert {path: path.stat().st_mtime_ns for path in Path(first.path).rglob("*")} == before
    n_passes = len(passes)
    assert extract_datasets(dataset, resolved, SPECS, root=root) == folders[:-1]
    assert len(passes) == n_passes


@pytest.mark.parametrize("change", [{"batch_tokens": 24}, {"next_token": True}, {"positions": "all"}])
def test_what_cannot_share_a_pass_is_refused(
    tmp_path: Path, resolved: ResolvedModel, dataset: Location, change: dict[str, object]
) -> None:
    other = SPECS[1].model_copy(update=change)
    with pytest.raises(InputError, match=f"differ in {next(iter(change))}"):
        extract_datasets(dataset, resolved, [SPECS[0], other], root=Location.open(tmp_path))
    with pytest.raises(InputError, match="No extraction"):
        extract_datasets(dataset, resolved, [], root=Location.open(tmp_path))
    with pytest.raises(InputError, match="unknown"):
        extract_datasets(
            dataset, resolved, [SPECS[0], ExtractionSpec(hook="nonsense", **COMMON)], root=Location.open(tmp_path)
        )
    assert not (tmp_path / "activations").exists()


def test_a_study_has_one_extraction_a_hook() -> None:
    study = {"name": "x", "models": [{"id": "m"}], "collections": [{"collection": "c"}]}
    assert StudySpec(**study).extractions == (ExtractionSpec(),)
    several = StudySpec(**study, hooks=("post", "hook_resid_post"), extraction={"storage_dtype": "float16"})
    assert [spec.hook for spec in several.extractions] == ["post", "hook_resid_post"]
    assert {spec.storage_dtype for spec in several.extractions} == {"float16"}
    with pytest.raises(ValidationError, match=r"both hooks and extraction\.hook"):
        StudySpec(**study, hooks=("post",), extraction={"hook": "post"})
    with pytest.raises(ValidationError, match="neurons of one hook"):
        StudySpec(**study, hooks=("post", "hook_resid_post"), extraction={"neurons": [(0, 1)]})


def test_the_estimate_of_several_is_their_sum(tmp_path: Path, resolved: ResolvedModel, dataset: Location) -> None:
    alone = [estimate(dataset, resolved, spec, trial_tokens=0) for spec in SPECS]
    cost = estimate(dataset, resolved, SPECS, trial_tokens=64)
    assert cost.disk_bytes == sum(one.disk_bytes for one in alone)
    assert cost.layer_bytes == max(one.layer_bytes for one in alone)
    assert max(one.host_bytes for one in alone) < cost.host_bytes < sum(one.host_bytes for one in alone)
    assert cost.tokens_per_second > 0


def test_plans_do_not_depend_on_what_is_kept(
    tmp_path: Path, resolved: ResolvedModel, dataset: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is bytes that end a shard."""
    from sparse_probing.activations import plan

    monkeypatch.setattr(plan, "SHARD_BYTES", 3 * 48 * 5)
    together = extract_datasets(dataset, resolved, SPECS, root=Location.open(tmp_path / "together"))
    assert {read_manifest(folder).facts["n_shards"] for folder in together} == {30}
    for folder, spec in zip(together, SPECS, strict=True):
        alone = extract_dataset(dataset, resolved, spec, root=Location.open(tmp_path / "alone"))
        assert everything(folder) == everything(alone)
        assert find_manifest(folder) is not None
