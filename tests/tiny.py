"""Tiny random models and datasets that tests make for themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
from torch import nn

from sparse_probing import schemas
from sparse_probing.config import ModelSpec
from sparse_probing.models.loading import resolve_model
from sparse_probing.models.resolved import ResolvedModel
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import write_manifest
from sparse_probing.store.parquet import write_table

VOCABULARY = 64
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 1, "head_dim": 8}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": ("GPTNeoXConfig", {**_COMMON, "bos_token_id": 0, "eos_token_id": 0}),
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 16,
            "n_layer": 3,
            "n_head": 2,
            "n_positions": 128,
            "n_inner": 48,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
    ),
    "llama": ("LlamaConfig", _GROUPED),
    "mistral": ("MistralConfig", _GROUPED),
    "qwen2": ("Qwen2Config", _GROUPED),
    "qwen3": ("Qwen3Config", _GROUPED),
    "gemma": ("GemmaConfig", _GROUPED),
    "gemma2": ("Gemma2Config", _GROUPED),
    "opt": ("OPTConfig", {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 16}),
    "phi": ("PhiConfig", _COMMON),
    "bert": ("BertConfig", _COMMON),
    "roberta": ("RobertaConfig", {**_COMMON, "pad_token_id": 1}),
    "distilbert": (
        "DistilBertConfig",
        {"vocab_size": VOCABULARY, "dim": 16, "hidden_dim": 48, "n_layers": 3, "n_heads": 2},
    ),
}


def random_model(architecture: str, seed: int = 0) -> nn.Module:
    """A random base model of three layers of 48 neurons in float32, its weights large enough to differ by position."""
    name, values = CONFIGS[architecture]
    torch.manual_seed(seed)
    config = getattr(transformers, name)(**values)
    model = transformers.AutoModel.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.normal_(std=0.2)
    return model


def save_tiny(folder: Path, architecture: str = "gpt_neox") -> ResolvedModel:
    """A tiny model saved as safetensors, and resolved from there."""
    random_model(architecture).save_pretrained(folder)
    return resolve_model(ModelSpec(id=str(folder), name="tiny"), models_dir=folder.parent / "models")


def random_sequences(n: int, seed: int = 0, shortest: int = 4, longest: int = 24) -> list[np.ndarray]:
    """Random token ids; ids 0 and 1 (beginning, padding) do not occur."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, longest + 1, n)
    return [rng.integers(2, VOCABULARY, length).astype(np.int32) for length in lengths]


def write_dataset(
    folder: Path,
    sequences: Sequence[np.ndarray],
    labels: Sequence[tuple[int, int | None]],
    *,
    pooling: str = "none",
    splits: Sequence[str] | None = None,
    ranges: Sequence[tuple[int, int]] | None = None,
    digest: str = "ab" * 32,
) -> Location:
    """A finished dataset artifact; three fifths of its sequences are training sequences unless `splits` says else."""
    n = len(sequences)
    splits = splits or [("train", "train", "train", "validation", "test")[i % 5] for i in range(n)]
    ranges = ranges or [(1, len(sequence)) for sequence in sequences]
    table = pa.table(
        {
            "seq_id": pa.array(range(n), pa.int64()),
            "group_id": [f"group-{i}" for i in range(n)],
            "source": ["random"] * n,
            "split": list(splits),
            "tokens": pa.array([sequence.tolist() for sequence in sequences], pa.list_(pa.int32())),
            "n_tokens": pa.array([len(sequence) for sequence in sequences], pa.int32()),
            "pool_start": pa.array([start for start, _ in ranges], pa.int32()),
            "pool_end": pa.array([end for _, end in ranges], pa.int32()),
        }
    )
    marks = pa.table(
        {
            "feature": ["feature"] * len(labels),
            "seq_id": pa.array([seq_id for seq_id, _ in labels], pa.int64()),
            "position": pa.array([position for _, position in labels], pa.int32()),
            "label": pa.array([1 if i % 2 else -1 for i in range(len(labels))], pa.int8()),
            "target": pa.nulls(len(labels), pa.float64()),
        }
    )
    location = Location.open(folder)
    files = {
        "sequences.parquet": write_table(location / "sequences.parquet", table, schemas.SEQUENCES),
        "labels.parquet": write_table(location / "labels.parquet", marks, schemas.LABELS),
    }
    facts = {"pooling": pooling, "features": ["feature"]}
    write_manifest(location, kind="dataset", digest=digest, spec={}, files=files, facts=facts)
    return location
