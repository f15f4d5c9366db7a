"""What a training step reads and writes between its products, against transformers' DeepseekV3: bytes, not seconds.

On an accelerator such passes over memory take as long as the products. They are counted on the meta device, which
computes nothing, at the sizes that `train_step` measures on a GPU; the figures are those of any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, TypeVar
from unittest import mock

import torch
import torch.fx.experimental._config as symbolic
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from benchmarks.measure import BenchmarkRow
from benchmarks.train_step import PEER, Case, accelerator_cases
from core_model import V3Config, V3ForCausalLM, loss
from core_model.checkpoint.config_file import disk_config
from core_model.checkpoint.storage import Storage
from core_model.fused import TakesFused

Result = TypeVar("Result")

META = torch.device("meta")
PRODUCTS = {"mm", "bmm", "addmm", "_grouped_mm"}
# Neither reads nor writes numbers, though its schema does not say so.
NO_PASS = {"_unsafe_view", "_reshape_alias", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
# Fused functions of which torch.compile makes several kernels (seen in its code for Hopper), and how often these read.
READINGS = {"rms_norm_backward": 2, "weighted_gradients": 2, "loss_and_dlogits": 3}
# Reads what it gives, out of more.
PICKS = {"index_select", "gather", "embedding", "index", "gathered_sum"}


class Traffic(TakesFused):
    """Counts bytes and passes of what is no product: every operand read once, every result written once.

    A fused function is one pass, or as many as its kernels read its operands. Products, and attention, which
    `as_one_kernel` puts aside, are not counted: both sides do the same ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.passes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":  # transformers asks whether a row holds one document
            return 1
        result = func(*args, **(kwargs or {}))
        is_view = any(one.alias_info and not one.alias_info.is_write for one in func._schema.returns)
        if not is_view and name not in PRODUCTS | NO_PASS:
            written = [one for one, as_told in zip(args, func._schema.arguments, strict=False) if _is_written(as_told)]
            self._note(name, (args, kwargs), (result, written))
        return result

    def fused(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        with _disable_current_modes():
            result = function(*args, **kwargs)
        self._note(function.__name__, (args, kwargs), result)
        return result

    def _note(self, name: str, given: object, result: object) -> None:
        read, written = list(_tensors(given)), {id(one): one for one in _tensors(result)}.values()
        if name in PICKS:
            picked = len(read[1]) * prod(read[1].shape[1:]) if name == "gathered_sum" else 0
            reads = picked * _bytes(read[0][:1]) if picked else sum(map(_bytes, written))
        else:
            reads = sum(map(_bytes, read)) * READINGS.get(name, 1)
        self.bytes += reads + sum(map(_bytes, written))
        self.passes += READINGS.get(name, 1)


class SingleOperations(Traffic):
    """Where nothing is compiled: a fused function is the operations that it is written in."""

    fused = TakesFused.fused


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _tensors(x: object) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, (list, tuple)):
        for one in x:
            yield from _tensors(one)
    elif isinstance(x, dict):
        yield from _tensors(list(x.values()))


def _bytes(x: Tensor) -> int:
    """Of the memory behind it: what is expanded lies there once."""
    return x.element_size() * prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride)


class _Attention(torch.autograd.Function):
    """As a fused kernel: it keeps its inputs and gives tensors of their shapes."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        batch, heads, length = q.shape[:3]
        return q.new_empty(batch, length, heads, v.shape[-1]).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.empty_like, ctx.saved_tensors))


@contextmanager
def as_one_kernel() -> Iterator[None]:
    """SDPA as accelerators run it; on the meta device it is a composite that writes the scores of all pairs.

    And the loss in chunks for a fused function.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor, **settings: Any) -> Tensor:
        return _Attention.apply(q, k, v)

    # Every token has a label: what would be counted on the device is known.
    with (
        mock.patch.object(F, "scaled_dot_product_attention", attend),
        mock.patch.object(loss, "compiles_on", lambda device: True),
        mock.patch.object(symbolic, "meta_nonzero_assume_all_nonzero", True),
    ):
        yield


def traffic_of(step: Callable[[], Tensor], counter: type[Traffic] = Traffic) -> Traffic:
    """Of a forward, which gives a loss, and its backward."""
    with as_one_kernel(), counter() as traffic:
        step().backward()
    return traffic


def ours(config: V3Config, ids: Tensor) -> Callable[[], Tensor]:
    with META:
        model = V3ForCausalLM(config).train()
    model.compute_dtype = torch.bfloat16
    return lambda: model.losses(ids, ids, model.model(ids), normaliser=1.0).loss


def peer(config: V3Config, ids: Tensor) -> Callable[[], Tensor]:
    """Weights in bf16: what autocast would cast of them is not counted."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    fields = DeepseekV3Config.from_dict(disk_config(config, Storage(torch.float32)))
    with META:
        model = DeepseekV3ForCausalLM._from_config(fields, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.set_experts_implementation("grouped_mm")
    model.train()
    return lambda: model(ids, labels=ids, use_cache=False).loss


def run() -> Iterator[BenchmarkRow]:
    """Forward and backward, without the optimiser: tokens for each GB, and for each pass."""
    for case in accelerator_cases():
        yield from rows_of(case)


def rows_of(case: Case) -> Iterator[BenchmarkRow]:
    ids = torch.empty(case.batch, case.length, dtype=torch.int64, device=META)
    mine = traffic_of(ours(case.config, ids))
    peers = {
        f"{PEER}, bf16": traffic_of(peer(case.config, ids)),
        "ours as single operations": traffic_of(ours(case.config, ids), SingleOperations),
    }
    for name, theirs in peers.items():
        for unit, work, one, other in (
            ("tokens/GB", 1e9 * ids.numel(), mine.bytes, theirs.bytes),
            ("tokens/pass", ids.numel(), mine.passes, theirs.passes),
        ):
            yield BenchmarkRow(
                case=f"{case.name}, {case.batch} x {case.length}, ours bf16 over fp32 weights",
                unit=unit,
                ours=work / one,
                peer=work / other,
                peer_name=name,
                limit=None,
                ratio=other / one,
                ratio_low=other / one,  # counted
                ratio_high=other / one,
                target=None,
            )
