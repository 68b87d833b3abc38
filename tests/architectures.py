"""Tiny random models of the architectures that transformers holds, with what is expected of them, written by hand."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING

VOCABULARY, WIDTH, N_NEURONS, N_LAYERS = 64, 16, 48, 3
# Each configuration takes those of these that it knows.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size",), VOCABULARY),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "word_embed_proj_dim"), WIDTH),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_inner", "hidden_dim", "dff"), N_NEURONS),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), N_LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_FEW_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "head_dim": 4,
    "num_key_value_heads": 2,
}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
_OWN: dict[str, dict[str, Any]] = {
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4, "n_head": 4},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "window_size": 4},
    "deepseek_v2": {**_FEW_EXPERTS, **_LATENT, "first_k_dense_replace": 1},
    "deepseek_v3": {**_FEW_EXPERTS, **_LATENT, "first_k_dense_replace": 1},
    "jamba": {
        **_FEW_EXPERTS,
        "use_mamba_kernels": False,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
    "minicpm3": _LATENT,
    "qwen3_next": {**_FEW_EXPERTS, **_LINEAR},
    "qwen3_5_text": _LINEAR,
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False},
    "granite": {"residual_multiplier": 0.22},
    "granite_swa": {"residual_multiplier": 0.22},
    "diffllama": {"num_key_value_heads": 2},
    "glm4_moe": {**_FEW_EXPERTS, "first_k_dense_replace": 1},
    "afmoe": {**_FEW_EXPERTS, "num_dense_layers": 1},
    "mamba": {"state_size": 4},
    "longformer": {"attention_window": 4},
    "recurrent_gemma": {"attention_window_size": 8, "lru_width": 16, "intermediate_size": 96},
    "cpmant": {"dim_ff": N_NEURONS, "dim_head": 8, "prompt_length": 4},
    "falcon_h1": {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_chunk_size": 8},
    "falcon": {"ffn_hidden_size": N_NEURONS},
    "falcon-new": {"new_decoder_architecture": True, "num_kv_heads": 1, "ffn_hidden_size": N_NEURONS},
    "falcon-sequential": {"parallel_attn": False, "ffn_hidden_size": N_NEURONS},
    "gpt_neox-sequential": {"use_parallel_residual": False},
}
_VARIANTS = {"falcon-new": "falcon", "falcon-sequential": "falcon", "gpt_neox-sequential": "gpt_neox"}

# Path of the projection that reads the neurons, as each architecture's code has it.
_PROJECTIONS = {
    "layers.{}.mlp.down_proj": (
        "apertus arcee bitnet cohere cohere2 cwm diffllama doge ernie4_5 eurobert exaone4 gemma gemma2 gemma3_text glm glm4 "
        "granite granite_swa gte helium hunyuan_v1_dense hyperclovax jais2 llama minicpm3 ministral ministral3 mistral "
        "nemotron nomic_bert olmo olmo2 olmo3 olmo_hybrid phi3 qwen2 qwen3 qwen3_5_text seed_oss smollm3 stablelm"
    ),
    "encoder.layer.{}.output.dense": (
        "bert bert-generation big_bird camembert convbert data2vec-text deberta deberta-v2 electra ernie esm fnet layoutlm "
        "megatron-bert mpnet mra nystromformer rembert roberta roberta-prelayernorm roformer tapas xlm-roberta "
        "xlm-roberta-xl yoso"
    ),
    "h.{}.mlp.c_proj": "gpt2 gpt_bigcode gpt_neo openai-gpt",
    "h.{}.mlp.fc_out": "codegen gptj",
    "h.{}.mlp.dense_4h_to_h": "bloom falcon falcon-new falcon-sequential",
    "layers.{}.mlp.dense_4h_to_h": "gpt_neox gpt_neox-sequential gpt_neox_japanese persimmon",
    "layers.{}.mlp.fc2": "jina_embeddings_v3 moshi nanochat phi",
    "layers.{}.mlp.c_proj": "starcoder2",
    "layers.{}.mlp.Wo": "modernbert modernbert-decoder",
    "layers.{}.fc2": "biogpt xglm",
    "decoder.layers.{}.fc2": "opt",
    "layers.{}.feed_forward.w2": "lfm2 lfm3",
    "layers.{}.feed_forward.down_proj": "falcon_h1",
    "layers.{}.mlp_block.down_proj": "recurrent_gemma",
    "transformer.layer.{}.ffn.lin2": "distilbert",
    "blocks.{}.ffn.down_proj": "mpt",
    "h.{}.ffn.2": "ctrl",
}
PROJECTION = {name: path for path, names in _PROJECTIONS.items() for name in names.split()}
# Layers of a mixture of experts have no neurons; these have dense layers, too.
DENSE_LAYERS = {"afmoe": (0,), "deepseek_v2": (0,), "deepseek_v3": (0,), "glm4_moe": (0,), "jamba": (0, 2)}
_MIXTURES = """
    aria_text cohere2_moe flex_olmo gpt_oss granitemoe granitemoeshared llama4_text minimax_m2 mixtral olmoe phimoe qwen2_moe
    qwen3_moe qwen3_next
"""
MIXTURES = tuple(_MIXTURES.split())
STATE_SPACE = ("falcon_mamba", "mamba")
# What is said of models that named hooks do not fit.
REFUSED = {
    "albert": "has 1 block .* for 3 layers",
    "bart": "encoder-decoder",
    "bigbird_pegasus": "encoder-decoder",
    "flaubert": "2 stacks of blocks",
    "marian": "encoder-decoder",
    "mobilebert": "several feed-forward networks",
    "prophetnet": "encoder-decoder",
    "squeezebert": "no blocks",
    "t5": "encoder-decoder",
    "vit": "takes pixel_values, not token ids",
    "xlm": "2 stacks of blocks",
}


def tiny_config(architecture: str, **own: Any) -> Any:
    """A configuration of three layers of 48 neurons; `own` has the last word."""
    kind = CONFIG_MAPPING[_VARIANTS.get(architecture, architecture)]
    wanted = {**_SIZES, **_FEW_EXPERTS, **_OWN.get(architecture, {}), **own}
    known = kind().to_dict()
    aliases = getattr(kind, "attribute_map", {})
    values = {name: value for name, value in wanted.items() if name in known or name in aliases}
    return kind(**{name: value for name, value in values.items() if aliases.get(name) not in values})


def tiny_architecture(architecture: str, **own: Any) -> nn.Module:
    """A random base model in float32: biases and norms are random, too, so that leaving one out shows."""
    return _random(tiny_config(architecture, **own))


def tiny_of_two_senses(architecture: str) -> nn.Module:
    """A random model that reads pixels and text; its part for text has the sizes of `tiny_architecture`."""
    kind = CONFIG_MAPPING[architecture]
    default = kind()
    parts = {
        "text_config": {**_SIZES, "hidden_size": WIDTH},
        "vision_config": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "image_size": 28},
    }
    made = {}
    for name, values in parts.items():
        part = type(getattr(default, name))
        known = part().to_dict()
        wanted = {**values, "num_attention_heads": 2, "patch_size": 14}
        made[name] = part(**{key: value for key, value in wanted.items() if key in known})
    return _random(kind(**made))


def _random(config: Any) -> nn.Module:
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.2, generator=generator)
        else:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model
