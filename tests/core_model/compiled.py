"""Tests of compiled training, wherever it compiles: a small model, its gradients, the operations that stand beside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from core_model import V3Config, V3ForCausalLM, native
from core_model.native import training
from core_model.norm import RMSNorm

needs_compiler = pytest.mark.skipif(
    native.library("train") is None, reason=f"no code: {native.reason_against('train')}"
)
both = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@contextmanager
def operations() -> Iterator[None]:
    """PyTorch's operations in place of compiled code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "reason_against", lambda dtype: "not wanted")
        yield


SMALL = {
    "vocab_size": 48, "hidden_size": 48, "intermediate_size": 80, "moe_intermediate_size": 32, "num_hidden_layers": 2,
    "q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
}  # fmt: skip


def training_model(dtype: torch.dtype = torch.bfloat16, std: float = 0.15, **changes) -> V3ForCausalLM:
    """Over random fp32 weights, with every loss on; experts that the routing bias alone chooses, so that rounding does
    not choose others."""
    model = V3ForCausalLM(V3Config.preset("nano", **{**SMALL, **changes})).initialize(std, 0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, RMSNorm):
                module.weight.uniform_(0.5, 1.5, generator=draw)
        for router in model.model.routers():
            router.e_score_correction_bias.copy_(torch.randperm(router.experts, generator=draw) * 3.0)
    model.loss_weights.mtp, model.loss_weights.balance = 0.3, 0.1
    model.compute_dtype = dtype
    return model.train()


def gradients(model: V3ForCausalLM, tokens, labels=None, **inputs) -> dict[str, torch.Tensor]:
    """By parameter, and the loss."""
    model.zero_grad()
    backbone = model.model(tokens, **inputs)
    loss = model.losses(tokens, tokens if labels is None else labels, backbone).loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "loss": loss.detach()}
