"""A training step against transformers' DeepseekV3 of the same sizes, and the GEMM rate of this process.

On a CPU small models, both in memory and run in turn. On an accelerator `mini` and four layers of V3's own widths, one
side after the other, since both have no room beside each other, and the share of the data sheet's peak.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.measure import BenchmarkRow, Comparison, Program, alone, compare, row_of, seconds_of
from core_model import V3Config, V3ForCausalLM
from core_model.accounting import flops_per_token
from core_model.checkpoint.config_file import disk_config
from core_model.checkpoint.storage import Storage
from core_model.parallel.device import bf16_peak, release_memory, training_device, wait_for
from core_model.parallel.engine import MicroBatch, TorchEngine
from core_model.parallel.host_memory import keep_freed_memory
from core_model.precision import fastest_dtype

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
# Four layers of V3 as it is (7168 wide, 128 heads, experts of 2048, vocabulary and head included), one of them dense,
# three with 32 routed experts out of V3's 256, in its 8 groups of which 4 are chosen, 8 experts a token as in V3: the
# work of a token is that of V3's layers, and what is left out is experts to hold. 7.36e9 parameters at 16 bytes (fp32
# weights, gradients and two moments) are 109.7 GiB (`core_model.accounting.state_bytes`); 40 experts would be 125 and
# 48 would be 141, where an H200 has 139. Beside them a forward of 2 x 4096 tokens leaves 26 GiB before there are
# gradients, 27 GiB of the state: 109 GiB.
SLICE = {"num_hidden_layers": 4, "first_k_dense_replace": 1, "n_routed_experts": 32, "num_nextn_predict_layers": 0}
SLICE_LENGTH, SLICE_BATCH = 4096, 2

PEER = "transformers DeepseekV3ForCausalLM"
# What a peer that is too large, or lacks a kernel, ends with.
PEER_FAULTS = (RuntimeError, ValueError, NotImplementedError, ImportError)


SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Case:
    """A model, the tokens of a step, how often each side runs, and in which precisions the peer is tried.

    The peer's experts are transformers' default, `grouped_mm`; its other two ways are as fast or slower (LABBOOK.md).
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


def accelerator_cases() -> Iterator[Case]:
    """The peer's "bf16" is weights, gradients and moments in bf16, half of the bytes and quicker than its autocast."""
    mini = V3Config.preset("mini", num_nextn_predict_layers=0)
    yield Case("mini", mini, 16, 4096, 9, ("bf16", "bf16 autocast"))
    v3 = V3Config.preset("671b", **SLICE)
    yield Case("V3's widths, 4 layers, 32 experts", v3, SLICE_BATCH, SLICE_LENGTH, 7, ("bf16",))


def gemm_rate(dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s of a square product, best of ten; of a size that fills the device."""
    device = training_device()
    size = size or (1024 if device.type == "cpu" else 8192)
    a = torch.randn(size, size, dtype=dtype, device=device)
    return 2 * size**3 / min(seconds_of(lambda: a @ a, functools.partial(wait_for, device)) for _ in range(10))


def run() -> Iterator[BenchmarkRow]:
    """Forward, backward, clip and AdamW without MTP; tokens a second. The limit is GEMMs and nothing else.

    Where the CPU multiplies no bf16, both sides are fp32: bf16 would take them twelve times as long.
    """
    keep_freed_memory()
    if training_device().type != "cpu":
        for case in accelerator_cases():
            yield from one_by_one(case)
        return
    dtype = fastest_dtype(training_device())
    for case in cases():
        ids = _tokens(case)
        limit = gemm_rate(dtype) / flops_per_token(case.config, case.length)
        ours = _ours(case.config, ids, dtype)
        for precision in case.peers if dtype == torch.bfloat16 else ("fp32",):
            yield compare(
                Comparison(
                    f"{case.name}, {case.batch} x {case.length}, ours {SHORT[dtype]}, peer {precision}",
                    "tokens/s",
                    ids.numel(),
                    PEER,
                    limit=limit,
                    target=2.5,
                ),
                ours,
                _peer(case.config, ids, precision),
                repetitions=case.repetitions,
            )


def one_by_one(case: Case) -> Iterator[BenchmarkRow]:
    """Ours, then each peer, each alone on the device; of every peer a row in tokens a second and one in shares of peak.

    A peer that fails, for want of memory say, leaves our figure and its own reason.
    """
    device = training_device()
    ids, flops = _tokens(case), flops_per_token(case.config, case.length)
    settings = (case.repetitions, functools.partial(wait_for, device), functools.partial(release_memory, device))
    rate, peak = gemm_rate(torch.bfloat16), bf16_peak(device)
    mine = alone(functools.partial(_ours, case.config, ids), *settings)
    for precision in case.peers:
        name = f"{PEER}, {precision}"
        try:
            theirs = alone(functools.partial(_quickest_peer, case.config, ids, precision), *settings)
        except PEER_FAULTS as error:
            theirs, name = [], f"{name}: {type(error).__name__}"
        what = f"{case.name}, {case.batch} x {case.length}, ours bf16 over fp32 weights"
        row = row_of(Comparison(what, "tokens/s", ids.numel(), name, limit=rate / flops), mine, theirs)
        yield row
        if peak is not None:
            yield in_shares(row, flops, peak)


def in_shares(row: BenchmarkRow, flops: float, peak: float) -> BenchmarkRow:
    """A row in units a second as shares of `peak` FLOP/s, at `flops` a unit."""
    share = flops / peak
    return replace(
        row,
        unit=f"share of {peak / 1e12:,.0f} TFLOP/s",
        ours=row.ours * share,
        peer=None if row.peer is None else row.peer * share,
        limit=None if row.limit is None else row.limit * share,
    )


def _tokens(case: Case) -> torch.Tensor:
    return torch.randint(0, case.config.vocab_size, (case.batch, case.length), device=training_device())


def _ours(config: V3Config, ids: torch.Tensor, dtype: torch.dtype = torch.bfloat16) -> Program:
    if ids.device.type == "cpu":
        model = V3ForCausalLM(config).initialize(0.06, 0)
    else:  # minutes on the host, for the largest
        with ids.device, torch.no_grad():
            model = V3ForCausalLM(config)
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.006)
    model.compute_dtype = dtype
    engine = TorchEngine(model)

    def step() -> None:
        engine.forward_backward([MicroBatch(ids, ids)])
        engine.step(1e-3, 0.001)

    return step


def _peer(config: V3Config, ids: torch.Tensor, precision: str, attention: str = "sdpa") -> Program:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    fields = disk_config(config, Storage(torch.float32))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with ids.device:
        model = DeepseekV3ForCausalLM._from_config(
            DeepseekV3Config.from_dict(fields), dtype=dtype, attn_implementation=attention
        )
    model.set_experts_implementation("grouped_mm")
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=precision == "bf16 autocast"):
            loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _quickest_peer(config: V3Config, ids: torch.Tensor, precision: str) -> Program:
    """The peer with the attention that is quickest here, of those that are installed."""
    from transformers.utils import is_flash_attn_2_available

    if not is_flash_attn_2_available() or precision == "fp32":
        return _peer(config, ids, precision)
    wait, release = functools.partial(wait_for, ids.device), functools.partial(release_memory, ids.device)
    builds: dict[float, Callable[[], Program]] = {}
    for attention in ("flash_attention_2", "sdpa"):
        build = functools.partial(_peer, config, ids, precision, attention)
        try:
            builds[alone(build, 1, wait, release)[0]] = build
        except PEER_FAULTS:
            continue
    return builds[min(builds)]() if builds else _peer(config, ids, precision)
