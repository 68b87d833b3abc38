"""Processes that share an extraction, one of them killed and begun anew, make what one process makes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sparse_probing.activations import extract_datasets
from sparse_probing.activations.artifact_writer import ArtifactWriter
from sparse_probing.config import ExtractionSpec
from sparse_probing.errors import ArtifactError
from sparse_probing.models.resolved import ResolvedModel
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import find_manifest
from tests.tiny import random_sequences, save_tiny, write_dataset

ROOT = Path(__file__).parents[3]
SCRIPT = """
import faulthandler, json, os, pathlib, signal, sys, time
import torch
from sparse_probing.activations import extract_datasets
from sparse_probing.config import ExtractionSpec, ModelSpec
from sparse_probing.models.loading import load_model, resolve_model
from sparse_probing.store.filesystem import Location

model, dataset, alone, shared = sys.argv[1:]
common = {"shard_tokens": 60, "batch_tokens": 40, "calibration_rows": 200}
specs = [ExtractionSpec(**common), ExtractionSpec(hook="hook_resid_post", storage_dtype="float16", **common)]

def resolve():
    return resolve_model(ModelSpec(id=model, name="tiny"), models_dir=pathlib.Path(model).parent / "models")

def start(root, shard):
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(60, exit=True)
        try:
            extract_datasets(Location.open(dataset), resolve(), specs, root=Location.open(root), shard=shard)
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    return child

def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

torch.set_num_threads(1)
load_model(resolve())
codes = [ended(start(alone, None))]
first, second = start(shared, (0, 2)), start(shared, (1, 2))
while not any(int(path.stem) % 2 for path in pathlib.Path(shared).glob("activations/*/*/_s*/?????.json")):
    time.sleep(0.0005)
os.kill(second, signal.SIGKILL)
codes.append(ended(second))
manifests = len(list(pathlib.Path(shared).glob("activations/*/*/manifest.json")))
codes += [ended(start(shared, (1, 2))), ended(first)]
print(json.dumps({"codes": codes, "manifests": manifests}))
"""


@pytest.fixture
def shared(tmp_path: Path) -> tuple[Location, ResolvedModel, Location]:
    sequences = random_sequences(60)
    dataset = write_dataset(tmp_path / "dataset", sequences, [(i, p) for i in range(60) for p in (1, 3)])
    return dataset, save_tiny(tmp_path / "model"), Location.open(tmp_path / "data")


COMMON = {"shard_tokens": 60, "batch_tokens": 48, "calibration_rows": 60}


def state(root: Location) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in Path(root.path).rglob("*") if path.is_file()}


def test_the_other_part_may_finish_one_artifact_first(
    shared: tuple[Location, ResolvedModel, Location], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, resolved, root = shared
    specs = [ExtractionSpec(hook=hook, storage_dtype="float16", **COMMON) for hook in ("post", "hook_resid_post")]
    extract_datasets(dataset, resolved, specs, root=root, shard=(0, 2))
    finish = ArtifactWriter.finish

    def beaten(self: ArtifactWriter, *arguments: object, **options: object) -> bool:
        done = finish(self, *arguments, **options)
        if self.hook == "mlp.hook_post":
            raise ArtifactError("the marker is gone")
        return done

    monkeypatch.setattr(ArtifactWriter, "finish", beaten)
    folders = extract_datasets(dataset, resolved, specs, root=root, shard=(1, 2))
    assert all(find_manifest(folder) is not None for folder in folders)


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_a_part_begun_anew_leaves_an_artifact_alone_that_others_finish_meanwhile(
    shared: tuple[Location, ResolvedModel, Location], monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    from sparse_probing.activations import extraction

    dataset, resolved, root = shared
    spec = ExtractionSpec(storage_dtype=dtype, **COMMON)
    enter = extraction._Pass.__enter__
    before: dict[str, int] = {}

    def late(self: object) -> object:
        monkeypatch.setattr(extraction._Pass, "__enter__", enter)
        extract_datasets(dataset, resolved, [spec], root=root)
        before.update(state(root))
        return enter(self)

    monkeypatch.setattr(extraction._Pass, "__enter__", late)
    (folder,) = extract_datasets(dataset, resolved, [spec], root=root, shard=(1, 2))
    assert find_manifest(folder) is not None
    assert state(root) == before


def data_files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "made.json"
    }


def test_two_processes_one_of_them_killed_make_what_one_makes(tmp_path: Path) -> None:
    resolved = save_tiny(tmp_path / "model")
    sequences = random_sequences(150)
    labels = [(i, int(p)) for i, tokens in enumerate(sequences) for p in range(0, len(tokens), 2)]
    write_dataset(tmp_path / "dataset", sequences, labels)
    arguments = [resolved.folder, *(tmp_path / name for name in ("dataset", "alone", "shared"))]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, timeout=900
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report == {"codes": [0, -9, 0, 0], "manifests": 0}, done.stderr
    wanted, found = data_files(tmp_path / "alone"), data_files(tmp_path / "shared")
    assert len(wanted) > 60
    assert list(found) == list(wanted)
    assert [name for name in wanted if wanted[name] != found[name]] == []
    manifests = [sorted(path.name for path in (tmp_path / name).rglob("manifest.json")) for name in ("alone", "shared")]
    assert manifests[0] == manifests[1] == ["manifest.json"] * 2
