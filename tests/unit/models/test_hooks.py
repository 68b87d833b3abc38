"""Hook points of every architecture: where they are, how wide, and what is said when they are not there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparse_probing.errors import InputError
from sparse_probing.models.hooks import HOOK_NAMES, canonical_hook, count_neurons, find_points, layers_of
from tests.tiny import CONFIGS, random_model

WIDTHS = {"mlp.hook_post": 48, "mlp.hook_pre": 48}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_hook_of_every_architecture_has_its_width(architecture: str) -> None:
    model = random_model(architecture)
    assert layers_of(model, "post") == (0, 1, 2)
    assert count_neurons(model) == (3, 48)
    seen: dict[int, int] = {}

    def note(index: int, value: torch.Tensor) -> None:
        seen[index] = value.shape[-1]

    points = [point for hook in HOOK_NAMES for point in find_points(model, hook)]
    for index, point in enumerate(points):
        if point.side == "output":
            point.module.register_forward_hook(
                lambda m, a, out, i=index: note(i, out[0] if isinstance(out, tuple) else out)
            )
        else:
            point.module.register_forward_pre_hook(
                lambda m, args, kwargs, i=index: note(i, (args or list(kwargs.values()))[0]), with_kwargs=True
            )
    model(torch.arange(2, 12)[None])
    assert seen == {i: point.width for i, point in enumerate(points)}
    assert {point.width for point in points if point.hook in WIDTHS} == {48}
    assert {point.width for point in points if point.hook not in WIDTHS} == {16}


@pytest.mark.parametrize("architecture", ["gpt_neox", "gpt2", "llama", "gemma2", "opt", "phi"])
def test_stream_is_the_sum_of_what_blocks_add(architecture: str) -> None:
    """resid_post = resid_pre + attn_out + mlp_out: so the four hooks are what their names say."""
    model = random_model(architecture)
    found: dict[str, torch.Tensor] = {}
    for hook in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post"):
        point = find_points(model, hook, (1,))[0]
        if point.side == "output":
            point.module.register_forward_hook(
                lambda m, a, out, h=hook: found.__setitem__(h, (out[0] if isinstance(out, tuple) else out).clone())
            )
        else:
            point.module.register_forward_pre_hook(
                lambda m, args, kwargs, h=hook: found.__setitem__(h, (args or list(kwargs.values()))[0].clone()),
                with_kwargs=True,
            )
    model(torch.arange(2, 12)[None])
    total = found["hook_resid_pre"] + found["hook_attn_out"] + found["hook_mlp_out"].view(1, 10, 16)
    torch.testing.assert_close(found["hook_resid_post"], total, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("post", "mlp.hook_post"),
        ("blocks.3.mlp.hook_post", "mlp.hook_post"),
        ("resid_pre", "hook_resid_pre"),
        ("blocks.{layer}.hook_resid_post", "hook_resid_post"),
        ("layers.{layer}.mlp.act_fn.output", "layers.{layer}.mlp.act_fn.output"),
    ],
)
def test_customary_names(name: str, expected: str) -> None:
    assert canonical_hook(name) == expected


def test_unknown_hook_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"mlp\.hook_post.*hook_resid_post"):
        canonical_hook("mlp.neurons")


def test_missing_layer_says_how_many_there_are() -> None:
    with pytest.raises(InputError, match=r"\[7\] requested; LlamaModel has 3 \(0–2\)"):
        find_points(random_model("llama"), "post", (1, 7))


class _Stranger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.ModuleList(nn.ModuleDict({"wide": nn.Linear(4, 9), "narrow": nn.Linear(9, 4)}) for _ in "ab")


def test_unknown_architecture_lists_what_was_found_and_takes_a_path() -> None:
    model = _Stranger()
    with pytest.raises(InputError, match=r"trunk\.\{layer\}\.narrow"):
        find_points(model, "mlp.hook_post")
    points = find_points(model, "trunk.{layer}.narrow.input")
    assert [(point.layer, point.width, point.side) for point in points] == [(0, 9, "input"), (1, 9, "input")]
    with pytest.raises(InputError, match=r"trunk\.\{layer\}\.wide"):
        find_points(model, "trunk.{layer}.middle.input")
