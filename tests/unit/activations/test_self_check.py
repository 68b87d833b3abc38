"""Faults of real architectures that would give wrong numbers: each is found on a few tokens, avoided or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from sparse_probing.activations import Selection, extract
from sparse_probing.activations.capture import BatchRule
from sparse_probing.activations.self_check import check_model
from sparse_probing.errors import ArtifactError, InputError
from sparse_probing.models.hooks import find_points
from tests.architectures import VOCABULARY, tiny_architecture, tiny_config


def rule_of(model: nn.Module, hook: str = "hook_resid_post", longest: int = 16) -> BatchRule:
    return check_model(model, {hook: find_points(model, hook)}, longest=longest)


def error_of(model: nn.Module, lengths: tuple[int, ...], hook: str = "hook_resid_post") -> float:
    """Largest relative error of a row of a batched extraction against the same text alone."""
    rng = np.random.default_rng(0)
    sequences = [rng.integers(3, VOCABULARY, length) for length in lengths]
    start = np.concatenate([np.arange(length) for length in lengths])
    owner = np.repeat(np.arange(len(lengths)), lengths)
    selection = Selection("none", owner, start, start + 1)
    (batches,) = ([*extract(model, sequences, selection, hooks=[hook], batch_tokens=4096)],)
    values = torch.cat([batch.values[hook] for batch in batches], dim=1)
    rows = np.concatenate([batch.rows for batch in batches])
    found = values[:, np.argsort(rows)].float()
    alone = []
    for i, sequence in enumerate(sequences):
        one = Selection("none", np.zeros(lengths[i], np.int64), np.arange(lengths[i]), np.arange(lengths[i]) + 1)
        alone.append(next(extract(model, [sequence], one, hooks=[hook])).values[hook].float())
    expected = torch.cat(alone, dim=1)
    norm = torch.linalg.vector_norm
    return float((norm(found - expected, dim=-1) / norm(expected, dim=-1)).max())


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2", "mamba", "qwen3"])
def test_causal_models_need_no_mask(architecture: str) -> None:
    assert rule_of(tiny_architecture(architecture)) == BatchRule(needs_mask=False)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert", "deberta-v2", "esm"])
def test_encoders_need_one(architecture: str) -> None:
    rule = rule_of(tiny_architecture(architecture))
    assert (rule.needs_mask, rule.equal_lengths) == (True, False)


@pytest.mark.parametrize("architecture", ["fnet", "convbert", "nystromformer"])
def test_where_padding_passes_a_mask_texts_of_one_length_share_a_batch(architecture: str) -> None:
    """FNet mixes by Fourier transform and ConvBERT by convolution; rows were off by as much as their own size."""
    model = tiny_architecture(architecture)
    assert rule_of(model).equal_lengths
    assert error_of(model, (5, 9, 5, 12)) < 1e-5


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
def test_a_decoder_that_sees_both_ways_is_given_a_mask(architecture: str) -> None:
    """``is_causal = false`` in the configuration of a decoder: 574 of 644 rows were off by 0.4 to 1.2."""
    model = tiny_architecture(architecture, is_causal=False)
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    assert rule_of(model).needs_mask
    assert error_of(model, (5, 9, 5, 12)) < 1e-5


def test_scaled_additions_are_what_the_block_adds() -> None:
    """Granite multiplies them by residual_multiplier; what was stored was not what the block adds."""
    model = tiny_architecture("granite", residual_multiplier=0.22)
    points = find_points(model, "hook_mlp_out")
    assert {point.scale for point in points} == {0.22}
    assert check_model(model, {"hook_mlp_out": points}, longest=12) == BatchRule(needs_mask=False)
    # The same modules without the factor.
    plain = find_points(tiny_architecture("llama"), "hook_mlp_out")
    assert {point.scale for point in plain} == {1.0}
    for layer in model.layers:
        layer.residual_multiplier = 0.5
    with pytest.raises(InputError, match="hook_mlp_out of GraniteModel is not what block 0 adds"):
        check_model(model, {"hook_mlp_out": points}, longest=12)


def test_positions_scaled_by_the_longest_text_of_a_batch() -> None:
    """Phi-3's longrope takes other frequencies for all texts of a batch once one is long: rows were 0.9 off."""
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 16,
        "rope_theta": 10000.0,
        "factor": 8.0,
    }
    model = tiny_architecture("phi3", rope_parameters=rope, original_max_position_embeddings=16)
    assert not rule_of(model, longest=16).equal_lengths
    assert rule_of(model, longest=17).equal_lengths
    assert error_of(model, (6, 30, 6, 12)) < 1e-5


def test_positions_that_depend_on_what_was_run_before_are_refused() -> None:
    """Llama's dynamic scaling remembers the longest text so far: rows were 0.26 off."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    model = tiny_architecture("llama", rope_parameters=rope, max_position_embeddings=16)
    assert rule_of(model, longest=16) == BatchRule(needs_mask=False)
    with pytest.raises(InputError, match=r"Sequences of 17 tokens.*beyond 16 depend.*context_length to 16 or less"):
        rule_of(model, longest=17)


def test_a_module_that_runs_twice_is_refused() -> None:
    """ALBERT's groups of layers are run several times in a pass: calls were counted as layers."""
    model = tiny_architecture("albert", num_hidden_layers=4, num_hidden_groups=2)
    path = "encoder.albert_layer_groups.{layer}.albert_layers.0.ffn_output.input"
    with pytest.raises(ArtifactError, match="ran twice in a forward pass"):
        rule_of(model, path)


def test_other_axes_are_refused() -> None:
    """XLNet works on (position, sequence, width): rows of one text were taken for those of another."""
    model = transformers.AutoModel.from_config(tiny_config("xlnet")).eval()
    with pytest.raises(ArtifactError, match=r"shape \(7, 1, 16\) for 1 sequences of 7 tokens; expected 16 values"):
        rule_of(model)


@pytest.mark.parametrize(("n_chosen", "said"), [(2, "gave a tensor of shape"), (1, "depend on the other texts")])
def test_rows_in_the_order_of_experts_are_refused(n_chosen: int, said: str) -> None:
    """JetMoE sorts tokens by expert: with one expert a token the axes are right, and the rows are those of other tokens."""
    model = tiny_architecture("jetmoe", num_local_experts=4, num_experts_per_tok=n_chosen)
    with pytest.raises((ArtifactError, InputError), match=said):
        rule_of(model, "layers.{layer}.mlp.input_linear.output")


def test_wide_results_of_half_precision_models_are_kept_wide() -> None:
    """Mamba keeps its residual stream in float32 from the first block on, while its weights are bfloat16."""
    model = tiny_architecture("mamba", residual_in_fp32=True).to(torch.bfloat16)
    one = Selection("none", np.zeros(6, np.int64), np.arange(6), np.arange(6) + 1)
    batch = next(extract(model, [np.arange(3, 9)], one, hooks=["hook_resid_pre", "hook_resid_post"]))
    assert batch.values["hook_resid_post"].dtype == torch.float32
    torch.testing.assert_close(batch.values["hook_resid_pre"][1:], batch.values["hook_resid_post"][:-1])


class _Noisy(nn.Module):
    """A model whose rows depend on how many texts are in a batch."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config
        self.get_input_embeddings = inner.get_input_embeddings

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, use_cache: bool = True
    ) -> Any:
        embedded = self.inner.get_input_embeddings()(input_ids) * len(input_ids)
        return self.inner(inputs_embeds=embedded, attention_mask=attention_mask)


def test_rows_that_depend_on_the_batch_are_refused() -> None:
    with pytest.raises(InputError, match="depend on the other texts in its batch, even at equal lengths"):
        rule_of(_Noisy(tiny_architecture("llama")), "inner.layers.{layer}.mlp.down_proj.input")
