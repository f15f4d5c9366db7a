"""Predicted bytes against what torch's allocator and autograd's hooks see, and against V3's published dtypes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from memory import measure
from reference import tiny_config
from torch.autograd.graph import saved_tensors_hooks

from core_model.accounting import Dtypes, activation_bytes, parameters, state_bytes
from core_model.config import V3Config
from core_model.model import V3CausalLMOutput, V3ForCausalLM
from core_model.moe import experts
from core_model.native import training

ROWS, LENGTH = 2, 512  # from 512 tokens on the CPU's attention runs in bf16, as an accelerator's does
TOLERANCE = 0.005
CONFIGURATIONS = {
    "narrow values": {"qk_rope_head_dim": 8},
    "wide values, two shared experts": {"v_head_dim": 20, "n_shared_experts": 2},
    "plain queries, no MTP": {"q_lora_rank": None, "num_nextn_predict_layers": 0},
    "two MTP depths": {"num_nextn_predict_layers": 2, "num_experts_per_tok": 4},
    "dense": {"n_routed_experts": None},
}


def model_of(compute: torch.dtype, **overrides: Any) -> V3ForCausalLM:
    model = V3ForCausalLM(tiny_config(hidden_size=48, **overrides)).initialize(0.1, 0).train()
    model.loss_weights.mtp, model.loss_weights.balance = 0.3, 1e-4
    model.compute_dtype = compute
    return model


TOKENS = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH) % 16
POSITIONS = torch.arange(LENGTH).expand(ROWS, -1)


def forward(model: V3ForCausalLM) -> tuple[Any, V3CausalLMOutput]:
    """As a trainer does, the backbone's output still alive."""
    backbone = model.model(TOKENS, position_ids=POSITIONS)
    return backbone, model.losses(TOKENS, TOKENS, backbone)


@pytest.fixture(autouse=True)
def as_on_an_accelerator(monkeypatch):
    """In operations; the CPU's loop of experts keeps a little less in fp32 and pads its rows in bf16."""
    monkeypatch.setattr(experts, "looped_experts", experts.grouped_experts)
    monkeypatch.setattr(training, "compiled", lambda dtype: False)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recompute", ["none", "v3", "layer"])
@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_the_forward_keeps_what_was_predicted(case, recompute, compute):
    model = model_of(compute, **CONFIGURATIONS[case])
    model.recompute = recompute
    predicted = activation_bytes(model.config, ROWS * LENGTH, recompute, Dtypes(compute=compute))
    assert measure(lambda: forward(model)).kept == pytest.approx(predicted.kept, rel=TOLERANCE)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_autograd_saves_what_was_predicted(compute):
    """The same seen by autograd's hooks: every storage once, parameters and buffers apart."""
    model = model_of(compute)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with saved_tensors_hooks(note, lambda x: x):
        _, out = forward(model)
    found = sum(storage.nbytes() for address, storage in saved.items() if address not in own)
    predicted = activation_bytes(model.config, ROWS * LENGTH, "none", Dtypes(compute=compute))
    assert out.loss.requires_grad and found == pytest.approx(predicted.kept, rel=TOLERANCE)


@pytest.mark.parametrize("recompute", ["v3", "layer"])
def test_backward_adds_no_more_than_was_predicted(recompute):
    """Wide layers and a narrow vocabulary, so that what is made again is most of what backward adds."""
    model = model_of(torch.float32, vocab_size=16, num_nextn_predict_layers=0, num_attention_heads=8,
                     num_key_value_heads=8)  # fmt: skip
    model.recompute = recompute
    predicted = activation_bytes(model.config, ROWS * LENGTH, recompute, Dtypes(compute=torch.float32))
    forward(model)[1].loss.backward()  # gradients exist from here on
    kept, peak = measure(lambda: forward(model)[1].loss.backward())
    assert abs(kept) < 2**20
    # Beside it live gradients of activations: of the order of the layer itself, never of all layers.
    assert predicted.kept < peak < predicted.kept + 2 * predicted.again


@pytest.mark.parametrize("overrides", [{}, {"num_nextn_predict_layers": 2}, {"n_routed_experts": None}])
def test_state_is_that_of_a_training_step(overrides):
    model = model_of(torch.float32, **overrides)
    optimizer = torch.optim.AdamW(model.parameters())
    forward(model)[1].loss.backward()
    optimizer.step()
    state = state_bytes(model.config)
    biases = sum(b.nbytes for name, b in model.named_buffers() if name.endswith("e_score_correction_bias"))
    assert state.weights == sum(p.nbytes for p in model.parameters()) + biases
    assert state.gradients == sum(p.grad.nbytes for p in model.parameters())
    moments = [value for values in optimizer.state.values() for name, value in values.items() if name != "step"]
    assert state.moments == sum(value.nbytes for value in moments)
    assert state.total == state.weights + state.gradients + state.moments


def test_v3s_bf16_moments_save_a_quarter_of_the_state():
    config = V3Config.preset("671b")
    plain, v3 = state_bytes(config), state_bytes(config, Dtypes(moments=torch.bfloat16))
    count = parameters(config)
    assert plain.total == pytest.approx(16 * (count.total + count.mtp), rel=1e-6)
    assert v3.total == pytest.approx(0.75 * plain.total, rel=1e-6)


def test_v3s_activations_under_each_policy():
    """25 MB a token; by V3's policy 10, a third of it what eight experts keep; 1 with layers' inputs alone."""
    config = V3Config.preset("671b")
    per_token = [activation_bytes(config, 1, policy).tokens / 1e6 for policy in ("none", "v3", "layer")]
    assert per_token == pytest.approx([25.13, 10.21, 1.013], rel=1e-3)


def test_no_tokens_are_refused():
    with pytest.raises(ValueError, match="tokens"):
        activation_bytes(tiny_config(), 0)
