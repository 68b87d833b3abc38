"""Extraction holds a few shards at a time, not what it has extracted: twenty times the text in the same memory.

What does grow is the list of tokens and rows, some 200 bytes a row, beside 4 bytes a neuron and layer that do not.
Each extraction runs in a process of its own, whose largest resident memory Linux keeps (`VmHWM`: unlike `ru_maxrss`, it
does not begin with what the parent used). Arrow allocates from the system there: its own pool keeps some 25 MB of freed memory
for itself, sooner or later as threads happen to run, and that is no memory that extraction holds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparse_probing.models.resolved import ResolvedModel
from tests.tiny import random_sequences, save_tiny, write_dataset

ROOT = Path(__file__).parents[2]
N_SEQUENCES, FACTOR = 1_500, 20
SCRIPT = """
import json, pathlib, sys
import torch
from sparse_probing.activations import extract_dataset
from sparse_probing.config import ExtractionSpec, ModelSpec
from sparse_probing.models.loading import resolve_model
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import read_manifest

model, dataset, root, dtype = sys.argv[1:]
torch.set_num_threads(1)
resolved = resolve_model(ModelSpec(id=model, name="tiny"), models_dir=pathlib.Path(model).parent / "models")
spec = ExtractionSpec(storage_dtype=dtype, shard_tokens=4096, calibration_rows=2048)
folder = extract_dataset(Location.open(dataset), resolved, spec, root=Location.open(root))
lines = pathlib.Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
files = read_manifest(folder).files.values()
print(json.dumps({"peak_bytes": peak, "stored_bytes": sum(entry.size_bytes for entry in files)}))
"""


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


def extract_apart(folder: Path, resolved: ResolvedModel, n_sequences: int, pooling: str, dtype: str) -> dict[str, int]:
    """Peak memory and stored bytes of one extraction."""
    sequences = random_sequences(n_sequences, shortest=6, longest=18)
    labels = [(i, p) for i, s in enumerate(sequences) for p in (range(1, len(s), 3) if pooling == "none" else (None,))]
    dataset = write_dataset(folder / "dataset", sequences, labels, pooling=pooling)
    arguments = map(str, (resolved.folder, dataset, folder, dtype))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"},
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
@pytest.mark.parametrize(("pooling", "dtype"), [("none", "float32"), ("mean", "uint8")])
def test_twenty_times_the_corpus_in_the_same_memory(
    tmp_path: Path, resolved: ResolvedModel, pooling: str, dtype: str
) -> None:
    small, large = (
        extract_apart(tmp_path / str(n), resolved, n, pooling, dtype) for n in (N_SEQUENCES, FACTOR * N_SEQUENCES)
    )
    assert large["stored_bytes"] > 10 * small["stored_bytes"]
    assert large["peak_bytes"] < 1.1 * small["peak_bytes"]
