"""The benchmark of extraction runs where only torch, transformers and pyarrow are, and measures all sides side by side."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import bench_extraction

ROOT = Path(__file__).parents[2]
# Any import of these, or of a part of them, ends the process with an error.
WITHOUT = ("prefect", "duckdb", "gurobipy", "great_expectations", "fastapi", "sqlalchemy")
SCRIPT = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {WITHOUT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from benchmarks import bench_extraction
if len(sys.argv) > 1:
    bench_extraction.main(sys.argv[1:])
print(sorted({{name.split(".")[0] for name in sys.modules}} & set({WITHOUT})))
"""


def run_without(*arguments: str) -> str:
    command = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_it_needs_neither_orchestrator_nor_database_nor_solver() -> None:
    assert run_without() == "[]\n"


def test_a_run_on_the_processor_without_them(tmp_path: Path, tiny_model: Path) -> None:
    options = ["--cpu", "--tokens", "200", "--repeats", "1", "--threads", "1", "--models-dir"]
    out = run_without("--model", str(tiny_model), *options, str(tmp_path))
    table = [line for line in out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in table] == [
        "| run", "| tiny-neox, 10% of positions", "| tiny-neox, 100% of positions",
    ]  # fmt: skip
    assert "| bare | bare, filled | naive copies |" in table[0]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_random_model_of_the_gpu_s_benchmark(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    shape = {"vocab_size": 97, "hidden_size": 16, "intermediate_size": 48}
    shape |= {"num_hidden_layers": 3, "num_attention_heads": 2}
    found = bench_extraction.bench_random(shape, 60, 1, "bfloat16", device, context=32)
    assert [one.name.split(", ")[1] for one in found] == ["2% of positions", "10% of positions", "100% of positions"]
    # As many rows, so as many bytes, at every share, but for one row a sequence at least and rounding.
    assert all(50 <= one.n_rows <= 140 for one in found)
    assert found[0].n_tokens > 10 * found[2].n_tokens
    for one in found:
        assert {"bare", "bare, filled", "naive copies"} <= set(one.ratios)
        assert all(ratio > 0 for ratio in one.ratios.values())


def test_every_round_runs_every_side_and_begins_with_another(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sides = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    rounds = bench_extraction.measure(sides, torch.nn.Identity(), repeats=3)
    assert "".join(calls) == "abcbcacababc"
    assert [list(taken) for taken in rounds] == [["a", "b", "c"]] * 3


def test_filled_batches_hold_the_same_sequences(tmp_path: Path) -> None:
    from benchmarks.corpus import write_token_dataset
    from sparse_probing.activations.plan import read_corpus
    from sparse_probing.config import ExtractionSpec
    from sparse_probing.store.filesystem import Location
    from tests.tiny import random_sequences

    sequences = random_sequences(60)
    corpus = read_corpus(write_token_dataset(Location.open(tmp_path), sequences, share=1.0), bos_token_id=None)
    spec = ExtractionSpec(batch_tokens=128, shard_tokens=100)
    device = torch.device("cpu")
    planned = bench_extraction.batches_of(corpus, spec, 1, device)
    filled = bench_extraction.filled_batches(corpus, spec, device)
    assert len(filled) < len(planned)
    for batches in (planned, filled):
        rows = [tuple(row[row > 0].tolist()) for ids in batches for row in ids]
        assert sorted(rows) == sorted(tuple(tokens.tolist()) for tokens in sequences)
