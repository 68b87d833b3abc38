"""Named hooks of tiny random models of over a hundred architectures, against what can be known without them.

The oracles: transformers' own `hidden_states`; the path of the projection, written by hand from each architecture's code;
the model's own activation function; and ablation (a projection of zeros adds nothing to the residual stream).
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn
from transformers.activations import ACT2CLS, ACT2FN

from sparse_probing.activations import Selection, extract
from sparse_probing.activations.capture import BatchRule
from sparse_probing.activations.self_check import check_model
from sparse_probing.errors import InputError
from sparse_probing.models.hooks import HOOK_NAMES, HookPoint, find_points, layers_of, select_input, select_tensor
from sparse_probing.models.limits import check_reads_text, max_positions
from sparse_probing.models.structure import sides
from tests.architectures import (
    DENSE_LAYERS,
    MIXTURES,
    N_LAYERS,
    N_NEURONS,
    PROJECTION,
    REFUSED,
    STATE_SPACE,
    VOCABULARY,
    WIDTH,
    tiny_architecture,
    tiny_of_two_senses,
)

TOKENS = torch.arange(3, 15)[None]
EVERY = (*PROJECTION, *DENSE_LAYERS, *MIXTURES, *STATE_SPACE)
# A block of these adds something else than the outputs of its attention and its MLP: scaled streams, or an additive term
# of its own. The additions have no hooks; everything else has.
NO_ADDITIONS = {"doge", "falcon_h1", "fnet", "gpt_neox_japanese"}
# These normalise each sum: an addition is no difference of streams.
NORMALISED_SUMS = {
    name for name, path in PROJECTION.items() if path == "encoder.layer.{}.output.dense" and name != "esm"
} - {"megatron-bert", "roberta-prelayernorm", "xlm-roberta-xl"} | {
    "distilbert",
    "gte",
    "jina_embeddings_v3",
    "nomic_bert",
    "openai-gpt",
}

# By a factor of the stream's width, or half of what the configuration names.
HAVE_THEIR_OWN_WIDTH = {"bloom", "ctrl", "gpt_neox_japanese", "moshi", "mpt", "openai-gpt"}


@functools.cache
def model_of(architecture: str) -> nn.Module:
    return tiny_architecture(architecture)


def read(model: nn.Module, points: list[HookPoint], tokens: torch.Tensor = TOKENS) -> list[torch.Tensor]:
    """By point, (n_positions, width) of one text alone: an ordinary forward hook, a whole pass, no batch."""
    kept: dict[int, torch.Tensor] = {}
    handles = []
    for i, point in enumerate(points):
        if point.side == "output":
            handles.append(
                point.module.register_forward_hook(
                    lambda m, args, out, i=i, p=point: kept.update({i: p.read(select_tensor(out)).clone()})
                )
            )
        else:
            handles.append(
                point.module.register_forward_pre_hook(
                    lambda m, args, kwargs, i=i, p=point: kept.update({i: p.read(select_input(args, kwargs)).clone()}),
                    with_kwargs=True,
                )
            )
    with torch.no_grad():
        model(input_ids=tokens)
    for handle in handles:
        handle.remove()
    return [kept[i].reshape(tokens.shape[1], -1) for i in range(len(points))]


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-5 of the largest value."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_the_sweep_is_wide() -> None:
    assert len(EVERY) >= 100
    assert len(set(EVERY)) == len(EVERY)


@pytest.mark.parametrize("architecture", EVERY)
def test_the_residual_stream_is_what_transformers_reports(architecture: str) -> None:
    model = model_of(architecture)
    before, after = find_points(model, "hook_resid_pre"), find_points(model, "hook_resid_post")
    with torch.no_grad():
        reported = model(input_ids=TOKENS, output_hidden_states=True).hidden_states
    if architecture in STATE_SPACE:  # they do not report the embeddings
        reported = (read(model, before[:1])[0][None], *reported)
    assert len(before) == len(after) == N_LAYERS
    for layer, values in enumerate(read(model, before)):
        assert_equal(values, reported[layer][0])
    # The last one that is reported went through the final norm.
    for layer, values in enumerate(read(model, after)[:-1]):
        assert_equal(values, reported[layer + 1][0])


@pytest.mark.parametrize("architecture", PROJECTION)
def test_neurons_are_the_input_of_the_projection_back(architecture: str) -> None:
    model = model_of(architecture)
    modules = dict(model.named_modules())
    points = find_points(model, "mlp.hook_post")
    assert [point.path for point in points] == [PROJECTION[architecture].format(layer) for layer in range(N_LAYERS)]
    assert all(point.module is modules[point.path] and point.side == "input" for point in points)
    into, out = sides(points[0].module) or (0, 0)
    assert points[0].width == into
    assert out == WIDTH
    assert into == N_NEURONS or architecture in HAVE_THEIR_OWN_WIDTH


@pytest.mark.parametrize("architecture", [name for name in PROJECTION if name != "bitnet"])
def test_the_pre_activation_becomes_the_neurons(architecture: str) -> None:
    """post = act(pre), or act(pre) times another projection of the block. (BitNet normalises that product.)"""
    model = model_of(architecture)
    post, pre = find_points(model, "mlp.hook_post", (1,))[0], find_points(model, "mlp.hook_pre", (1,))[0]
    block = find_points(model, "hook_resid_post", (1,))[0].module
    others = [HookPoint("", 1, module, "output", 0, "") for module in block.modules() if sides(module)]
    wanted, before, *rest = read(model, [post, pre, *others])
    halves = [half for values in rest for half in values.chunk(2, dim=-1)]
    ups = [torch.ones_like(wanted), *(values for values in (*rest, *halves) if values.shape == wanted.shape)]
    acts = [module for module in block.modules() if not sides(module) and not list(module.children())]
    functions = [*acts, *(ACT2FN[name] for name in ACT2CLS if name not in ("xielu", "prelu"))]
    errors = []
    for act in functions:
        try:
            made = act(before)
        except Exception:  # some other module of the block: a norm of another width, a rotary table
            continue
        if isinstance(made, torch.Tensor) and made.shape == wanted.shape:
            errors += [float((made * up - wanted).abs().max() / wanted.abs().max()) for up in ups]
    assert min(errors) < 1e-5


@pytest.mark.parametrize(
    "architecture", [name for name in (*PROJECTION, *DENSE_LAYERS) if name not in NO_ADDITIONS | NORMALISED_SUMS]
)
def test_additions_are_what_the_block_adds(architecture: str) -> None:
    """Zeros in the projection take mlp_out away from the stream; what is left of the difference is attention's."""
    model = model_of(architecture)
    layer = 0 if architecture in DENSE_LAYERS else 1
    projection = find_points(model, "mlp.hook_post", (layer,))[0].module
    stream = [find_points(model, hook, (layer,))[0] for hook in ("hook_resid_pre", "hook_resid_post")]
    mlp_out = find_points(model, "hook_mlp_out", (layer,))[0]
    before, after, of_mlp = read(model, [*stream, mlp_out])
    kept = [parameter.clone() for parameter in projection.parameters()]
    norms = [module for module in mlp_out.module.modules() if module is not projection and sides(module) is None]
    try:
        for parameter in projection.parameters():
            parameter.zero_()
        without = read(model, stream)[1]
        # A norm with a bias gives its bias for zeros.
        rest = read(model, [mlp_out])[0] if norms else torch.zeros_like(of_mlp)
    finally:
        for parameter, values in zip(projection.parameters(), kept, strict=True):
            parameter.copy_(values)
    scale = after.abs().max()
    assert float((after - without - (of_mlp - rest)).abs().max() / scale) < 1e-5
    if layer in layers_of(model, "hook_attn_out"):
        of_attention = read(model, find_points(model, "hook_attn_out", (layer,)))[0]
        assert float((after - before - of_mlp - of_attention).abs().max() / scale) < 1e-5


@pytest.mark.parametrize("architecture", EVERY)
def test_rows_are_those_of_each_text_alone(architecture: str) -> None:
    """All hooks of texts of different lengths in batches, against each text by itself."""
    model = model_of(architecture)
    rng = np.random.default_rng(0)
    sequences = [rng.integers(3, VOCABULARY, length) for length in (5, 12, 9, 12)]
    start = np.concatenate([np.arange(len(sequence)) for sequence in sequences])
    owner = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
    hooks = [hook for hook in HOOK_NAMES if layers_of(model, hook)]
    if architecture in NO_ADDITIONS:
        hooks = [hook for hook in hooks if hook not in ("hook_mlp_out", "hook_attn_out")]
    assert {"hook_resid_pre", "hook_resid_post"} <= set(hooks)
    found: dict[str, torch.Tensor] = {}
    for batch in extract(model, sequences, Selection("none", owner, start, start + 1), hooks=hooks, batch_tokens=40):
        for hook, values in batch.values.items():
            whole = found.setdefault(hook, torch.full((len(values), len(owner), values.shape[-1]), torch.nan))
            whole[:, torch.from_numpy(batch.rows)] = values
    points = [point for hook in hooks for point in find_points(model, hook)]
    alone = [read(model, points, torch.from_numpy(sequence)[None]) for sequence in sequences]
    expected = [torch.cat([values[i] for values in alone]) for i in range(len(points))]
    for values, wanted in zip((layer for hook in hooks for layer in found[hook]), expected, strict=True):
        assert_equal(values, wanted)


def test_the_parallel_plan_names_the_same_projections() -> None:
    """Transformers' plan for several devices marks the projections back to the stream ``rowwise``: a second witness."""
    plans = {name: getattr(model_of(name).config, "base_model_tp_plan", None) for name in PROJECTION}
    marked = {
        name: {path for path, kind in plan.items() if kind.startswith("rowwise") and "attn" not in path}
        for name, plan in plans.items()
        if plan
    }
    assert len(marked) >= 20
    for name, rowwise in marked.items():
        points = find_points(model_of(name), "mlp.hook_post")
        assert {point.path.replace(f".{point.layer}.", ".*.") for point in points} <= rowwise, name


@pytest.mark.parametrize("architecture", sorted(NO_ADDITIONS))
def test_additions_of_another_kind_are_refused(architecture: str) -> None:
    model = model_of(architecture)
    with pytest.raises(InputError, match=r"is not what block \d adds to the residual stream"):
        check_model(model, {"hook_mlp_out": find_points(model, "hook_mlp_out")}, longest=12)


@pytest.mark.parametrize("architecture", [*DENSE_LAYERS, *MIXTURES])
def test_mixtures_of_experts_have_neurons_in_dense_layers_alone(architecture: str) -> None:
    model = model_of(architecture)
    assert layers_of(model, "post") == DENSE_LAYERS.get(architecture, ())
    with pytest.raises(InputError, match="mixture of experts") as caught:
        find_points(model, "post", (1,))
    assert "\n" not in str(caught.value)
    assert check_model(model, {"hook_mlp_out": find_points(model, "hook_mlp_out")}, longest=12)


@pytest.mark.parametrize("architecture", STATE_SPACE)
def test_state_space_blocks_say_why_they_have_no_neurons(architecture: str) -> None:
    with pytest.raises(InputError, match=r"no MLP \(mixer is a state-space block"):
        find_points(model_of(architecture), "post")


@pytest.mark.parametrize("architecture", REFUSED)
def test_what_named_hooks_do_not_fit_is_refused_in_one_line(architecture: str) -> None:
    model = tiny_architecture(architecture)
    with pytest.raises(InputError, match=REFUSED[architecture]) as caught:
        _use(model)
    assert "\n" not in str(caught.value)


def _use(model: nn.Module) -> None:
    check_reads_text(model)
    find_points(model, "post")


@pytest.mark.parametrize("architecture", ["gemma3", "llava"])
def test_the_decoder_of_a_vision_language_model_is_taken_as_such(architecture: str) -> None:
    """Its own blocks, positions and masks count, not those of the part that reads pixels."""
    model = tiny_of_two_senses(architecture)
    check_reads_text(model)
    points = find_points(model, "post")
    assert [point.path for point in points] == [
        f"language_model.layers.{layer}.mlp.down_proj" for layer in range(N_LAYERS)
    ]
    assert max_positions(model) is None
    assert check_model(model, {"mlp.hook_post": points}, longest=100) == BatchRule(needs_mask=False)
