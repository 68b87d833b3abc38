"""Hook points: which module's input or output is which activation.

Their names are in `hook_names`; the parts of a block that they name are found by `structure`. Nothing here keeps a
value; `activations.capture` does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from sparse_probing.errors import ArtifactError, InputError
from sparse_probing.models.hook_names import HOOK_NAMES as HOOK_NAMES
from sparse_probing.models.hook_names import canonical_hook as canonical_hook
from sparse_probing.models.hook_names import is_module_path
from sparse_probing.models.structure import REMEDY, Block, Part, find_stack, hidden_size, inventory, sides

Side = Literal["input", "output"]
# By hook: the part of a block, and which of its tensors.
_PARTS: dict[str, tuple[str, Side]] = {
    "mlp.hook_post": ("neurons", "input"),
    "mlp.hook_pre": ("pre", "output"),
    "hook_mlp_out": ("mlp_out", "output"),
    "hook_attn_out": ("attn_out", "output"),
    "hook_resid_pre": ("", "input"),
    "hook_resid_post": ("", "output"),
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
        Size of the activation's last axis.
    path:
        The module's path in the model.
    columns:
        Columns of the tensor's last axis that are the activation; None for all.
    scale:
        The activation is the tensor times this.
    """

    hook: str
    layer: int
    module: nn.Module
    side: Side
    width: int
    path: str
    columns: slice | None = None
    scale: float = 1.0

    @property
    def is_whole(self) -> bool:
        """Whether the activation is the module's tensor as it is."""
        return self.columns is None and self.scale == 1.0

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        """The activation, from the module's tensor."""
        wanted = tensor if self.columns is None else tensor[..., self.columns]
        return wanted if self.scale == 1.0 else wanted * self.scale

    def watch(self, see: Callable[[torch.Tensor], None]) -> RemovableHandle:
        """Have `see` called with the module's tensor, unread, whenever the module runs, until the handle is removed."""
        if self.side == "output":
            return self.module.register_forward_hook(lambda module, args, output: see(select_tensor(output)))
        return self.module.register_forward_pre_hook(
            lambda module, args, kwargs: see(select_input(args, kwargs)), with_kwargs=True
        )


def layers_of(model: nn.Module, hook: str) -> tuple[int, ...]:
    """Layers at which a hook can be placed, ascending; none where the model has no stack of blocks for named hooks."""
    name = canonical_hook(hook)
    if is_module_path(name):
        path = name.rsplit(".", 1)[0]
        pattern = re.compile(r"(\d+)".join(re.escape(part) for part in path.split("{layer}", 1)) + "$")
        matches = (pattern.match(module) for module, _ in model.named_modules())
        return tuple(sorted(int(match[1]) for match in matches if match))
    try:
        blocks = find_stack(model).blocks
    except InputError:
        return ()
    return tuple(layer for layer, block in enumerate(blocks) if _part(block, name) is not None)


def check_layers(model: nn.Module, hook: str, layers: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """The wanted layers in order (if None all that have the hook).

    Raises
    ------
    InputError
        If the hook is unknown, or the architecture or one of the layers lacks it.
    """
    name = canonical_hook(hook)
    there = layers_of(model, name)
    if not there:
        raise _nowhere(model, name)
    chosen = there if layers is None else tuple(sorted(set(layers)))
    wrong = [layer for layer in chosen if layer not in there]
    if wrong or not chosen:
        raise InputError(_absent(model, name, wrong, there), remedy="Edit extraction.layers.")
    return chosen


def find_points(model: nn.Module, hook: str, layers: tuple[int, ...] | None = None) -> list[HookPoint]:
    """Hook points of some layers (if None of all that have the hook), in order of layer.

    A module whose weights do not tell its width is run once, on one token.

    Raises
    ------
    InputError
        If the hook is unknown, the architecture or a layer lacks it, or its widths differ from layer to layer.
    """
    name = canonical_hook(hook)
    points = place_points(model, name, check_layers(model, name, layers))
    if len({id(point.module) for point in points}) < len(points):
        raise InputError(
            f"Layers of {type(model).__name__} share one module {points[0].path}; a hook is read once a module and pass.",
            remedy="Set extraction.layers to layers with modules of their own.",
        )
    widths = {point.width for point in points}
    if len(widths) > 1:
        narrow = [point.layer for point in points if point.width == points[0].width]
        raise InputError(
            f"{name} of {type(model).__name__} has widths {', '.join(map(str, sorted(widths)))} in different layers; "
            "expected one.",
            remedy=f"Extract layers of one width at a time: extraction.layers = {narrow} are {points[0].width} wide.",
        )
    return points


def place_points(model: nn.Module, hook: str, layers: Sequence[int]) -> list[HookPoint]:
    """Hook points of layers that have the hook, whatever their widths."""
    name = canonical_hook(hook)
    if is_module_path(name):
        return _at_path(model, name, layers)
    stack = find_stack(model)
    return [_point(model, stack.path, stack.blocks[layer], name, layer) for layer in layers]


def count_neurons(model: nn.Module) -> tuple[int, int]:
    """(blocks, MLP neurons in the widest of them), read off the modules; zeros where none can be told."""
    try:
        blocks = find_stack(model).blocks
    except InputError:
        return 0, 0
    widths = [_width_of(block.neurons, "input") or 0 for block in blocks if block.neurons is not None]
    return len(blocks), max(widths, default=0)


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


def select_input(args: Sequence[Any], kwargs: dict[str, Any]) -> torch.Tensor:
    """The tensor that a module works on: ``hidden_states`` by name, else its first argument."""
    return select_tensor(args or [kwargs.get("hidden_states", list(kwargs.values()))])


def _part(block: Block, name: str) -> Part | None:
    part = _PARTS[name][0]
    found: Part | None = getattr(block, part) if part else Part("", block.module)
    return found


def why_not(block: Block, name: str) -> str:
    """Why a block lacks a named hook."""
    return block.lacks.get(_PARTS[name][0], "it is not there")


def _nowhere(model: nn.Module, name: str) -> InputError:
    """Why no layer of a model has a hook."""
    if is_module_path(name):
        path = name.rsplit(".", 1)[0].format(layer=0)
        return InputError(
            f"No module {path!r} in {type(model).__name__}; found {inventory(model)}.", remedy="Edit extraction.hook."
        )
    why = why_not(find_stack(model).blocks[0], name)
    return InputError(
        f"{type(model).__name__} has no {name} in any layer: {why}; found {inventory(model)}.", remedy=REMEDY
    )


def _absent(model: nn.Module, name: str, wrong: list[int], there: tuple[int, ...]) -> str:
    """Which of the wanted layers are not there, or why they lack the hook, and which have it."""
    kind = type(model).__name__
    last = there[-1]
    if there == tuple(range(last + 1)) and all(layer > last or layer < 0 for layer in wrong):
        try:
            n_layers = len(find_stack(model).blocks)
        except InputError:
            n_layers = last + 1
        if n_layers == last + 1:
            return f"Layers {wrong} requested; {kind} has {n_layers} (0–{last})."
    why = ""
    if not is_module_path(name):
        blocks = find_stack(model).blocks
        inside = [layer for layer in wrong if 0 <= layer < len(blocks)]
        why = f" ({why_not(blocks[inside[0]], name)})" if inside else ""
    return f"Layers {wrong} of {kind} have no {name}{why}; layers {', '.join(map(str, there))} have it."


def _at_path(model: nn.Module, name: str, layers: Sequence[int]) -> list[HookPoint]:
    path, _, end = name.rpartition(".")
    side: Side = "input" if end == "input" else "output"
    paths = [path.format(layer=layer) for layer in layers]
    modules = [model.get_submodule(one) for one in paths]
    widths = [_width_of(Part(one, module), side) for one, module in zip(paths, modules, strict=True)]
    points = [
        HookPoint(name, layer, module, side, width or 0, one)
        for layer, module, width, one in zip(layers, modules, widths, paths, strict=True)
    ]
    return _measured(model, points) if None in widths else points


def _point(model: nn.Module, stack: str, block: Block, name: str, layer: int) -> HookPoint:
    part = cast(Part, _part(block, name))  # `layers_of` names layers that have it
    side = _PARTS[name][1]
    width = _width_of(part, side)
    if width is None or not part.path:
        width = hidden_size(model)
    path = f"{stack}.{layer}.{part.path}".rstrip(".")
    scale = block.scale if name in ("hook_mlp_out", "hook_attn_out") else 1.0
    return HookPoint(name, layer, part.module, side, width, path, part.columns, scale)


def _width_of(part: Part, side: Side) -> int | None:
    """Size of the last axis by the module's weights; None where they do not tell."""
    if part.columns is not None:
        return int(part.columns.stop - part.columns.start)
    found = sides(part.module)
    if found is not None:
        return found[0] if side == "input" else found[1]
    weight = getattr(part.module, "weight", None)
    if "Norm" in type(part.module).__name__ and isinstance(weight, torch.Tensor) and weight.ndim == 1:
        return int(weight.shape[0])
    return None


@torch.no_grad()
def _measured(model: nn.Module, points: list[HookPoint]) -> list[HookPoint]:
    """The points with the widths that their tensors have in a pass over one token."""
    widths: dict[str, int] = {}
    handles = [
        point.watch(lambda tensor, path=point.path: widths.update({path: int(tensor.shape[-1])}))  # type: ignore[misc]
        for point in points
    ]
    try:
        model(input_ids=torch.ones(1, 1, dtype=torch.long, device=next(model.parameters()).device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    missing = [point.path for point in points if point.path not in widths]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(points)} modules {points[0].hook} of {type(model).__name__} were not run in a forward "
            f"pass ({missing[0]}).",
            remedy="Edit extraction.hook.",
        )
    return [replace(point, width=widths[point.path]) for point in points]
