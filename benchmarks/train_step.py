"""A training step against transformers' DeepseekV3 of the same sizes, and the GEMM rate of this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.measure import BenchmarkRow, compare
from core_model import V3Config, V3ForCausalLM
from core_model.accounting import flops_per_token
from core_model.checkpoint.config_file import disk_config
from core_model.checkpoint.storage import Storage
from core_model.parallel.device import training_device
from core_model.parallel.engine import MicroBatch, TorchEngine
from core_model.parallel.host_memory import keep_freed_memory

# 197.6M parameters, 38.0M of them active; transformers trains no MTP, so neither model has any.
WIDER: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_nextn_predict_layers": 0,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "n_routed_experts": 64,
    "num_experts_per_tok": 6,
    "n_group": 8,
    "topk_group": 4,
    "first_k_dense_replace": 1,
    "q_lora_rank": 384,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "max_position_embeddings": 1024,
}


@dataclass(frozen=True)
class Case:
    """A model, the tokens of a step, how often each side runs, and in which precisions the peer is tried.

    The peer's experts are transformers' default, `grouped_mm`; its other two ways are slower (LABBOOK.md).
    """

    name: str
    config: V3Config
    batch: int
    length: int
    repetitions: int
    peers: tuple[str, ...] = ("fp32", "bf16 autocast")


def cases() -> Iterator[Case]:
    wider = V3Config(**WIDER)
    nano = V3Config.preset("nano", num_nextn_predict_layers=0)
    yield Case("nano", nano, 16, 256, 9)
    yield Case("nano", nano, 64, 256, 5, ("bf16 autocast",))
    yield Case("d 512, 64 experts", wider, 2, 1024, 5)
    yield Case("d 512, 64 experts", wider, 8, 1024, 3, ("bf16 autocast",))


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
    """Forward, backward, clip and AdamW without MTP; tokens a second. The limit is bf16 GEMMs and nothing else."""
    keep_freed_memory()
    for case in cases():
        ids = torch.randint(0, case.config.vocab_size, (case.batch, case.length), device=training_device())
        limit = gemm_rate(torch.bfloat16) / flops_per_token(case.config, case.length)
        ours = _ours(case.config, ids)
        for precision in case.peers:
            yield compare(
                f"{case.name}, {case.batch} x {case.length}, ours bf16, peer {precision}",
                "tokens/s",
                ids.numel(),
                ours,
                _peer(case.config, ids, autocast=precision != "fp32"),
                "transformers DeepseekV3ForCausalLM",
                repetitions=case.repetitions,
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


def _peer(config: V3Config, ids: torch.Tensor, *, autocast: bool) -> Callable[[], None]:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    fields = disk_config(config, Storage(torch.float32))
    model = DeepseekV3ForCausalLM(DeepseekV3Config.from_dict(fields))
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
