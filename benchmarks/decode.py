"""Greedy generation against transformers' `generate` with its cache, on the same weights."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.measure import BenchmarkRow, Comparison, compare
from benchmarks.train_step import WIDER
from core_model import V3Config, V3ForCausalLM
from core_model.checkpoint.config_file import disk_config
from core_model.checkpoint.storage import Storage
from core_model.generation import Engine, SamplingParams
from core_model.parallel.device import training_device
from core_model.parallel.host_memory import keep_freed_memory
from core_model.precision import fastest_dtype

MOST_GATHERED = 2**31  # bytes


@dataclass(frozen=True)
class Case:
    """A model, and what it is asked: `batch` prompts of `prompt` tokens, `new` tokens for each."""

    name: str
    config: V3Config
    batch: int
    prompt: int
    new: int
    repetitions: int
    target: float | None


def cases() -> Iterator[Case]:
    nano = V3Config.preset("nano", num_nextn_predict_layers=0, max_position_embeddings=8192)
    wider = V3Config(**WIDER)
    yield Case("nano", nano, 32, 128, 256, 5, 8.0)
    yield Case("nano", nano, 1, 8192 - 256, 256, 3, 3.0)
    yield Case("d 512, 64 experts", wider, 32, 128, 64, 3, None)


def dtypes() -> list[torch.dtype]:
    """What each side is tried in: fp32, and bf16 where the device multiplies it."""
    return [torch.float32, *({fastest_dtype(training_device())} - {torch.float32})]


def run() -> Iterator[BenchmarkRow]:
    """New tokens a second, the prompts' reading included; both sides at the best of their settings."""
    for case in cases():
        yield row(case, case.batch * case.new)


def row(case: Case, work: int) -> BenchmarkRow:
    """One case, both sides at the best of their settings; `work` tokens count."""
    keep_freed_memory()
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, case.config.vocab_size, (case.batch, case.prompt), generator=draw).to(training_device())
    model = V3ForCausalLM(case.config).initialize(0.06, 0).to(training_device())  # type: ignore[arg-type]
    ours = {_name(dtype): _ours(model, ids, case.new, dtype) for dtype in dtypes()}
    for way in ours.values():  # the first time it makes its cache
        way()
    my_name, mine = _best(ours)
    their_name, theirs = _best(_peers(model, ids, case.new))
    return compare(
        Comparison(
            f"{case.name}, {case.batch} x {case.prompt} and {case.new} new, {my_name}",
            "tokens/s",
            work,
            f"transformers generate, {their_name}",
            target=case.target,
        ),
        mine,
        theirs,
        repetitions=case.repetitions,
    )


def _best(ways: dict[str, Callable[[], object]]) -> tuple[str, Callable[[], object]]:
    """The quickest of several ways, each run once; all have generated a little before."""
    seconds = {}
    for name, way in ways.items():
        started = time.perf_counter()
        way()
        seconds[name] = time.perf_counter() - started
    name = min(seconds, key=seconds.__getitem__)
    return name, ways[name]


def _ours(model: V3ForCausalLM, ids: torch.Tensor, new: int, dtype: torch.dtype) -> Callable[[], object]:
    engine = Engine(model, max_batch=len(ids), dtype=dtype)
    prompts, params = ids.tolist(), SamplingParams(new, temperature=0.0)
    return lambda: engine.generate(prompts, params)


def _peers(model: V3ForCausalLM, ids: torch.Tensor, new: int) -> dict[str, Callable[[], object]]:
    """transformers' model in each precision, with each kind of cache and of product over experts that runs here."""
    ways: dict[str, Callable[[], object]] = {}
    for dtype in dtypes():
        peer = _peer_of(model, dtype)
        config = model.config
        # `batched_mm` gathers the weights of every choice: 19 GB for the wider model's prompts.
        choices = ids.numel() * config.num_experts_per_tok
        gathered = choices * 3 * config.hidden_size * config.moe_intermediate_size * dtype.itemsize
        for cache, experts in itertools.product(("dynamic", "static"), ("eager", "grouped_mm", "batched_mm")):
            if experts == "batched_mm" and gathered > MOST_GATHERED:
                continue
            way = _generate(peer, ids, new, cache, experts)
            try:
                _generate(peer, ids[:, :4], 2, cache, experts)()
            except (RuntimeError, ValueError, NotImplementedError):
                continue  # not on this device
            ways[f"{_name(dtype)}, {cache} cache, {experts} experts"] = way
    return ways


def _generate(peer: Any, ids: torch.Tensor, new: int, cache: str, experts: str) -> Callable[[], object]:
    settings = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0}
    mask = torch.ones_like(ids)

    def generate() -> object:
        peer.set_experts_implementation(experts)
        with torch.inference_mode():
            return peer.generate(ids, attention_mask=mask, cache_implementation=cache, **settings)

    return generate


def _peer_of(model: V3ForCausalLM, dtype: torch.dtype) -> Any:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = DeepseekV3Config.from_dict(disk_config(model.config, Storage(torch.float32)))
    peer = DeepseekV3ForCausalLM(config)
    peer.load_state_dict(model.state_dict())
    peer.to(training_device(), dtype)  # type: ignore[arg-type]
    return peer.eval()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
