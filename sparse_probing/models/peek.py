"""Layers and widths of a model before it is converted or loaded, from its configuration or GGUF header alone."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from sparse_probing.config import ModelSpec
from sparse_probing.models.complete import GGUF_STRING, gguf_value
from sparse_probing.models.hook_names import canonical_hook
from sparse_probing.models.sources import find_local, is_hub_id

# Names in a configuration, and how a name in a GGUF header ends.
_LAYERS = (("num_hidden_layers", "n_layer", "num_layers"), ".block_count")
_NEURONS = (("intermediate_size", "n_inner", "ffn_dim", "hidden_dim"), ".feed_forward_length")
_STREAM = (("hidden_size", "n_embd", "dim"), ".embedding_length")


def peek_n_layers(spec: ModelSpec) -> int | None:
    """Number of layers that the model's own description states; None where it cannot be known cheaply.

    Raises
    ------
    InputError
        If a local model cannot be found (see `sources.preflight`).
    """
    return _peek(spec, *_LAYERS)


def peek_width(spec: ModelSpec, hook: str) -> int | None:
    """Values at a named hook of one position, by the model's own description; None where it cannot be known cheaply.

    Raises
    ------
    InputError
        If a local model cannot be found, or the hook is unknown.
    """
    name = canonical_hook(hook)
    if name in ("mlp.hook_post", "mlp.hook_pre"):
        return _peek(spec, *_NEURONS)
    return None if "{layer}" in name else _peek(spec, *_STREAM)


def _peek(spec: ModelSpec, keys: tuple[str, ...], gguf_suffix: str) -> int | None:
    if is_hub_id(spec):
        from huggingface_hub import hf_hub_download

        try:
            config = Path(hf_hub_download(spec.id, "config.json", revision=spec.revision))
        except Exception:  # whatever keeps the hub from answering, resolving the model will say
            return None
        return _from_config(config, keys)
    source = find_local(spec)
    if source.is_gguf:
        return _from_gguf(source.path, gguf_suffix)
    return _from_config(source.path / "config.json", keys)


def _from_config(path: Path, keys: tuple[str, ...]) -> int | None:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return next((config[key] for key in keys if isinstance(config.get(key), int)), None)


def _from_gguf(path: Path, suffix: str) -> int | None:
    """The number that a GGUF header states under ``<architecture><suffix>``; what is no such header states none."""
    found: dict[str, Any] = {}
    try:
        with path.open("rb") as stream:
            magic, version, _, n_fields = struct.unpack("<4sIQQ", stream.read(24))
            if magic != b"GGUF" or version < 2:
                return None
            for _ in range(n_fields):
                name = gguf_value(stream, GGUF_STRING)
                found[name] = gguf_value(stream, struct.unpack("<I", stream.read(4))[0])
                number = found.get(f"{found.get('general.architecture')}{suffix}")
                if number is not None:
                    return int(number)
    except (OSError, struct.error, KeyError, UnicodeDecodeError):
        return None
    return None
