"""What a model offers to named hooks, and which architectures of transformers have which: shown by module and width.

Reads modules and shapes alone; no weights are loaded and nothing runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModel
from transformers.models.auto import modeling_auto

from sparse_probing.errors import InputError
from sparse_probing.models.hooks import HOOK_NAMES, layers_of, place_points, why_not
from sparse_probing.models.limits import check_reads_text
from sparse_probing.models.structure import find_stack, named

_SHOWN = ("mlp.hook_post", "mlp.hook_pre", "hook_mlp_out", "hook_attn_out")
OVERVIEW_COLUMNS = ("architectures", "block", *_SHOWN, "remark")


@dataclass(frozen=True)
class HookRow:
    """One named hook of a model, at the layers where it is the same module.

    Attributes
    ----------
    hook:
        Its name.
    module:
        Path with the layer's number left open, and the side that is read; empty where there is none.
    width:
        Values of one position; None where there is none.
    layers:
        Layers that have it.
    lacks:
        Why no layer, or no other layer, has it; empty if all have.
    """

    hook: str
    module: str
    width: int | None
    layers: tuple[int, ...]
    lacks: str

    @property
    def layer_ranges(self) -> str:
        """The layers in words, such as ``0–5, 7``."""
        runs: list[list[int]] = []
        for layer in self.layers:
            if runs and layer == runs[-1][-1] + 1:
                runs[-1].append(layer)
            else:
                runs.append([layer])
        return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def describe(model: nn.Module) -> list[HookRow]:
    """Every named hook of a model, one row for each module that it means in some layers.

    Raises
    ------
    InputError
        If named hooks do not fit the model at all, with the reason.
    """
    check_reads_text(model)
    blocks = find_stack(model).blocks
    rows: list[HookRow] = []
    for hook in HOOK_NAMES:
        there = layers_of(model, hook)
        lacks = next((why_not(block, hook) for layer, block in enumerate(blocks) if layer not in there), "")
        found: dict[tuple[str, int], list[int]] = {}
        for point in place_points(model, hook, there):
            columns = "" if point.columns is None else f"[:{point.columns.stop}]"
            path = f"{point.path}.".replace(f".{point.layer}.", ".{layer}.", 1)
            found.setdefault((f"{path}{point.side}{columns}", point.width), []).append(point.layer)
        rows += [HookRow(hook, module, width, tuple(layers), lacks) for (module, width), layers in found.items()]
        if not found:
            rows.append(HookRow(hook, "", None, (), lacks))
    return rows


def text_architectures() -> list[str]:
    """Names of the architectures for which transformers has a model of text, with or without a head."""
    names = set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) | set(modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    return sorted(names)


def of_default_configuration(architecture: str) -> nn.Module:
    """The base model of an architecture's default configuration, without weights.

    Raises
    ------
    InputError
        If there is none: some configurations are made from others, or want a package that is not here.
    """
    try:
        with torch.device("meta"):
            return cast(nn.Module, AutoModel.from_config(CONFIG_MAPPING[architecture](), trust_remote_code=False))
    except Exception as error:  # whatever a configuration lacks, its own code says
        raise InputError(
            f"Architecture {architecture!r} has no model of its default configuration here.",
            remedy="Name the folder of a model of it.",
        ) from error


def overview() -> list[tuple[str, ...]]:
    """Architectures by their default configuration, those with the same modules in one row of `OVERVIEW_COLUMNS`.

    Modules are relative to the block.
    """
    alike: dict[tuple[str, ...], list[str]] = {}
    for architecture in text_architectures():
        alike.setdefault(overview_row(architecture), []).append(architecture)
    return [(", ".join(names), *row) for row, names in alike.items()]


def overview_row(architecture: str) -> tuple[str, ...]:
    """The columns of `OVERVIEW_COLUMNS` but the first: modules relative to the block, or why there are none."""
    subject = f"Architecture {architecture!r} "
    try:
        model = of_default_configuration(architecture)
        subject = f"{named(model)} "
        rows = describe(model)
    except InputError as error:
        reason = error.message.removeprefix(subject).partition("; found")[0].rstrip(".")
        return (*[""] * (len(_SHOWN) + 1), reason)
    stack = f"{find_stack(model).path}.{{layer}}"
    modules = [
        ", ".join(
            dict.fromkeys(row.module.removeprefix(f"{stack}.") for row in rows if row.hook == hook and row.module)
        )
        for hook in _SHOWN
    ]
    return (stack, *modules, "; ".join(dict.fromkeys(_remark(row) for row in rows if row.lacks)))


def _remark(row: HookRow) -> str:
    return f"in some layers {row.lacks}" if row.layers else row.lacks
