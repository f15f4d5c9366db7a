"""A training step of nano against transformers' DeepseekV3 of the same sizes, and the GEMM rate of this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.measure import BenchmarkRow, compare
from core_model import V3Config, V3ForCausalLM
from core_model.accounting import flops_per_token
from core_model.parallel.device import training_device
from core_model.parallel.engine import MicroBatch, TorchEngine
from core_model.parallel.host_memory import keep_freed_memory

BATCH, LENGTH = 16, 256


def gemm_rate(dtype: torch.dtype, size: int = 1024) -> float:
    """FLOP/s of a square product, best of ten."""
    a = torch.randn(size, size, dtype=dtype, device=training_device())
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def run() -> Iterator[BenchmarkRow]:
    """Forward, backward and AdamW without MTP (transformers trains none); tokens a second."""
    keep_freed_memory()
    config = V3Config.preset("nano", num_nextn_predict_layers=0)
    ids = torch.randint(0, config.vocab_size, (BATCH, LENGTH), device=training_device())
    limit = gemm_rate(torch.bfloat16) / flops_per_token(config, LENGTH)
    for precision, peer in (("fp32", _peer(config, ids, False)), ("bf16 autocast", _peer(config, ids, True))):
        yield compare(
            f"nano, {BATCH} x {LENGTH}, ours bf16, peer {precision}",
            "tokens/s",
            BATCH * LENGTH,
            _ours(config, ids),
            peer,
            "transformers DeepseekV3ForCausalLM",
            limit=limit,
            target=2.5,
        )


def _ours(config: V3Config, ids: torch.Tensor) -> Callable[[], None]:
    model = V3ForCausalLM(config).initialize(0.06, 0).to(training_device())  # type: ignore[arg-type]
    model.compute_dtype = torch.bfloat16
    engine = TorchEngine(model)

    def step() -> None:
        engine.forward_backward([MicroBatch(ids, ids)])
        engine.step(1e-3, 0.001)

    return step


def _peer(config: V3Config, ids: torch.Tensor, autocast: bool) -> Callable[[], None]:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    fields = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "moe_intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "n_shared_experts",
        "n_routed_experts",
        "num_experts_per_tok",
        "n_group",
        "topk_group",
        "routed_scaling_factor",
        "first_k_dense_replace",
        "q_lora_rank",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
    ]
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**{name: getattr(config, name) for name in fields}))
    model.to(training_device())  # type: ignore[arg-type]
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
            loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
