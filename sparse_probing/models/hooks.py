"""Hook points: which module's input or output is which activation, by architecture.

Their names are in `hook_names`. Nothing here runs a model or keeps a value; `activations.capture` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn

from sparse_probing.errors import ArtifactError, InputError
from sparse_probing.models.hook_names import HOOK_NAMES as HOOK_NAMES
from sparse_probing.models.hook_names import canonical_hook as canonical_hook
from sparse_probing.models.hook_names import is_module_path

Side = Literal["input", "output"]


@dataclass(frozen=True)
class Layout:
    """Module paths of one architecture; those of a block are relative to it.

    Attributes
    ----------
    blocks:
        Path of the list of blocks inside the base model.
    neurons:
        Module whose input is the neurons after the non-linearity.
    pre:
        Module whose output is the neurons before the non-linearity (of a gated MLP: the gate's).
    mlp_out, attn_out:
        Modules whose outputs the block adds to the residual stream.
    causal:
        Whether a position sees only earlier ones, so that padding on the right cannot reach it.
    """

    blocks: str
    neurons: str
    pre: str | None
    mlp_out: str
    attn_out: str
    causal: bool = True


_LLAMA = Layout("layers", "mlp.down_proj", "mlp.gate_proj", "mlp.down_proj", "self_attn.o_proj")
_BERT = Layout(
    "encoder.layer", "output.dense", "intermediate.dense", "output.dense", "attention.output.dense", causal=False
)

LAYOUTS: dict[str, Layout] = {
    "gpt_neox": Layout("layers", "mlp.dense_4h_to_h", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "attention.dense"),
    "gpt2": Layout("h", "mlp.c_proj", "mlp.c_fc", "mlp.c_proj", "attn.c_proj"),
    "opt": Layout("decoder.layers", "fc2", "fc1", "fc2", "self_attn.out_proj"),
    "phi": Layout("layers", "mlp.fc2", "mlp.fc1", "mlp.fc2", "self_attn.dense"),
    "phi3": Layout("layers", "mlp.down_proj", None, "mlp.down_proj", "self_attn.o_proj"),
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma", "smollm3", "olmo", "stablelm", "granite", "cohere"), _LLAMA
    ),
    # These normalise what a block adds: the additions are the outputs of those norms.
    **dict.fromkeys(
        ("gemma2", "gemma3_text"),
        Layout("layers", "mlp.down_proj", "mlp.gate_proj", "post_feedforward_layernorm", "post_attention_layernorm"),
    ),
    "olmo2": Layout(
        "layers", "mlp.down_proj", "mlp.gate_proj", "post_feedforward_layernorm", "post_attention_layernorm"
    ),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    "distilbert": Layout("transformer.layer", "ffn.lin2", "ffn.lin1", "ffn.lin2", "attention.out_lin", causal=False),
}


@dataclass(frozen=True)
class HookPoint:
    """One place in one model: an input or an output of a module.

    Attributes
    ----------
    hook:
        Name as `canonical_hook` gives it.
    layer:
        Index of the block.
    module:
        The module to hook.
    side:
        Which of its tensors.
    width:
        Size of the tensor's last axis.
    """

    hook: str
    layer: int
    module: nn.Module
    side: Side
    width: int


def is_causal(model: nn.Module) -> bool:
    """Whether the architecture is known to let no position see a later one."""
    layout = LAYOUTS.get(_model_type(model))
    config = getattr(model, "config", None)
    return layout is not None and layout.causal and not getattr(config, "use_bidirectional_attention", False)


def count_layers(model: nn.Module, hook: str = "mlp.hook_post") -> int:
    """Number of blocks at which a hook can be placed.

    Raises
    ------
    InputError
        If the architecture is unknown and the hook is no module path, or no module has that path.
    """
    name = canonical_hook(hook)
    if is_module_path(name):
        modules = dict(model.named_modules())
        path = name.rsplit(".", 1)[0]
        n_layers = 0
        while path.format(layer=n_layers) in modules:
            n_layers += 1
        if not n_layers:
            raise InputError(
                f"No module {path.format(layer=0)!r} in {type(model).__name__}; found {_inventory(model)}.",
                remedy="Edit extraction.hook.",
            )
        return n_layers
    return len(_blocks(model))


def find_points(model: nn.Module, hook: str, layers: tuple[int, ...] | None = None) -> list[HookPoint]:
    """Hook points of some layers (all if None), in order of layer.

    Raises
    ------
    InputError
        If the hook or the architecture is unknown, the architecture lacks the hook, or a layer does not exist.
    """
    name = canonical_hook(hook)
    n_layers = count_layers(model, name)
    chosen = tuple(range(n_layers)) if layers is None else tuple(sorted(set(layers)))
    wrong = [layer for layer in chosen if not 0 <= layer < n_layers]
    if wrong or not chosen:
        raise InputError(
            f"Layers {wrong} requested; {type(model).__name__} has {n_layers} (0–{n_layers - 1}).",
            remedy="Edit extraction.layers.",
        )
    return [_point(model, name, layer) for layer in chosen]


def count_neurons(model: nn.Module) -> int:
    """MLP neurons per layer, read off the module that they feed (not off the configuration).

    Raises
    ------
    InputError
        If the architecture is unknown, or its layers differ in width.
    """
    widths = {point.width for point in find_points(model, "mlp.hook_post")}
    if len(widths) != 1:
        raise InputError(
            f"{type(model).__name__} has layers of {sorted(widths)} neurons; expected one width.",
            remedy="Extract layers of one width at a time with extraction.layers.",
        )
    return widths.pop()


def select_tensor(value: Any) -> torch.Tensor:
    """The tensor among a module's inputs or outputs: itself, or the first of a tuple.

    Raises
    ------
    ArtifactError
        If there is none.
    """
    while isinstance(value, tuple | list) and value:
        value = value[0]
    if not isinstance(value, torch.Tensor):
        raise ArtifactError(
            f"A hooked module gave {type(value).__name__}; expected a tensor.", remedy="Edit extraction.hook."
        )
    return value


def _point(model: nn.Module, name: str, layer: int) -> HookPoint:
    if is_module_path(name):
        path, _, side = name.rpartition(".")
        module = model.get_submodule(path.format(layer=layer))
        return HookPoint(name, layer, module, "input" if side == "input" else "output", _width(model, module, side))
    layout = LAYOUTS[_model_type(model)]
    block = _blocks(model)[layer]
    path_of: dict[str, tuple[str | None, Side]] = {
        "mlp.hook_post": (layout.neurons, "input"),
        "mlp.hook_pre": (layout.pre, "output"),
        "hook_mlp_out": (layout.mlp_out, "output"),
        "hook_attn_out": (layout.attn_out, "output"),
        "hook_resid_pre": ("", "input"),
        "hook_resid_post": ("", "output"),
    }
    relative, where = path_of[name]
    try:
        if relative is None:
            raise AttributeError
        module = block.get_submodule(relative)
    except AttributeError:
        raise InputError(
            f"{type(model).__name__} has no {name} in layer {layer} (looked for {relative}); "
            f"found {_inventory(model)}.",
            remedy="Name a module path such as 'layers.{layer}.mlp.down_proj.input' in extraction.hook.",
        ) from None
    return HookPoint(name, layer, module, where, _width(model, module, where))


def _blocks(model: nn.Module) -> nn.ModuleList:
    layout = LAYOUTS.get(_model_type(model))
    try:
        if layout is None:
            raise AttributeError
        blocks = model.get_submodule(layout.blocks)
    except AttributeError:
        raise InputError(
            f"Architecture {_model_type(model)!r} ({type(model).__name__}) has no table of hooks; "
            f"found {_inventory(model)}.",
            remedy="Name a module path such as 'layers.{layer}.mlp.down_proj.input' in extraction.hook.",
        ) from None
    return cast(nn.ModuleList, blocks)


def _model_type(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", "unknown"))


def _width(model: nn.Module, module: nn.Module, side: str) -> int:
    """Size of the last axis, from the module's weight where it is a projection, else the width of the stream."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, torch.Tensor) and weight.ndim == 2:
        rows_are_outputs = not type(module).__name__.startswith("Conv1D")
        return int(weight.shape[1 if (side == "input") == rows_are_outputs else 0])
    if isinstance(weight, torch.Tensor) and weight.ndim == 1:
        return int(weight.shape[0])
    return int(getattr(getattr(model, "config", None), "hidden_size", 0))


def _inventory(model: nn.Module) -> str:
    """Paths in the first block of the longest list of modules, with the layer's number left open."""
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        return ", ".join(name for name, _ in model.named_children()) or "no modules"
    path, blocks = max(lists, key=lambda entry: len(entry[1]))
    inside = [f"{path}.{{layer}}.{name}" for name, module in blocks[0].named_modules() if not list(module.children())]
    return ", ".join(name for name in inside if not name.endswith("."))
