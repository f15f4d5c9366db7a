"""The kernels that expanded attention runs through, chosen in one place (`kernel_for`) by what the device offers.

Whole rows go through SDPA, documents through flash over their bounds, FlexAttention, or batches of their own. A kernel
is three steps, so that recomputation can make the first and the last again and keep what lies between: it lays out
queries, keys and values, attends, and puts the output back in rows.

Shape suffixes: B batch, T query tokens, S key positions, X tokens of all documents, H heads, V value dim, d a width.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from core_model.documents import Documents, find_documents
from core_model.parallel.device import compiles_kernels, nvidia_capability

# Below this many queries, the CPU's fused kernel takes longer in bf16 than in fp32, casts included (LABBOOK.md).
CPU_BF16_LENGTH = 512
FLASH_MULTIPLE, FLASH_WIDEST = 8, 256  # widths that flash attention takes
# On NVIDIA's smaller chips of a generation (8.6, 8.9, 12.0) flash has no backward above this.
FLASH_WIDEST_SMALL = 192
CAUSAL = (-1, 0)  # window of `varlen_attn`: everything to the left, nothing to the right


@dataclass(frozen=True)
class Offers:
    """What a device has for attention in one dtype and at one pair of widths.

    unequal: SDPA has a fused kernel for values that are not as wide as keys, and takes it.
    varlen: `torch.nn.attention.varlen.varlen_attn`, or None.
    flex: FlexAttention, compiled, or None.
    """

    unequal: bool = False
    varlen: Callable[..., Any] | None = None
    flex: Callable[..., Any] | None = None


class Kernel(Protocol):
    """One way to attend, for one batch.

    `inputs` and `output` may run again in backward: they give the same numbers then, and read nothing but their
    arguments and where documents lie.
    """

    @property
    def name(self) -> str: ...

    def inputs(self, q_BTHd: Tensor, k_BSHd: Tensor, v_BSHV: Tensor) -> tuple[Tensor, ...]:
        """As `attend` takes them."""
        ...

    def attend(self, inputs: tuple[Tensor, ...], scale: float, visible: Tensor | None) -> tuple[Tensor, ...]:
        """Causal attention, or masked by `visible`, bool [B, 1, T, S]; the latter for whole rows alone."""
        ...

    def output(self, outs: tuple[Tensor, ...], value_width: int, dtype: torch.dtype) -> Tensor:
        """[B, T, H, V]"""
        ...


def kernel_inputs(q_BTHd: Tensor, k_BSHd: Tensor, v_BSHV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as SDPA's fused kernels for equal widths take them.

    Values are padded to the width of the keys, or the keys and queries to that of wider values: with unequal widths
    SDPA leaves its fused path and writes the [T, S] scores to memory (benchmarks: 5x at 2048 tokens on CPU).
    """
    wider = v_BSHV.shape[-1] - q_BTHd.shape[-1]
    v_BSHd = F.pad(v_BSHV, (0, max(-wider, 0)))
    if wider > 0:
        q_BTHd, k_BSHd = F.pad(q_BTHd, (0, wider)), F.pad(k_BSHd, (0, wider))
    if q_BTHd.device.type == "cpu" and q_BTHd.shape[1] < CPU_BF16_LENGTH:
        return q_BTHd.float(), k_BSHd.float(), v_BSHd.float()
    return q_BTHd, k_BSHd, v_BSHd


def sdpa(q_BTHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, scale: float, visible: Tensor | None) -> Tensor:
    """Causal attention (or masked by `visible`) over laid out inputs, [B, T, H, d]."""
    out = F.scaled_dot_product_attention(
        q_BTHd.transpose(1, 2),
        k_BSHd.transpose(1, 2),
        v_BSHd.transpose(1, 2),
        attn_mask=visible,
        is_causal=visible is None,
        scale=scale,
    )
    return out.transpose(1, 2)


@dataclass(frozen=True)
class WholeRows:
    """SDPA over rows as they are. padded: values and keys are brought to one width."""

    padded: bool

    @property
    def name(self) -> str:
        return f"SDPA, keys and values {'padded to one width' if self.padded else 'as wide as they are'}"

    def inputs(self, q_BTHd: Tensor, k_BSHd: Tensor, v_BSHV: Tensor) -> tuple[Tensor, ...]:
        if self.padded:
            return kernel_inputs(q_BTHd, k_BSHd, v_BSHV)
        # A copy of the values alone: backward would otherwise keep the keys beside them, in one tensor, as well.
        return q_BTHd, k_BSHd, v_BSHV.contiguous()

    def attend(self, inputs: tuple[Tensor, ...], scale: float, visible: Tensor | None) -> tuple[Tensor, ...]:
        q_BTHd, k_BSHd, v_BSHd = inputs
        return (sdpa(q_BTHd, k_BSHd, v_BSHd, scale, visible),)

    def output(self, outs: tuple[Tensor, ...], value_width: int, dtype: torch.dtype) -> Tensor:
        return outs[0][..., :value_width].to(dtype)


@dataclass(frozen=True)
class GatheredDocuments:
    """SDPA over documents gathered into batches of their own, those of like length together."""

    documents: Documents
    name = "SDPA over documents gathered into batches"

    def inputs(self, q_BTHd: Tensor, k_BSHd: Tensor, v_BSHV: Tensor) -> tuple[Tensor, ...]:
        groups = zip(*map(self.documents.split, (q_BTHd, k_BSHd, v_BSHV)), strict=True)
        return tuple(x for group in groups for x in kernel_inputs(*group))

    def attend(self, inputs: tuple[Tensor, ...], scale: float, visible: Tensor | None) -> tuple[Tensor, ...]:
        groups = zip(inputs[::3], inputs[1::3], inputs[2::3], strict=True)
        return tuple(sdpa(q, k, v, scale, None) for q, k, v in groups)

    def output(self, outs: tuple[Tensor, ...], value_width: int, dtype: torch.dtype) -> Tensor:
        return self.documents.join([out[..., :value_width].to(dtype) for out in outs])


@dataclass(frozen=True)
class FlashDocuments:
    """Flash attention over documents laid end to end, from bound to bound: no batches, no mask, no waiting.

    attend_varlen: `varlen_attn`, or what has its signature. dtype: that of the products.
    """

    documents: Documents
    attend_varlen: Callable[..., Any]
    dtype: torch.dtype
    name = "flash attention over document bounds (varlen)"

    def inputs(self, q_BTHd: Tensor, k_BSHd: Tensor, v_BSHV: Tensor) -> tuple[Tensor, ...]:
        width = flash_width(q_BTHd.shape[-1], v_BSHV.shape[-1])

        def lay_out(x_BTHd: Tensor) -> Tensor:
            x_XHd = self.documents.pack(x_BTHd).to(self.dtype)
            beyond = width - x_XHd.shape[-1]
            return F.pad(x_XHd, (0, beyond)) if beyond else x_XHd.contiguous()

        return lay_out(q_BTHd), lay_out(k_BSHd), lay_out(v_BSHV)

    def attend(self, inputs: tuple[Tensor, ...], scale: float, visible: Tensor | None) -> tuple[Tensor, ...]:
        bounds, longest = self.documents.bound_M, self.documents.longest
        if not longest:  # nothing but padding
            return (inputs[2],)
        # Bounds and the longest document twice: a query's document is its keys' too.
        out = self.attend_varlen(*inputs, bounds, bounds, longest, longest, scale=scale, window_size=CAUSAL)
        return (out,)

    def output(self, outs: tuple[Tensor, ...], value_width: int, dtype: torch.dtype) -> Tensor:
        return self.documents.unpack(outs[0][..., :value_width].to(dtype))


@dataclass(frozen=True)
class FlexDocuments:
    """FlexAttention under a mask of blocks, causal within documents. dtype: that of the products."""

    documents: Documents
    attend_blocks: Callable[..., Any]
    dtype: torch.dtype
    name = "FlexAttention, causal within documents"

    def inputs(self, q_BTHd: Tensor, k_BSHd: Tensor, v_BSHV: Tensor) -> tuple[Tensor, ...]:
        return q_BTHd.to(self.dtype), k_BSHd.to(self.dtype), v_BSHV.to(self.dtype).contiguous()

    def attend(self, inputs: tuple[Tensor, ...], scale: float, visible: Tensor | None) -> tuple[Tensor, ...]:
        q_BHTd, k_BHTd, v_BHTV = (x.transpose(1, 2) for x in inputs)
        return (self.attend_blocks(q_BHTd, k_BHTd, v_BHTV, block_mask=self.documents.block_mask, scale=scale),)

    def output(self, outs: tuple[Tensor, ...], value_width: int, dtype: torch.dtype) -> Tensor:
        return outs[0].transpose(1, 2).to(dtype)


def kernel_for(
    device: torch.device,
    dtype: torch.dtype,
    key_width: int,
    value_width: int,
    documents: Documents | None,
    *,
    masked: bool = False,
) -> Kernel:
    """The kernel for a batch: the one place that chooses.

    Args:
        dtype: of queries, keys and values.
        documents: None for whole rows.
        masked: over a cache of which queries see a part. SDPA's kernel for unequal widths is sure for plain causal rows
            alone.
    """
    found = offers(device, dtype, key_width, value_width)
    if documents is None:
        return WholeRows(padded=masked or not found.unequal)
    if found.varlen is not None:
        return FlashDocuments(documents, found.varlen, dtype)
    if found.flex is not None:
        return FlexDocuments(documents, found.flex, dtype)
    return GatheredDocuments(documents)


def kernel_names(device: torch.device, dtype: torch.dtype, key_width: int, value_width: int) -> tuple[str, str]:
    """What whole rows and what documents go through, in words."""
    two = find_documents(torch.tensor([[0, 0]]), None, (1, 2))
    rows, documents = (kernel_for(device, dtype, key_width, value_width, one).name for one in (None, two))
    return rows, documents


@functools.cache
def offers(device: torch.device, dtype: torch.dtype, key_width: int, value_width: int) -> Offers:
    """What the device offers; asked of it once."""
    if device.type == "cpu":
        return Offers()
    return Offers(
        unequal=key_width == value_width or takes_unequal_widths(device, dtype, key_width, value_width),
        varlen=varlen_attention() if flash_takes(nvidia_capability(device), dtype, key_width, value_width) else None,
        flex=compiled_flex_attention() if compiles_kernels(device) else None,
    )


def takes_unequal_widths(device: torch.device, dtype: torch.dtype, key_width: int, value_width: int) -> bool:
    """Whether SDPA itself would take cuDNN's kernel, whose values may be narrower than its keys (Hopper: 192 and 128).

    Asked by way of SDPA's own choice and not of what cuDNN can do: releases with known faults are ranked last there.
    Its other fused kernel for unequal widths (memory-efficient) is slower than flash on padded values.
    """
    choice = getattr(torch, "_fused_sdp_choice", None)
    if choice is None:
        return False
    width = {"q": key_width, "k": key_width, "v": value_width}
    # As in training, in rows as `WholeRows` lays them out: some kernels have no backward at a width, or want strides.
    q, k, v = (
        torch.empty(1, 256, 2, width[x], dtype=dtype, device=device, requires_grad=True).transpose(1, 2) for x in "qkv"
    )
    try:
        chosen = int(choice(q, k, v, None, 0.0, True))
    except RuntimeError:  # not on this device
        return False
    return chosen == int(SDPBackend.CUDNN_ATTENTION.value)


def flash_width(key_width: int, value_width: int) -> int:
    """The one width that flash attention is given."""
    widest = max(key_width, value_width)
    return -(-widest // FLASH_MULTIPLE) * FLASH_MULTIPLE


def flash_takes(capability: tuple[int, int] | None, dtype: torch.dtype, key_width: int, value_width: int) -> bool:
    """Whether flash attention has a kernel: Ampere or later, half precision, heads that are not too wide."""
    if capability is None or capability < (8, 0) or dtype not in (torch.bfloat16, torch.float16):
        return False
    small = capability[0] in (8, 12) and capability != (8, 0)
    return flash_width(key_width, value_width) <= (FLASH_WIDEST_SMALL if small else FLASH_WIDEST)


def varlen_attention() -> Callable[..., Any] | None:
    """torch's `varlen_attn`; None where it is missing or has no scale, without which V3's and YaRN's are lost."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters  # torch 2.10 had `is_causal` and a scale of its own
    return varlen_attn if {"scale", "window_size"} <= known.keys() else None


@functools.cache
def compiled_flex_attention() -> Callable[..., Any]:
    """FlexAttention as one kernel; uncompiled it writes the scores of all pairs to memory."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def scaled_dot_product(q_BTHd: Tensor, k_BSHd: Tensor, v_BSHV: Tensor, scale: float, visible: Tensor | None) -> Tensor:
    """Causal attention of whole rows (or masked by `visible`), [B, T, H, V], by the device's kernel."""
    widths = q_BTHd.shape[-1], v_BSHV.shape[-1]
    kernel = kernel_for(q_BTHd.device, q_BTHd.dtype, *widths, None, masked=visible is not None)
    outs = kernel.attend(kernel.inputs(q_BTHd, k_BSHd, v_BSHV), scale, visible)
    return kernel.output(outs, v_BSHV.shape[-1], q_BTHd.dtype)
