"""What a model cannot take: ids without an embedding, positions that it has no embedding for, inputs other than text.

Read off the modules, without running them.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from torch import nn

from sparse_probing.errors import InputError
from sparse_probing.models.structure import is_of_text, named, text_config

_POSITIONS = re.compile(r"(^|[._])(wpe|pos\w*_?emb\w*|position\w*|embed_pos\w*|pos_enc\w*|pos)$")


def max_positions(model: nn.Module) -> int | None:
    """Longest sequence, in tokens, that a model has positions for; None where nothing limits it.

    A table of learned or precomputed positions is a limit; rotary, relative and linear (ALiBi) ones are none. Tables
    may begin with rows that stand for no position: RoBERTa counts from ``padding_idx + 1``, OPT from 2.
    """
    stated = getattr(text_config(model), "max_position_embeddings", None)
    limits = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and _POSITIONS.search(path) and is_of_text(path):
            limits.append(_rows(module, stated))
    for path, tensor in [*model.named_buffers(), *model.named_parameters(), *_plain_tensors(model)]:
        is_table = tensor.ndim == 2 and stated is not None and tensor.shape[0] == stated
        if is_table and _POSITIONS.search(path) and is_of_text(path):
            limits.append(int(tensor.shape[0]))
    return min(limits, default=None)


def n_embeddings(model: nn.Module) -> int | None:
    """Number of token ids that a model has an embedding for; None where it cannot be told."""
    find = getattr(model, "get_input_embeddings", None)
    try:
        table = find() if callable(find) else None
    except NotImplementedError:
        return None
    count = getattr(table, "num_embeddings", None)
    return int(count) if count is not None else None


def padding_id(model: nn.Module) -> int:
    """The id that fills up short sequences: the configuration's if there is an embedding for it, else 0."""
    stated = getattr(text_config(model), "pad_token_id", None)
    count = n_embeddings(model)
    return int(stated) if isinstance(stated, int) and 0 <= stated < (count or stated + 1) else 0


def check_reads_text(model: nn.Module) -> None:
    """Raise `InputError` unless the model's forward pass takes token ids, and those of one text."""
    name = named(model)
    parameters = inspect.signature(model.forward).parameters
    if "input_ids" not in parameters:
        raise InputError(
            f"{name} takes {getattr(model, 'main_input_name', 'other inputs')}, not token ids; expected a model of text.",
            remedy="Edit models.id.",
        )
    config: Any = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False) or "decoder_input_ids" in parameters:
        raise InputError(
            f"{name} is an encoder-decoder; expected a decoder or an encoder alone.", remedy="Edit models.id."
        )


def check_length(name: str, n_positions: int | None, context_length: int) -> None:
    """Raise `InputError` if sequences may be longer than a model has positions."""
    if n_positions is not None and context_length > n_positions:
        raise InputError(
            f"context_length {context_length} is more than the {n_positions} positions of {name}.",
            remedy=f"Set collections.context_length to {n_positions} or less.",
        )


def check_tokens(name: str, n_ids: int | None, tokenizer: Any) -> None:
    """Raise `InputError` if text can become ids that the model has no embedding for.

    Special tokens do not count: text that holds one is never probed.
    """
    if n_ids is None:
        return
    special = set(tokenizer.all_special_ids)
    largest = max((token for token in tokenizer.get_vocab().values() if token not in special), default=-1)
    if largest >= n_ids:
        raise InputError(
            f"The tokenizer of {name} gives ids up to {largest}; the model has {n_ids} embeddings.",
            remedy="Use the tokenizer that the model was trained with.",
        )


def _rows(table: nn.Embedding, stated: int | None) -> int:
    n_rows = table.num_embeddings
    if table.padding_idx is not None:
        return n_rows - table.padding_idx - 1
    offset = getattr(table, "offset", None)
    if isinstance(offset, int):
        return n_rows - offset
    return min(n_rows, stated) if stated else n_rows


def _plain_tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Tensors that modules hold outside of parameters and buffers."""
    return [
        (f"{path}.{name}".lstrip("."), value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, torch.Tensor)
    ]
