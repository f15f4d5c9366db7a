"""Stand-ins for the kernels of GPUs, in plain torch: their signatures, what they refuse, and the numbers they give.

torch's `varlen_attn` (2.11 to 2.13) and the functions of `flash_mla`, in its first and in its present form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


def attend(q_HTd: Tensor, k_HSd: Tensor, v_HSV: Tensor, scale: float, allowed_TS: Tensor) -> Tensor:
    scores = (q_HTd.float() @ k_HSd.float().transpose(1, 2)) * scale
    probabilities = torch.where(allowed_TS, scores, -math.inf).softmax(-1)
    return (probabilities @ v_HSV.float()).to(q_HTd.dtype)


@dataclass
class Varlen:
    """`varlen_attn`; `calls` counts. It reads bounds as the kernel does, without the host's operations."""

    dtype: torch.dtype | None = None
    calls: int = 0

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor | None,
        max_q: int,
        max_k: int,
        *,
        return_aux: Any = None,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
    ) -> Tensor:
        self.calls += 1
        assert cu_seq_k is not None and type(max_q) is int and type(max_k) is int
        assert window_size == (-1, 0) and return_aux is None
        for x in (query, key, value):
            assert x.dim() == 3 and x.shape == query.shape and x.dtype == query.dtype == (self.dtype or query.dtype)
            assert x.stride(-1) == 1 and x.shape[-1] % 8 == 0 and x.shape[-1] <= 256
        for bounds, longest in ((cu_seq_q, max_q), (cu_seq_k, max_k)):
            assert bounds.dtype == torch.int32 and bounds.dim() == 1 and bounds.is_contiguous()
            ends = bounds.numpy()
            assert ends[0] == 0 and ends[-1] == len(query) and (ends[1:] - ends[:-1]).max() == longest > 0
            assert (ends[1:] >= ends[:-1]).all()
        document = torch.from_numpy(cu_seq_q.numpy()[1:].searchsorted(range(len(query)), side="right"))
        places = torch.arange(len(query))
        allowed = (document[:, None] == document) & (places[:, None] >= places)
        q, k, v = (x.transpose(0, 1) for x in (query, key, value))
        return attend(q, k, v, query.shape[-1] ** -0.5 if scale is None else scale, allowed).transpose(0, 1)


@dataclass
class Plan:
    """What `get_mla_metadata` returns now: made by the first call, and then for that one set of lengths."""

    lengths: Tensor | None = None


@dataclass
class FlashMLA:
    """The module `flash_mla`. first: with the metadata of its first release, two tensors."""

    first: bool = False
    plans: int = 0
    calls: int = 0
    made: list[Any] = field(default_factory=list)

    def get_mla_metadata(self, *args: Any) -> tuple[Any, Tensor | None]:
        self.plans += 1
        lengths, queries_of_key_head, key_heads = args
        assert lengths.dtype == torch.int32 and key_heads == 1 and type(queries_of_key_head) is int
        self.made = [lengths.clone(), queries_of_key_head]
        if self.first:
            return torch.zeros(4, 8, dtype=torch.int32), torch.zeros(len(lengths) + 1, dtype=torch.int32)
        return Plan(), None

    def flash_mla_with_kvcache(
        self,
        q: Tensor,
        k_cache: Tensor,
        block_table: Tensor,
        cache_seqlens: Tensor,
        head_dim_v: int,
        tile_scheduler_metadata: Any,
        num_splits: Tensor | None = None,
        softmax_scale: float | None = None,
        causal: bool = False,
    ) -> tuple[Tensor, Tensor]:
        self.calls += 1
        batch, length, heads, width = q.shape
        pages, size, key_heads, key_width = k_cache.shape
        assert (size, key_heads, width, key_width, head_dim_v) == (64, 1, 576, 576, 512)
        assert q.dtype == k_cache.dtype and q.is_contiguous() and k_cache.stride(-1) == 1
        assert block_table.dtype == cache_seqlens.dtype == torch.int32 and cache_seqlens.is_contiguous()
        assert block_table.shape[0] == len(cache_seqlens) == batch and int(block_table.max()) < pages
        assert self.made[1] == length * heads and torch.equal(self.made[0], cache_seqlens)
        if self.first:
            assert num_splits is not None
        else:
            plan = tile_scheduler_metadata
            assert isinstance(plan, Plan) and num_splits is None
            assert plan.lengths is None or torch.equal(plan.lengths, cache_seqlens)
            plan.lengths = cache_seqlens.clone()
        out = torch.empty(batch, length, heads, head_dim_v, dtype=q.dtype)
        for row, end in enumerate(cache_seqlens.tolist()):
            assert length <= end <= block_table.shape[1] * size
            kv_SC = k_cache[block_table[row].long()].flatten(0, 2)[:end]
            allowed = torch.ones(length, end, dtype=torch.bool)
            allowed = allowed.tril(end - length) if causal else allowed
            kv_HSC = kv_SC.expand(heads, -1, -1)
            scale = width**-0.5 if softmax_scale is None else softmax_scale
            attended = attend(q[row].transpose(0, 1), kv_HSC, kv_HSC[..., :head_dim_v], scale, allowed)
            out[row] = attended.transpose(0, 1)
        return out, torch.zeros(batch, heads, length)
