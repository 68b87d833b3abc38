"""Fixtures shared by all tests: a tiny random GPT-NeoX with a real tokenizer, and a quiet environment."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import object_store as object_stores
from tests.object_store import ObjectStore

for _name, _value in {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
    "PREFECT_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "true",
}.items():
    os.environ.setdefault(_name, _value)

if "PYTEST_XDIST_WORKER" in os.environ:
    # Tests that run side by side have a core each.
    for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(_name, "1")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Real sentences of many languages, from the `eld` package."""
    spec = importlib.util.find_spec("eld")
    if spec is None or spec.origin is None:
        pytest.skip("the package eld is not installed (requirements-demo.txt)")
    text = (Path(spec.origin).parent / "tests" / "data" / "big-test.txt").read_text(encoding="utf-8")
    return [line.partition("\t")[2] for line in text.splitlines() if line]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, sentences: list[str]) -> Path:
    """Folder of a random GPT-NeoX (3 layers × 64 neurons) and a byte-level BPE of 512 tokens whose BOS has id 0."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model") / "tiny-neox"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences[::97], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|padding|>",
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=512,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    GPTNeoXForCausalLM(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """An S3 server on this machine."""
    with object_stores.object_store(tmp_path_factory.mktemp("object-store")) as store:
        yield store
