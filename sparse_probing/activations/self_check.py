"""A check of the model on a few tokens before any work: does it meet the assumptions of extraction?

Three short passes over seven tokens (a fourth for additions) tell whether padding reaches other tokens (and so which `BatchRule` the model
needs), whether a row depends on what else is in its batch, whether each hooked module runs once and gives (sequence,
position, value), and whether `hook_mlp_out` and `hook_attn_out` are what a block adds to the residual stream. No file is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparse_probing.activations.capture import BatchRule, Capture, collate
from sparse_probing.activations.plan import Selection
from sparse_probing.errors import ArtifactError, DataError, InputError
from sparse_probing.models.hooks import (
    HookPoint,
    layers_of,
    place_points,
    select_input,
    select_tensor,
)
from sparse_probing.models.limits import check_length, max_positions, n_embeddings, padding_id
from sparse_probing.models.structure import is_of_text, text_config

_N_TOKENS, _N_SHORT = 7, 4
# Largest difference that is taken for rounding, relative to a row's length. Faults found in real architectures are 0.2
# and more; half-precision models with deep stacks differ by some hundredths from batch size to batch size.
_TOLERANCE, _HALF_TOLERANCE = 2e-3, 0.1
_SUMS = ("hook_mlp_out", "hook_attn_out")

_Points = dict[str, list[HookPoint]]


def check_model(model: nn.Module, points: _Points, *, longest: int) -> BatchRule:
    """How the model's sequences may share a batch, found out by running it.

    Parameters
    ----------
    points:
        Where activations will be read, by hook.
    longest:
        Tokens of the longest sequence to come.

    Raises
    ------
    InputError
        If sequences are longer than the model allows, activations depend on what else is in a batch whatever the rule,
        or `hook_mlp_out` or `hook_attn_out` is not what a block adds to the residual stream.
    DataError
        If activations are not finite numbers.
    ArtifactError
        If a hooked module runs twice in a pass, or gives other axes than (sequence, position, value).
    """
    name = type(model).__name__
    check_length(name, max_positions(model), longest)
    equal_lengths = _depends_on_width(model, longest)
    pad = padding_id(model)
    whole = _few_tokens(model, pad)
    short = whole[:_N_SHORT]
    _check_additions(model, points, whole)
    alone = _values(model, points, [whole], BatchRule(), ends_early=False)
    tolerance = _tolerance(model)
    short_alone = _values(model, points, [short], BatchRule())
    one_way = _agree(_first(alone, _N_SHORT), short_alone, tolerance)
    rules = [BatchRule(needs_mask=True, pad_token_id=pad), BatchRule(equal_lengths=True, pad_token_id=pad)]
    if one_way and not _says_two_way(model):
        rules.insert(0, BatchRule(needs_mask=False, pad_token_id=pad))
    for rule in rules:
        if equal_lengths and not rule.equal_lengths:
            continue
        other, other_alone = short, short_alone
        if rule.equal_lengths:
            # Of one length: the same tokens in another order.
            other = whole[::-1].copy()
            other_alone = _values(model, points, [other], BatchRule())
        together = _values(model, points, [whole, other], rule)
        of_other = {hook: values[:, _N_TOKENS:] for hook, values in together.items()}
        if _agree(_first(together, _N_TOKENS), alone, tolerance) and _agree(of_other, other_alone, tolerance):
            return rule
    # What is no number agrees with nothing.
    for hook, values in alone.items():
        if not torch.isfinite(values).all():
            raise DataError(
                f"{name}: activations at {hook} hold values that are not finite numbers.",
                remedy="Look at the weights; and run the model in float32 or bfloat16: float16 overflows inside some models.",
            )
    raise InputError(
        f"{name}: activations of a text depend on the other texts in its batch, even at equal lengths.",
        remedy="Probe another model: rows of this one would be no property of their text.",
    )


def _few_tokens(model: nn.Module, pad: int) -> NDArray[np.int64]:
    """(7,) distinct ids spread over the vocabulary, neither padding nor beginning nor end."""
    config = text_config(model)
    special = {pad, getattr(config, "bos_token_id", None), getattr(config, "eos_token_id", None)}
    count = n_embeddings(model) or int(getattr(config, "vocab_size", 0) or 32)
    usable = np.array([token for token in range(min(count, 4096)) if token not in special], dtype=np.int64)
    return usable[np.linspace(len(usable) // 8, len(usable) - 1, _N_TOKENS).astype(np.int64)]


def _values(
    model: nn.Module,
    points: _Points,
    sequences: Sequence[NDArray[np.int64]],
    rule: BatchRule,
    *,
    ends_early: bool = True,
) -> dict[str, torch.Tensor]:
    """By hook, (n_layers, n_positions of all sequences, width) of one pass."""
    lengths = [len(sequence) for sequence in sequences]
    start = np.concatenate([np.arange(n) for n in lengths])
    selection = Selection("none", np.repeat(np.arange(len(lengths)), lengths), start, start + 1)
    device = next(model.parameters()).device
    batch = collate(sequences, np.arange(len(lengths)), selection, device=device, rule=rule)
    with Capture(model, points, selection, ends_early=ends_early) as capture:
        return {hook: values.float() for hook, values in capture.run(batch).items()}


def _first(values: dict[str, torch.Tensor], n: int) -> dict[str, torch.Tensor]:
    return {hook: found[:, :n] for hook, found in values.items()}


def _agree(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> bool:
    """Whether most rows of every layer are equal up to rounding.

    Most, not all: in half precision a mixture of experts may send single rows another way.
    """
    return all(_distance(found[hook], expected[hook]) <= tolerance for hook in expected)


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest over layers of the median over rows of ‖found − expected‖ / ‖expected‖."""
    size = torch.linalg.vector_norm(expected, dim=-1)
    error = torch.linalg.vector_norm(found - expected, dim=-1) / size.clamp_min(torch.finfo(size.dtype).tiny)
    return float(error.median(dim=-1).values.max())


def _tolerance(model: nn.Module) -> float:
    half = any(parameter.dtype in (torch.bfloat16, torch.float16) for parameter in model.parameters())
    return _HALF_TOLERANCE if half else _TOLERANCE


def _says_two_way(model: nn.Module) -> bool:
    """Whether the configuration or an attention module says that positions see later ones."""
    config = text_config(model)
    return (
        getattr(config, "is_causal", None) is False
        or bool(getattr(config, "use_bidirectional_attention", False))
        or any(
            getattr(module, "is_causal", None) is False for path, module in model.named_modules() if is_of_text(path)
        )
    )


def _depends_on_width(model: nn.Module, longest: int) -> bool:
    """Whether rotary positions are scaled by the longest sequence of a batch, for sequences as long as these.

    Raises
    ------
    InputError
        If they depend on earlier batches, too (dynamic scaling remembers the longest so far).
    """
    config = text_config(model)
    stated = getattr(config, "rope_parameters", None) or {}
    kinds = [one for one in (stated, *stated.values()) if isinstance(one, dict) and "rope_type" in one]
    for rope in kinds:
        length = rope.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", None)
        if not length or longest <= length:
            continue
        if "dynamic" in rope["rope_type"]:
            raise InputError(
                f"Sequences of {longest} tokens; positions of {type(model).__name__} beyond {length} depend on what was run "
                "before (its rope scaling is dynamic).",
                remedy=f"Set collections.context_length to {length} or less.",
            )
        if rope["rope_type"] == "longrope":
            return True
    return False


def _check_additions(model: nn.Module, points: _Points, tokens: NDArray[np.int64]) -> None:
    """Raise `InputError` unless hooked additions are what blocks add to the residual stream.

    Two forms are known: resid_pre + attn_out + mlp_out = resid_post, and that of encoders which normalise each sum.
    """
    wanted = tuple(sorted({point.layer for hook in _SUMS for point in points.get(hook, [])}))
    if not wanted:
        return
    hooked: dict[int, dict[str, HookPoint]] = {layer: {} for layer in wanted}
    for hook in ("hook_resid_pre", "hook_resid_post", *_SUMS):
        for point in place_points(model, hook, [layer for layer in layers_of(model, hook) if layer in hooked]):
            hooked[point.layer][hook] = point
    tolerance = _tolerance(model)
    for layer, seen in _run_blocks(model, hooked, tokens).items():
        if not _adds_up(seen, tolerance):
            asked = next(hook for hook in _SUMS if hook in points and hook in hooked[layer])
            raise InputError(
                f"{asked} of {type(model).__name__} is not what block {layer} adds to the residual stream "
                f"(looked at {hooked[layer][asked].path}).",
                remedy="Use hook_resid_post, mlp.hook_post, or the path of a module in extraction.hook.",
            )


@dataclass(frozen=True)
class _Seen:
    """Tensors of one block in one pass: by hook; of its norms, what went in and came out; what its children gave."""

    hooks: dict[str, torch.Tensor] = field(default_factory=dict)
    norms: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    children: list[torch.Tensor] = field(default_factory=list)


@torch.inference_mode()
def _run_blocks(
    model: nn.Module, hooked: dict[int, dict[str, HookPoint]], tokens: NDArray[np.int64]
) -> dict[int, _Seen]:
    """What some blocks take, give and add, by layer, in one pass."""
    seen = {layer: _Seen() for layer in hooked}
    handles: list[Any] = []
    for layer, points in hooked.items():
        handles += _watch(points, seen[layer])
    try:
        device = next(model.parameters()).device
        model(input_ids=torch.from_numpy(tokens)[None].to(device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _watch(points: dict[str, HookPoint], seen: _Seen) -> list[Any]:
    def keep(hook: str, tensor: torch.Tensor) -> None:
        seen.hooks[hook] = _copy(points[hook].read(tensor))

    def keep_norm(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        seen.norms.append((_copy(select_input(args, kwargs)), _copy(select_tensor(out))))

    def keep_child(module: nn.Module, args: Any, out: Any) -> None:
        # A child that gives no tensor adds nothing.
        with suppress(ArtifactError):
            seen.children.append(_copy(select_tensor(out)))

    block = points["hook_resid_post"].module
    norms = [module for module in block.modules() if "Norm" in type(module).__name__]
    return [
        *(point.watch(partial(keep, hook)) for hook, point in points.items()),
        *(module.register_forward_hook(keep_norm, with_kwargs=True) for module in norms),
        *(child.register_forward_hook(keep_child) for child in block.children()),
    ]


def _adds_up(seen: _Seen, tolerance: float) -> bool:
    before, after = seen.hooks["hook_resid_pre"], seen.hooks["hook_resid_post"]
    parts = {hook: seen.hooks[hook] for hook in _SUMS if hook in seen.hooks}
    if any(found.numel() != after.numel() for found in (before, *parts.values())):
        return False
    parts = {hook: part.reshape(before.shape) for hook, part in parts.items()}
    # Beside an MLP a block may have a mixer that is no attention: whatever one of its children gives.
    others = (
        []
        if len(parts) == len(_SUMS)
        else [found.reshape(before.shape) for found in seen.children if found.numel() == before.numel()]
    )
    total = before + sum(parts.values(), torch.zeros_like(before))
    if any(_close(total + other, after, tolerance) for other in (torch.zeros_like(before), *others)):
        return True
    # Of a block that normalises each sum: norm(before + attention) = middle, norm(middle + MLP) = after.
    mlp = parts.get("hook_mlp_out")
    firsts = [parts["hook_attn_out"]] if "hook_attn_out" in parts else others
    middles = [out for first in firsts for into, out in seen.norms if _close(before + first, into, tolerance)]
    return mlp is not None and any(
        _close(middle + mlp, into, tolerance) and _close(out, after, tolerance)
        for middle in middles
        for into, out in seen.norms
    )


def _close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    if found.numel() != expected.numel():
        return False
    width = expected.shape[-1]
    return _distance(found.reshape(1, -1, width), expected.reshape(1, -1, width)) <= tolerance


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().float().clone()
