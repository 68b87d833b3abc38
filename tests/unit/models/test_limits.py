"""What does not fit a model is refused in one line, before anything runs; what fits is let through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from sparse_probing.activations.columns import choose_columns
from sparse_probing.config import CollectionSpec, ExtractionSpec, ModelSpec
from sparse_probing.errors import InputError
from sparse_probing.models.fits import check_fits
from sparse_probing.models.hooks import find_points
from sparse_probing.models.limits import check_reads_text, check_tokens, max_positions, padding_id
from sparse_probing.models.loading import load_model, resolve_model
from sparse_probing.models.resolved import ResolvedModel
from tests.architectures import N_NEURONS, PROJECTION, STATE_SPACE, tiny_architecture, tiny_config


def tokenizer_of(n_ids: int, **special: str) -> Any:
    words = {f"w{i}": i for i in range(n_ids)}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), unk_token="w0", **special
    )


def saved(folder: Path, architecture: str, **own: Any) -> ResolvedModel:
    tiny_architecture(architecture, **own).save_pretrained(folder)
    return resolve_model(ModelSpec(id=str(folder), name="tiny"), models_dir=folder.parent / "models")


@pytest.mark.parametrize("architecture", [*PROJECTION, *STATE_SPACE])
def test_the_longest_sequence_runs_and_a_longer_one_does_not(architecture: str) -> None:
    """GPT-2, OPT, BERT and RoBERTa ended in an IndexError after the dataset was built; RoBERTa holds two tokens less."""
    model = tiny_architecture(architecture)
    limit = max_positions(model)
    tokens = torch.full((1, (limit or 160) + 1), 5)
    with torch.no_grad():
        if limit is None:
            model(input_ids=tokens)
            return
        model(input_ids=tokens[:, :limit])
        if architecture == "tapas":  # all later positions share the last one's embedding
            return
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            model(input_ids=tokens)


@pytest.mark.parametrize(
    ("architecture", "limit"), [("gpt2", 128), ("opt", 128), ("bert", 128), ("roberta", 126), ("llama", None)]
)
def test_positions_of_well_known_models(architecture: str, limit: int | None) -> None:
    own = {"pad_token_id": 1} if architecture == "roberta" else {}
    assert max_positions(tiny_architecture(architecture, **own)) == limit


def test_a_context_beyond_the_positions_is_refused(tmp_path: Path) -> None:
    resolved = saved(tmp_path / "bert", "bert")
    collection = CollectionSpec(collection="position", context_length=256)
    with pytest.raises(InputError, match=r"context_length 256 is more than the 128 positions of tiny.*to 128 or less"):
        check_fits(resolved, tokenizer_of(64), [collection])
    assert check_fits(resolved, tokenizer_of(64), [collection.model_copy(update={"context_length": 128})]) == []


def test_ids_without_an_embedding_are_refused() -> None:
    with pytest.raises(InputError, match="gives ids up to 69; the model has 64 embeddings"):
        check_tokens("tiny", 64, tokenizer_of(70))
    # A padding token that was added later never stands for text.
    tokenizer = tokenizer_of(64)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert len(tokenizer) == 65
    check_tokens("tiny", 64, tokenizer)


def test_a_padding_id_of_minus_one_is_as_good_as_none() -> None:
    assert padding_id(tiny_architecture("llama", pad_token_id=-1)) == 0
    assert padding_id(tiny_architecture("llama", pad_token_id=9)) == 9


def test_models_of_pixels_are_refused() -> None:
    with pytest.raises(InputError, match="takes pixel_values, not token ids"):
        check_reads_text(transformers.AutoModel.from_config(tiny_config("vit")))


def test_an_encoder_decoder_is_refused_as_such(tmp_path: Path) -> None:
    """The encoder of a T5 alone was said to lack 41 weights."""
    transformers.T5EncoderModel(tiny_config("t5")).save_pretrained(tmp_path / "t5")
    with pytest.raises(InputError, match="is an encoder-decoder; expected a decoder or an encoder alone"):
        resolve_model(ModelSpec(id=str(tmp_path / "t5"), name="tiny"), models_dir=tmp_path / "models")


def test_attention_that_a_model_does_not_have_is_refused(tmp_path: Path) -> None:
    """Gemma 2 has no attention 'sdpa': loading it failed after the dataset was built."""
    tiny_architecture("gemma2").save_pretrained(tmp_path / "gemma2")
    spec = ModelSpec(id=str(tmp_path / "gemma2"), name="tiny", attention="sdpa")
    with pytest.raises(InputError, match=r"has no attention 'sdpa'.*attention = \"eager\""):
        resolve_model(spec, models_dir=tmp_path / "models")
    eager = resolve_model(spec.model_copy(update={"attention": "eager"}), models_dir=tmp_path / "models")
    assert load_model(eager).config.model_type == "gemma2"


def test_layers_that_lack_a_module_are_named(tmp_path: Path) -> None:
    """Jamba's dense MLPs and its attention are in some layers alone: the layers were counted up to the first gap."""
    resolved = saved(tmp_path / "jamba", "jamba")
    lines = check_fits(resolved, tokenizer_of(64), extractions=[ExtractionSpec(hook="post")])
    assert lines == ["tiny: 2 of 3 layers have mlp.hook_post (0, 2); the others are left out."]
    with pytest.raises(
        InputError, match=r"Layers \[1\] of JambaModel have no mlp.hook_post \(.*\); layers 0, 2 have it"
    ):
        check_fits(resolved, tokenizer_of(64), extractions=[ExtractionSpec(hook="post", layers=(1, 2))])
    by_path = find_points(load_model(resolved), "layers.{layer}.self_attn.o_proj.input")
    assert [point.layer for point in by_path] == [1]


def test_the_width_of_a_module_without_weights_is_measured() -> None:
    """An activation function's output was taken to be as wide as the residual stream."""
    points = find_points(tiny_architecture("llama"), "layers.{layer}.mlp.act_fn.output")
    assert [point.width for point in points] == [N_NEURONS] * 3


def test_chosen_neurons_of_a_hook_that_is_nowhere_are_one_line() -> None:
    spec = ExtractionSpec(hook="post", neurons=((0, 1),))
    with pytest.raises(InputError, match=r"MixtralModel has no mlp\.hook_post in any layer"):
        choose_columns(tiny_architecture("mixtral"), spec)
