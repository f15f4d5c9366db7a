"""Tests of compiled training, wherever it compiles: a small model, its gradients, the operations that stand beside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from reference import relative_difference

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


def check_against_fp32(model: V3ForCausalLM, tokens, **inputs) -> None:
    """In every parameter as near to PyTorch's operations in fp32 as those in bf16 are; in fp32 by its last digits."""
    dtype, compiled = model.compute_dtype, gradients(model, tokens, **inputs)
    with operations():
        rounded = gradients(model, tokens, **inputs)
        model.compute_dtype = torch.float32
        exact = gradients(model, tokens, **inputs)
        model.compute_dtype = dtype
    assert compiled.keys() == exact.keys()
    for name, gradient in compiled.items():
        assert gradient.dtype == torch.float32 and gradient.shape == exact[name].shape
        if not exact[name].any():  # nothing to predict, or an expert without tokens
            assert not gradient.any(), name
            continue
        if dtype == torch.float32:
            # Gradients of scores are differences: over two or three keys little more than rounding is left of them.
            assert relative_difference(gradient, exact[name]) < (1e-4 if tokens.shape[1] > 3 else 2e-3), name
            continue
        near = relative_difference(rounded[name], exact[name])
        # The router's gradient is of differences between experts' outputs: of few tokens, rounding is a part of it.
        assert relative_difference(gradient, exact[name]) < 2 * near + (0.15 if "mlp.gate." in name else 0.03), name


THREE_HEADS = {"num_attention_heads": 3, "num_key_value_heads": 3}
CONFIGURATIONS = {
    "as nano": {},
    "no latent of queries": {"q_lora_rank": None},
    "all layers dense": {"first_k_dense_replace": 3},
    "one group, two shared experts": {"n_group": 1, "topk_group": 1, "n_shared_experts": 2},
    "all experts": {"n_group": 1, "topk_group": 1, "n_routed_experts": 3, "num_experts_per_tok": 3},
    "weights not normalised, scaled": {"norm_topk_prob": False, "routed_scaling_factor": 2.5},
    "values wider than keys": {"v_head_dim": 64},
    "widths of several panels": {"hidden_size": 144, "qk_nope_head_dim": 80, **THREE_HEADS},
    "yarn": {
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "beta_fast": 32,
                         "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
}  # fmt: skip
