"""A checkpoint that is still being written, or was copied in part, is refused before any work, in one line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparse_probing.config import ModelSpec
from sparse_probing.errors import InputError
from sparse_probing.models.complete import check_gguf_complete, missing_shards, why_incomplete
from sparse_probing.models.loading import load_tokenizer, preflight, resolve_model
from sparse_probing.models.resolved import converted_folder
from tests.tiny import random_model, save_tiny

SHARD = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in three shards, with files of a tokenizer."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    random_model("llama").save_pretrained(folder, max_shard_size="20KB")
    assert (folder / SHARD).is_file()
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json"):
        (folder / name).write_text('{"version": "1.0", "model": {"vocab": {"a": 0, "b": 1}}}', encoding="utf-8")
    (folder / "tokenizer.model").write_bytes(b"pieces")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


def cut(name: str, keep: float) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, int((folder / name).stat().st_size * keep))


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def grow(folder: Path) -> None:
    with (folder / SHARD).open("ab") as stream:
        stream.write(b"\0")


def zeros(folder: Path) -> None:
    """As a program leaves a file that it has reserved room for."""
    size_bytes = (folder / SHARD).stat().st_size
    (folder / SHARD).write_bytes(bytes(size_bytes))


def other_shard(folder: Path) -> None:
    shutil.copy(folder / "model-00001-of-00003.safetensors", folder / SHARD)


def rewrite_header(change: Callable[[dict], None]) -> Callable[[Path], None]:  # type: ignore[type-arg]
    def rewrite(folder: Path) -> None:
        data = (folder / SHARD).read_bytes()
        size_bytes = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size_bytes])
        change(header)
        text = json.dumps(header).encode()
        (folder / SHARD).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size_bytes :])

    return rewrite


def wrong_shape(header: dict) -> None:  # type: ignore[type-arg]
    next(tensor for name, tensor in header.items() if name != "__metadata__")["shape"] = [3, 3]


def no_offsets(header: dict) -> None:  # type: ignore[type-arg]
    del next(tensor for name, tensor in header.items() if name != "__metadata__")["data_offsets"]


BREAKS = {
    "one shard missing": (remove(SHARD), f"1 of 3 shards are missing ({SHARD})"),
    "shard cut in its data": (cut(SHARD, 0.9), f"{SHARD} has "),
    "shard cut in its header": (cut(SHARD, 0.01), f"{SHARD} (", "has no whole safetensors header"),
    "shard empty": (cut(SHARD, 0), f"{SHARD} (0 bytes) has no whole safetensors header"),
    "shard reserved": (zeros, f"{SHARD} (", "has no whole safetensors header"),
    "shard too long": (grow, f"{SHARD} has "),
    "shard of other tensors": (other_shard, "tensors are not in their shards", f"is not in {SHARD}"),
    "shape and bytes apart": (rewrite_header(wrong_shape), "which do not fit its shape"),
    "tensor without offsets": (rewrite_header(no_offsets), f"the header of {SHARD} does not describe its tensor"),
    "index missing": (remove(INDEX), f"there is no model.safetensors or {INDEX}"),
    "index cut": (cut(INDEX, 0.5), f"{INDEX} ("),
    "index empty": (cut(INDEX, 0), f"{INDEX} is empty"),
    "index without shards": (lambda folder: (folder / INDEX).write_text("{}"), f"{INDEX} names no shards"),
    "all shards missing": (
        lambda folder: [path.unlink() for path in folder.glob("*.safetensors")],
        "3 of 3 shards are missing",
    ),
    "configuration cut": (cut("config.json", 0.5), "config.json ("),
    "configuration empty": (cut("config.json", 0), "config.json is empty"),
    "configuration a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json holds no JSON object"),
    "tokenizer cut": (cut("tokenizer.json", 0.5), "tokenizer.json ("),
    "tokenizer empty": (cut("tokenizer.json", 0), "tokenizer.json is empty"),
    "settings of the tokenizer cut": (cut("tokenizer_config.json", 0.5), "tokenizer_config.json ("),
    "vocabulary cut": (cut("vocab.json", 0.5), "vocab.json ("),
    "pieces empty": (cut("tokenizer.model", 0), "tokenizer.model is empty"),
}  # fmt: skip


def test_a_whole_model_is_whole(folder: Path, tmp_path: Path) -> None:
    assert why_incomplete(folder) is None
    preflight(ModelSpec(id=str(folder)), models_dir=tmp_path)
    random_model("gpt_neox").to(torch.bfloat16).save_pretrained(tmp_path / "one")
    assert why_incomplete(tmp_path / "one") is None


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_broken_or_missing_is_one_line(folder: Path, tmp_path: Path, name: str) -> None:
    change, *expected = BREAKS[name]
    change(folder)
    for check in (preflight, resolve_model):
        with pytest.raises(InputError) as caught:
            check(ModelSpec(id=str(folder)), models_dir=tmp_path / "models")
        said = str(caught.value)
        assert said.startswith(f"The model in {folder} is not complete: "), said
        assert said.endswith("Wait until the checkpoint is written, or copy it again."), said
        assert "\n" not in said
        for part in expected:
            assert part in said


def test_headers_alone_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of hundreds of gigabytes is looked at in a moment."""
    read_bytes = []
    opened = Path.open

    def watched(path: Path, *args: object, **kwargs: object) -> object:
        stream = opened(path, *args, **kwargs)  # type: ignore[arg-type]
        if path.suffix == ".safetensors":
            read = stream.read
            proxy = type("Proxy", (), {"__enter__": lambda self: self, "__exit__": lambda *_: stream.close()})()
            proxy.read = lambda n: read_bytes.append(n) or read(n)
            return proxy
        return stream

    monkeypatch.setattr(Path, "open", watched)
    assert why_incomplete(folder) is None
    size_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert 0 < sum(read_bytes) < size_bytes / 5


def test_a_file_that_breaks_after_the_check_is_bad_input_too(tmp_path: Path) -> None:
    """What reads tokenizer.json raises bare exceptions, which would be tried again."""
    resolved = save_tiny(tmp_path / "model", "llama")
    (resolved.folder / "tokenizer.json").write_text('{"version": "1.0"', encoding="utf-8")
    with pytest.raises(InputError, match="no tokenizer that can be loaded"):
        load_tokenizer(resolved)


def test_shards_are_counted_by_their_names() -> None:
    assert missing_shards(["model-00001-of-00002.safetensors", "config.json"]) == ["model-00002-of-00002.safetensors"]
    assert missing_shards(["model-00001-of-00001.safetensors", "other.safetensors"]) == []


def test_a_hub_repository_without_a_shard_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    import huggingface_hub
    from huggingface_hub.hf_api import RepoSibling

    files = ["config.json", "tokenizer.json", INDEX, "model-00001-of-00002.safetensors"]
    info = SimpleNamespace(siblings=[RepoSibling(rfilename=name) for name in files])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: info)
    with pytest.raises(InputError, match=r"not complete: 1 shards are missing \(model-00002-of-00002"):
        preflight(ModelSpec(id="somebody/some-model"), models_dir=tmp_path)
    info.siblings.append(RepoSibling(rfilename="model-00002-of-00002.safetensors"))
    preflight(ModelSpec(id="somebody/some-model"), models_dir=tmp_path)


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    gguf = pytest.importorskip("gguf")
    import numpy as np

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_token_list(["a", "b", "longer"])
    writer.add_token_scores([0.0, 1.0, 2.0])
    writer.add_tensor("token_embd.weight", np.ones((3, 32), np.float32))
    packed = gguf.quants.quantize(np.ones((4, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.ffn_up.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_that_is_cut_anywhere_is_refused(gguf_file: Path, tmp_path: Path) -> None:
    check_gguf_complete(gguf_file)
    data = gguf_file.read_bytes()
    path = tmp_path / "cut.gguf"
    packed_bytes = 4 * 64 // 32 * 34
    padding = -packed_bytes % 32
    for length in range(0, len(data) - padding, 7):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"GGUF file .*cut\.gguf is not complete: .*copy it again") as caught:
            preflight(ModelSpec(id=str(path)), models_dir=tmp_path)
        assert "\n" not in str(caught.value)
    path.write_bytes(data[: len(data) - padding])
    check_gguf_complete(path)
    path.write_bytes(data[: len(data) - padding - 1])
    with pytest.raises(InputError, match=r"has [\d,]+ bytes; its header describes"):
        resolve_model(ModelSpec(id=str(path)), models_dir=tmp_path)


def test_a_gguf_file_of_the_longest_name_can_be_converted(gguf_file: Path, tmp_path: Path) -> None:
    long = shutil.copy(gguf_file, tmp_path / f"{'n' * 250}.gguf")
    converted_folder(long, tmp_path).mkdir()
    assert converted_folder(gguf_file, tmp_path).name.startswith("tiny-")
