"""Killed without warning at random moments, taken up again: the same bytes, and no finished shard run twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparse_probing.models.resolved import ResolvedModel
from tests.tiny import random_sequences, save_tiny, write_dataset

ROOT = Path(__file__).parents[3]
# Imports once, then forks one child per attempt: so twenty kills cost twenty forks. Prints what each attempt left.
SCRIPT = """
import faulthandler, json, os, pathlib, random, signal, sys, time
import torch
from sparse_probing.activations import extract_datasets
from sparse_probing.config import ExtractionSpec, ModelSpec
from sparse_probing.models.loading import load_model, resolve_model
from sparse_probing.store.filesystem import Location

model, dataset, quiet, killed, dtype, kills, seed = sys.argv[1:]
common = {"shard_tokens": 40, "batch_tokens": 40, "calibration_rows": 120}
if dtype == "several":
    specs = [
        ExtractionSpec(**common),
        ExtractionSpec(hook="hook_resid_post", **common),
        ExtractionSpec(hook="hook_attn_out", storage_dtype="float16", layers=(1,), **common),
        ExtractionSpec(neurons=((0, 40), (2, 1), (2, 2)), **common),
    ]
else:
    specs = [ExtractionSpec(storage_dtype=dtype, **common)]

def markers(root):
    return sum(1 for _ in pathlib.Path(root).glob("activations/*/*/_s*/*.json"))

def attempt(root, n_shards, delay):
    # Run; kill once n_shards more are finished and some more time has gone by (never, if n_shards is None).
    before, due = markers(root), None
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(600, exit=True)
        try:
            resolved = resolve_model(ModelSpec(id=model, name="tiny"), models_dir=pathlib.Path(model).parent / "models")
            # The quiet run, which all others are compared with, makes each artifact alone.
            for part in ([[spec] for spec in specs] if root == quiet else [specs]):
                extract_datasets(Location.open(dataset), resolved, part, root=Location.open(root))
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    while due is None or time.time() < due:
        if os.waitpid(child, os.WNOHANG)[0]:
            return "finished"
        if due is None and n_shards is not None and markers(root) >= before + n_shards:
            due = time.time() + delay
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "killed"

def finished(root):
    out = {}
    for marker in pathlib.Path(root).glob("activations/*/*/_shards/*.json"):
        for name in json.loads(marker.read_text())["files"]:
            out[f"{marker.parent.parent.name}/{name}"] = (marker.parent.parent / name).stat().st_mtime_ns
    return out

# Everything that is imported late is imported here, once: children begin with the work itself.
torch.set_num_threads(1)
load_model(resolve_model(ModelSpec(id=model, name="tiny"), models_dir=pathlib.Path(model).parent / "models"))
attempt(quiet, None, 0)
rng = random.Random(int(seed))
log = []
for _ in range(int(kills)):
    # Two shards a life at least: four lives come beyond the seven that are staged first.
    before = finished(killed)
    outcome = attempt(killed, rng.randrange(2, 8), rng.uniform(0, 0.05))
    after = finished(killed)
    log.append({"outcome": outcome, "n_before": len(before), "n_after": len(after),
                "repeated": sum(after[name] != before[name] for name in before if name in after)})
print(json.dumps({"log": log, "outcome": attempt(killed, None, 0)}))
"""


def data_files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "made.json"
    }


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


def kill_and_compare(tmp_path: Path, resolved: ResolvedModel, dtype: str, n_kills: int, seed: int) -> None:
    sequences = random_sequences(60 * n_kills)
    labels = [(i, int(p)) for i, tokens in enumerate(sequences) for p in range(0, len(tokens), 2)]
    write_dataset(tmp_path / "dataset", sequences, labels)
    arguments = [resolved.folder, tmp_path / "dataset", tmp_path / "quiet", tmp_path / "killed", dtype, n_kills, seed]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, timeout=900
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["outcome"] == "finished", done.stderr
    killed = [entry for entry in report["log"] if entry["outcome"] == "killed"]
    assert len(killed) == n_kills, report
    assert any(entry["n_after"] > entry["n_before"] for entry in killed), report
    assert all(entry["repeated"] == 0 for entry in report["log"]), report
    wanted, found = data_files(tmp_path / "quiet"), data_files(tmp_path / "killed")
    assert list(found) == list(wanted)
    assert [name for name in wanted if wanted[name] != found[name]] == []
    assert len([name for name in wanted if name.endswith("manifest.json")]) == (4 if dtype == "several" else 1)


@pytest.mark.parametrize("dtype", ["uint8", "several"])
def test_four_kills(tmp_path: Path, resolved: ResolvedModel, dtype: str) -> None:
    kill_and_compare(tmp_path, resolved, dtype, 4, seed=int(np.random.SeedSequence().entropy % 2**31))


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["uint8", "float16", "several"])
def test_twenty_kills(tmp_path: Path, resolved: ResolvedModel, dtype: str) -> None:
    kill_and_compare(tmp_path, resolved, dtype, 20, seed=7)
