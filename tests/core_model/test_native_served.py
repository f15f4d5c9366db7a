"""Which layers are compiled, and which take operations: changed, watched, of other states, under other defaults."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from compiled import both, gradients, needs_compiler, training_model
from reference import random_tokens
from torch import nn
from torch.nn.modules import module as module_hooks
from torch.utils.flop_counter import FlopCounterMode

from core_model import V3ForCausalLM
from core_model.loss import cross_entropy_sum
from core_model.moe import RankCap
from core_model.native import decoder as native_decoder

pytestmark = [needs_compiler, pytest.mark.usefixtures("wherever_it_compiles")]


def served(model: V3ForCausalLM, layer: int = 1, length: int = 20, **inputs) -> bool:
    tokens = random_tokens(2, length, vocabulary=48)
    context = model.model.attention_context((2, length), None, None, None)
    return native_decoder.served(model.model.layers[layer], model.model.embed(tokens), context) is not None


def test_whom_operations_serve():
    assert served(training_model())
    assert not served(training_model(hidden_size=40))
    assert not served(training_model().bfloat16())
    assert not served(training_model(), length=0)
    fp32 = training_model(torch.float32)
    assert served(fp32)
    with torch.autocast("cpu", torch.bfloat16):  # asks for other products
        assert not served(fp32)
    assert not served(training_model(torch.float16))
    capped = training_model()
    capped.model.rank_cap = RankCap(2, 1.0)
    assert not served(capped) and served(capped, layer=0)  # which routes nothing
    with torch.no_grad():  # there is no cap in evaluation
        assert served(capped)
    watched = training_model()
    handle = watched.model.layers[1].mlp.experts.register_forward_hook(lambda *_: None)
    assert not served(watched) and served(watched, layer=0)
    handle.remove()
    assert served(watched)
    own = training_model()
    own.model.layers[1].self_attn.forward = own.model.layers[1].self_attn.forward
    assert not served(own) and served(own, layer=0)
    with FlopCounterMode(display=False):
        assert not served(training_model())
    adapted = training_model()
    adapted.model.layers[1].self_attn.o_proj = nn.Sequential(adapted.model.layers[1].self_attn.o_proj)
    assert not served(adapted) and served(adapted, layer=0)


def to_bf16(layer: nn.Module) -> None:
    layer.mlp.shared_experts.up_proj.weight.data = layer.mlp.shared_experts.up_proj.weight.data.bfloat16()


def transposed(layer: nn.Module) -> None:
    layer.self_attn.o_proj.weight.data = layer.self_attn.o_proj.weight.data.T


def to_meta(layer: nn.Module) -> None:
    layer.mlp.experts.to("meta")


def parametrized(layer: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(layer.self_attn.kv_b_proj)


def narrower(layer: nn.Module) -> None:
    layer.mlp.shared_experts.down_proj.weight.data = layer.mlp.shared_experts.down_proj.weight.data[:, :16].clone()


def fewer_experts(layer: nn.Module) -> None:
    layer.mlp.experts.down_proj = nn.Parameter(layer.mlp.experts.down_proj.detach()[:3].clone())


def more_heads(layer: nn.Module) -> None:
    layer.self_attn.heads = 8


def more_experts(layer: nn.Module) -> None:
    layer.mlp.gate.experts = 16


def more_chosen(layer: nn.Module) -> None:
    layer.mlp.gate.top_k = 9


def other_eps(layer: nn.Module) -> None:
    layer.self_attn.kv_a_layernorm.eps = 1e-3


def bias_in_bf16(layer: nn.Module) -> None:
    layer.mlp.gate.e_score_correction_bias = layer.mlp.gate.e_score_correction_bias.bfloat16()


def bias_as_a_parameter(layer: nn.Module) -> None:
    bias = layer.mlp.gate.e_score_correction_bias.clone()
    del layer.mlp.gate.e_score_correction_bias
    layer.mlp.gate.e_score_correction_bias = nn.Parameter(bias)


def bias_of_one(layer: nn.Module) -> None:
    layer.mlp.gate.e_score_correction_bias = torch.zeros(1)


CHANGES = [to_bf16, transposed, to_meta, parametrized, narrower, fewer_experts, more_heads, more_experts, more_chosen,
           other_eps, bias_in_bf16, bias_as_a_parameter, bias_of_one]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_layers_that_change_after_a_forward(change):
    model = training_model()
    assert served(model)
    change(model.model.layers[1])
    assert not served(model) and served(model, layer=0)


@pytest.mark.parametrize(
    ("rows", "length", "width"), [(2, 40, 48), (8, 40, 48), (4, 20, 48), (4, 80, 48), (1, 80, 48), (4, 40, 64)]
)
def test_contexts_of_other_states_are_refused_as_by_operations(rows, length, width):
    model = training_model(torch.float32)
    layer, x = model.model.layers[1], torch.randn(4, 40, width)
    context = model.model.attention_context((rows, length), torch.arange(length).expand(rows, -1), None, None)
    assert native_decoder.served(layer, x, context) is None
    with pytest.raises(RuntimeError, match="must match"):
        layer(x, context)


def test_documents_of_other_states_are_refused():
    model = training_model(torch.float32)
    position_ids = torch.arange(400).remainder(100).unsqueeze(0)
    context = model.model.attention_context((1, 400), position_ids, None, None)
    assert native_decoder.served(model.model.layers[1], torch.randn(1, 20, 48), context) is None
    assert native_decoder.served(model.model.layers[1], torch.randn(1, 400, 48), context) is not None


@both
def test_parts_put_in_the_place_of_others_are_used(dtype):
    model, other = training_model(dtype), training_model(dtype, std=0.1)
    tokens = random_tokens(2, 50, vocabulary=48)
    before, expected = gradients(model, tokens)["loss"], gradients(other, tokens)["loss"]
    mine, theirs = model.model.layers[1], other.model.layers[1]
    mine.mlp.experts = theirs.mlp.experts
    with_experts = gradients(model, tokens)["loss"]
    mine.self_attn.o_proj.weight = theirs.self_attn.o_proj.weight
    with_projection = gradients(model, tokens)["loss"]
    mine.mlp.shared_experts.__dict__.update(theirs.mlp.shared_experts.__dict__)
    with_shared_experts = gradients(model, tokens)["loss"]
    assert len({float(loss) for loss in (before, with_experts, with_projection, with_shared_experts)}) == 4
    model.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(gradients(model, tokens)["loss"], expected)
    assert torch.equal(gradients(copy.deepcopy(model), tokens)["loss"], expected)


def test_weights_that_nobody_has_are_forgotten():
    model, tokens = training_model(), random_tokens(2, 30, vocabulary=48)
    gradients(model, tokens)
    layer, weight = model.model.layers[1], weakref.ref(model.model.layers[1].mlp.experts.gate_up_proj)
    layer.mlp.experts.gate_up_proj = nn.Parameter(layer.mlp.experts.gate_up_proj.detach().clone())
    gc.collect()
    assert weight() is None
    layer = weakref.ref(layer)
    del model
    gc.collect()
    assert layer() is None


@pytest.mark.parametrize(
    "register",
    [
        nn.Module.register_forward_hook,
        nn.Module.register_forward_pre_hook,
        nn.Module.register_full_backward_hook,
        nn.Module.register_full_backward_pre_hook,
        lambda _, hook: module_hooks.register_module_forward_hook(hook),
        lambda _, hook: module_hooks.register_module_forward_pre_hook(hook),
        lambda _, hook: module_hooks.register_module_full_backward_hook(hook),
        lambda _, hook: module_hooks.register_module_full_backward_pre_hook(hook),
    ],
)
@pytest.mark.filterwarnings("ignore:.*ackward hook.*:UserWarning")
def test_every_kind_of_hook_is_called(register):
    model, seen = training_model(), []
    handle = register(model.model.layers[1].mlp.shared_experts, lambda module, *_: seen.append(type(module).__name__))
    gradients(model, random_tokens(2, 30, vocabulary=48))
    handle.remove()
    assert "MLP" in seen
    assert served(model)


@both
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_another_default_dtype_changes_nothing(default, dtype):
    model, tokens = training_model(dtype), random_tokens(2, 50, vocabulary=48)
    expected = gradients(model, tokens)
    torch.set_default_dtype(default)
    try:
        found = gradients(model, tokens)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_another_default_device_changes_nothing():
    model, tokens = training_model(torch.float32), random_tokens(2, 50, vocabulary=48)
    hidden = model.model(tokens).last_hidden_state.detach()
    context = model.model.attention_context((2, 50), None, None, None)
    x = model.model.embed(tokens)
    expected = model.model.layers[1](x, context)[0]
    with torch.device("meta"):
        found = model.model.layers[1](x, context)[0]
        loss = cross_entropy_sum(hidden, model.lm_head.weight, tokens)
    assert torch.equal(found, expected)
    assert torch.equal(loss, cross_entropy_sum(hidden, model.lm_head.weight, tokens))


def test_hooks_on_parts_see_them():
    model, seen = training_model(), []
    model.model.layers[1].self_attn.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    model.model(random_tokens(2, 30, vocabulary=48))
    assert seen == [(2, 30, 48)]


def test_a_policy_that_drops_norms_is_for_operations(monkeypatch):
    """Compiled code keeps what it keeps."""
    model, tokens = training_model(), random_tokens(2, 40, vocabulary=48)
    monkeypatch.setattr(native_decoder, "run", None)
    model.recompute = "v3"
    assert gradients(model, tokens)["loss"].isfinite()
    model.recompute = "none"
    with pytest.raises(TypeError):
        gradients(model, tokens)
