"""The routed experts alone: our loop of GEMMs against transformers' experts, and against the GEMM rate."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.measure import BenchmarkRow, Comparison, compare
from benchmarks.train_step import SHORT, WIDER, gemm_rate
from core_model import V3Config
from core_model.checkpoint.config_file import disk_config
from core_model.checkpoint.storage import Storage
from core_model.moe.experts import Experts
from core_model.parallel.device import training_device, wait_for
from core_model.parallel.host_memory import keep_freed_memory
from core_model.precision import fastest_dtype


@dataclass(frozen=True)
class Case:
    name: str
    config: V3Config
    tokens: int


def run() -> Iterator[BenchmarkRow]:
    """Forward and backward over fp32 master weights, in the dtype that the device multiplies fastest, each step with
    another routing; tokens a second.

    Both sides have the same weights, input and routing, uniform over the experts. The peer's weights are cast once,
    outside the clock: it has no master weights.
    """
    keep_freed_memory()
    dtype = fastest_dtype(training_device())
    rate = gemm_rate(dtype)
    for case in (
        Case("nano", V3Config.preset("nano"), 4096),
        Case("d 512, 64 experts", V3Config(**WIDER), 2048),
        Case("d 512, 64 experts", V3Config(**WIDER), 8192),
    ):
        config = case.config
        flops = 3 * 2 * 3 * config.hidden_size * config.moe_intermediate_size * config.num_experts_per_tok
        for implementation in ("eager", "grouped_mm"):
            yield compare(
                Comparison(
                    f"{case.name}, {case.tokens} tokens",
                    "tokens/s",
                    case.tokens,
                    f"transformers DeepseekV3Experts, {SHORT[dtype]}, {implementation}",
                    limit=rate / flops,
                ),
                *_sides(config, case.tokens, implementation, dtype),
                repetitions=7,
                wait=functools.partial(wait_for, training_device()),
            )


def _sides(
    config: V3Config, tokens: int, implementation: str, dtype: torch.dtype
) -> tuple[Callable[[], None], Callable[[], None]]:
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts

    device, generator = training_device(), torch.Generator().manual_seed(0)
    ours = Experts(config).to(device)
    peer_config = DeepseekV3Config.from_dict(disk_config(config, Storage(torch.float32)))
    peer_config._experts_implementation = implementation
    theirs = DeepseekV3Experts(peer_config).to(device)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(0.06 * torch.randn(parameter.shape, generator=generator))
        theirs.load_state_dict(ours.state_dict())
    theirs.to(dtype)
    experts, top_k = ours.gate_up_proj.shape[0], config.num_experts_per_tok
    x_TD = torch.randn(tokens, config.hidden_size, generator=generator).to(device, dtype)

    def stepper(module: nn.Module) -> Callable[[], None]:
        draw = torch.Generator().manual_seed(1)

        def step() -> None:
            weights_TK, indices_TK = torch.rand(tokens, experts, generator=draw).to(device).topk(top_k)
            module.zero_grad(set_to_none=True)
            x = x_TD.clone().requires_grad_()
            module(x, indices_TK, weights_TK).sum().backward()

        return step

    return stepper(ours), stepper(theirs)
