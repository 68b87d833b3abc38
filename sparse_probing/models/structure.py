"""The parts of a model, found in its tree of modules: the stack of blocks, and each block's attention and MLP.

No table of architectures: what a part is called and how wide it is tells what it does. `_EXCEPTIONS` says where that is
not so. Nothing here runs a model; `activations.self_check` tests on the loaded model that the parts add up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

from sparse_probing.errors import InputError

# Stacks of these modules read pixels or sound.
_OTHER_SENSES = re.compile(r"vision|visual|image|img|audio|speech|video")
_ATTENTION = re.compile(r"attn|attention|(^|_)att$")
_STATE_SPACE = re.compile(r"mamba|ssm|mixer|lru|temporal|rwkv|mlstm|recurrent|(^|_)conv$")
_NORM = re.compile(r"norm|^ln")
_EXPERTS = re.compile(r"expert", re.IGNORECASE)
# What else feeds into the residual stream beside attention and MLP.
_BESIDE = re.compile(r"per_layer|adapter|lora")
_ATTENTION_OUT = re.compile(
    r"(^|\.)(o_proj|out_proj|c_proj|dense|out_lin|attention_out|linear_out|Wo|wo|o|out|output)$"
)
_GATE = re.compile(r"gate|(^|\.)w1$|(^|\.)w_0$|(^|\.)wi_0$")
# Norms of what a block adds, where its blocks have one for the MLP and one for attention.
_NORM_OF_MLP = re.compile(r"^post_(feedforward|mlp|ffn)_(layer)?norm$|^post_norm2$")
_NORM_OF_ATTENTION = (
    re.compile(r"^post_self_attn_(layer)?norm$|^post_operator_norm$|^post_norm1$"),
    re.compile(r"^post_attention_(layer)?norm$"),
)
REMEDY = "Name a module path such as 'layers.{layer}.mlp.down_proj.input' in extraction.hook."


@dataclass(frozen=True)
class Part:
    """A module of a block, and what of its tensors is meant.

    Attributes
    ----------
    path:
        Relative to the block; empty for the block itself.
    module:
        The module.
    columns:
        Columns of its output; None for all.
    """

    path: str
    module: nn.Module
    columns: slice | None = None


@dataclass(frozen=True)
class Block:
    """One block's parts; None where it has none, with the reason in `lacks`.

    Attributes
    ----------
    module:
        The block.
    neurons:
        The projection that reads the neurons: its input is the neurons after the non-linearity.
    pre:
        The projection whose output is the neurons before the non-linearity (of a gated MLP: the gate's).
    mlp_out, attn_out:
        Modules whose outputs the block adds to the residual stream, times `scale`.
    scale:
        Factor of both additions.
    lacks:
        By the name of a part that is None: why.
    """

    module: nn.Module
    neurons: Part | None = None
    pre: Part | None = None
    mlp_out: Part | None = None
    attn_out: Part | None = None
    scale: float = 1.0
    lacks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stack:
    """A model's blocks in order; `path` is that of their list."""

    path: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class _Exception:
    """Where the tree of modules misleads: about norms of additions, or so that no part is given, for a reason."""

    has_norms_of_additions: bool = True
    lacks: str | None = None


_KNOWN: WeakKeyDictionary[nn.Module, Stack] = WeakKeyDictionary()
# By model type.
_EXCEPTIONS: dict[str, _Exception] = {
    # Encoders that normalise each sum, with the names of norms that others give to norms of additions.
    **dict.fromkeys(("gte", "jina_embeddings_v3", "nomic_bert"), _Exception(has_norms_of_additions=False)),
    **dict.fromkeys(("zamba", "zamba2"), _Exception(lacks="its layers share attention and MLP")),
    "mobilebert": _Exception(lacks="its blocks have several feed-forward networks between bottlenecks"),
}


def hidden_size(model: nn.Module) -> int:
    """Width of the residual stream, by the configuration of the text model; 0 if it does not say."""
    return int(getattr(text_config(model), "hidden_size", 0) or 0)


def text_config(model: nn.Module) -> Any:
    """A model's configuration, or that of the text model inside it; None without one."""
    config = getattr(model, "config", None)
    find = getattr(config, "get_text_config", None)
    return find() if callable(find) else config


def model_type(model: nn.Module) -> str:
    """The architecture's name in the configuration, such as ``gpt_neox``."""
    return str(getattr(text_config(model), "model_type", "unknown"))


def named(model: nn.Module) -> str:
    """How messages begin that speak of a model's architecture."""
    return f"Architecture {model_type(model)!r} ({type(model).__name__})"


def is_of_text(path: str) -> bool:
    """Whether a module belongs to what reads text, in a model that may read pixels or sound, too."""
    return not _OTHER_SENSES.search(path)


def find_stack(model: nn.Module) -> Stack:
    """The one stack of blocks that text passes through, with the parts of each block; found once for each model.

    Raises
    ------
    InputError
        If there is none or more than one, or its blocks run more than once.
    """
    known = _KNOWN.get(model)
    if known is None:
        known = _KNOWN[model] = _find_stack(model)
    return known


def _find_stack(model: nn.Module) -> Stack:
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outer = {path for path, _ in lists}
    stacks = [
        (path, module)
        for path, module in lists
        if is_of_text(path) and not _parents(path) & outer and any(_is_matrix(part) for part in module.modules())
    ]
    name = named(model)
    if len(stacks) != 1:
        found = f"{len(stacks)} stacks of blocks ({', '.join(path for path, _ in stacks)})" if stacks else "no blocks"
        raise InputError(f"{name} has {found}; named hooks need one; found {inventory(model)}.", remedy=REMEDY)
    path, blocks = stacks[0]
    n_layers = getattr(text_config(model), "num_hidden_layers", None)
    if isinstance(n_layers, int) and n_layers > len(blocks):
        raise InputError(
            f"{name} has {len(blocks)} block{'s' * (len(blocks) != 1)} ({path}) for {n_layers} layers; a hook is read once "
            "a block and pass.",
            remedy="Probe a model whose layers have blocks of their own.",
        )
    return Stack(path, tuple(_parts(model, block) for block in blocks))


def inventory(model: nn.Module) -> str:
    """Paths in the first block of the longest list of modules, with the layer's number left open."""
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        return ", ".join(name for name, _ in model.named_children()) or "no modules"
    path, blocks = max(lists, key=lambda entry: len(entry[1]))
    inside = [f"{path}.{{layer}}.{name}" for name, module in blocks[0].named_modules() if not list(module.children())]
    return ", ".join(name for name in inside if not name.endswith("."))


def sides(module: nn.Module) -> tuple[int, int] | None:
    """(width of the input, width of the output) of a matrix; None for any other module."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        rows, columns = cast(torch.Tensor, module.weight).shape
        return int(rows), int(columns)
    return None


def _parents(path: str) -> set[str]:
    parts = path.split(".")
    return {".".join(parts[:i]) for i in range(1, len(parts))}


def _is_matrix(module: nn.Module) -> bool:
    return sides(module) is not None


def _parts(model: nn.Module, block: nn.Module) -> Block:
    width, rule = hidden_size(model), _EXCEPTIONS.get(model_type(model), _Exception())
    if rule.lacks is not None:
        return Block(block, lacks=dict.fromkeys(("neurons", "pre", "mlp_out", "attn_out"), rule.lacks))
    lacks: dict[str, str] = {}
    children = [(name, child) for name, child in block.named_children() if not _is_norm(name, child)]
    attention = [(name, child) for name, child in children if _ATTENTION.search(name) and _has_weights(child)]
    state_space = [name for name, child in children if _STATE_SPACE.search(name) and (name, child) not in attention]
    taken = {name for name, _ in attention} | set(state_space)
    region = [
        (name, child)
        for name, child in children
        if name not in taken and not _BESIDE.search(name) and any(_is_matrix(part) for part in child.modules())
    ]
    mixtures = [name for name, child in block.named_children() if name not in taken and _is_mixture(child)]
    neurons = pre = mlp_out = attn_out = None
    if mixtures:
        lacks["neurons"] = lacks["pre"] = "its MLP is a mixture of experts, whose neurons are not offered"
        others = [name for name, _ in region if name not in mixtures]
        if len(mixtures) == 1 and not others:
            mlp_out = _at(block, mixtures[0])
        else:
            lacks["mlp_out"] = f"it adds the outputs of several networks ({', '.join([*mixtures, *others])})"
    else:
        neurons = _neurons(region, width)
        pre = _pre(region, neurons, width) if neurons is not None else None
        if pre is None:
            neurons = None
            why = f"it has no MLP ({', '.join(state_space)} is a state-space block)" if state_space else "it has no MLP"
            lacks["neurons"] = lacks["pre"] = lacks["mlp_out"] = why
        else:
            mlp_out = neurons
    if len(attention) == 1:
        attn_out = _attention_out(block, *attention[0], width)
    else:
        lacks["attn_out"] = f"it has {len(attention)} attention modules" if attention else "it has no attention"
    if rule.has_norms_of_additions:
        mlp_out, attn_out = _norms_of_additions(block, mlp_out, attn_out)
    return Block(
        block,
        neurons=neurons,
        pre=pre,
        mlp_out=mlp_out,
        attn_out=attn_out,
        scale=_scale(text_config(model)),
        lacks=lacks,
    )


def _neurons(region: list[tuple[str, nn.Module]], width: int) -> Part | None:
    """The last projection back to the stream outside of attention, of the MLP's own module if it has one."""
    whole = [
        (name, child)
        for name, child in region
        if any(found[0] == width for found in _shapes(child)) and any(found[1] == width for found in _shapes(child))
    ]
    inside = whole if len([name for name, child in whole if not _is_matrix(child)]) == 1 else region
    back = [
        (path, module)
        for path, module in _matrices(inside)
        if (found := sides(module)) is not None and found[1] == width and not _BESIDE.search(path)
    ]
    return Part(*back[-1]) if back else None


def _pre(region: list[tuple[str, nn.Module]], neurons: Part, width: int) -> Part | None:
    """The projection into the neurons: the gate's of a gated MLP; of a fused one the first half, which is the gate's."""
    n_neurons = cast(tuple[int, int], sides(neurons.module))[0]
    into = [
        (path, module, cast(tuple[int, int], sides(module))[1])
        for path, module in _matrices(region)
        if module is not neurons.module and cast(tuple[int, int], sides(module))[0] == width
    ]
    own = [(path, module) for path, module, n in into if n == n_neurons]
    gates = [entry for entry in own if _GATE.search(entry[0])]
    if own:
        return Part(*(gates or own)[0])
    fused = [(path, module) for path, module, n in into if n == 2 * n_neurons]
    return Part(*fused[0], columns=slice(0, n_neurons)) if fused else None


def _attention_out(block: nn.Module, name: str, attention: nn.Module, width: int) -> Part:
    """Attention's projection back to the stream; the whole module's output where it has none."""
    found = [
        (path, module)
        for path, module in _matrices([(name, attention)])
        if _ATTENTION_OUT.search(path) and cast(tuple[int, int], sides(module))[1] == width
    ]
    return Part(*found[-1]) if found else _at(block, name)


def _norms_of_additions(
    block: nn.Module, mlp_out: Part | None, attn_out: Part | None
) -> tuple[Part | None, Part | None]:
    """The norms through which additions go, where the block has such norms."""
    norms = [name for name, child in block.named_children() if _is_norm(name, child)]
    of_mlp = [name for name in norms if _NORM_OF_MLP.search(name)]
    if not of_mlp:
        return mlp_out, attn_out
    of_attention = next(
        (found for pattern in _NORM_OF_ATTENTION if (found := [name for name in norms if pattern.search(name)])), []
    )
    return (
        _at(block, of_mlp[0]) if mlp_out is not None else None,
        _at(block, of_attention[0]) if of_attention and attn_out is not None else attn_out,
    )


def _scale(config: Any) -> float:
    """The factor of what a block adds (Granite's residual_multiplier, MiniCPM's scale_depth)."""
    depth, n_layers = getattr(config, "scale_depth", None), getattr(config, "num_hidden_layers", None)
    if depth is not None and n_layers:
        return float(depth / n_layers**0.5)
    return float(getattr(config, "residual_multiplier", None) or 1.0)


def _at(block: nn.Module, path: str) -> Part:
    return Part(path, block.get_submodule(path))


def _matrices(region: list[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Module]]:
    for name, child in region:
        for inner, module in child.named_modules():
            if _is_matrix(module):
                yield f"{name}.{inner}" if inner else name, module


def _shapes(module: nn.Module) -> list[tuple[int, int]]:
    return [found for part in module.modules() if (found := sides(part)) is not None]


def _is_norm(name: str, module: nn.Module) -> bool:
    return bool(_NORM.search(name) or ("Norm" in type(module).__name__ and not any(map(_is_matrix, module.modules()))))


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _is_mixture(module: nn.Module) -> bool:
    """Whether a module holds experts: one of that name, or a stack of matrices in one parameter."""
    return any(_EXPERTS.search(name) or _EXPERTS.search(type(part).__name__) for name, part in module.named_modules())
