"""The kernels of decoding: a few queries a row over the latent cache, in the latent space.

FlashMLA where it is installed and serves, else products. FlashMLA reads a cache in pages: `LatentCache`, whose rows lie
one after the other, is such a cache, its pages in order.

Shape suffixes: B rows, T tokens a row, S cached positions, H heads, C latent and rope dim, L latent dim, P pages of all
rows.
Source: deepseek-ai/FlashMLA, flash_mla/flash_mla_interface.py and csrc/api/dense_decode.h (dense, SM90).
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from core_model.cache import PAGE
from core_model.generation.merged import Step
from core_model.parallel.device import nvidia_capability

FLASH_MLA_WIDTHS = (512, 64)  # latent and rope: V3's
HOPPER = (9, 0)


class LatentKernel(Protocol):
    """Attention of queries over the open rows of a step's cache, of which kv is layer `index`'s."""

    name: str
    page: int  # rows of a cache hold a multiple of so many positions

    def attend(self, q_BTHC: Tensor, kv_BSC: Tensor, step: Step, index: int) -> Tensor:
        """Weighted sums of latents [B, T, H, L]; the queries hold the scale of the scores."""
        ...


class Products:
    """Two products and a softmax, of rows up to the furthest position."""

    name, page = "products over the latent cache", 1

    def __init__(self, latent: int) -> None:
        self._latent = latent

    def attend(self, q_BTHC: Tensor, kv_BSC: Tensor, step: Step, index: int) -> Tensor:
        batch, length, heads, _ = q_BTHC.shape
        # Y: queries by heads. As the transposed right side, the cache takes up to four times as long on CPU.
        scores_BYS = torch.bmm(kv_BSC, q_BTHC.flatten(1, 2).transpose(1, 2)).transpose(1, 2)
        if step.mask is not None:
            scores_BYS = (scores_BYS.unflatten(1, (length, heads)) + step.mask).flatten(1, 2)
        probs_BYS = scores_BYS.softmax(dim=-1, dtype=torch.float32).to(kv_BSC.dtype)
        return torch.bmm(probs_BYS, kv_BSC[..., : self._latent]).view(batch, length, heads, -1)


class FlashMLA:
    """DeepSeek's kernel, each row up to its own length. module: `flash_mla`, or what has its functions."""

    name, page = "FlashMLA", PAGE

    def __init__(self, module: Any) -> None:
        self._module = module
        self._otherwise = Products(FLASH_MLA_WIDTHS[0])

    def attend(self, q_BTHC: Tensor, kv_BSC: Tensor, step: Step, index: int) -> Tensor:
        if not step.cache.is_paged:
            return self._otherwise.attend(q_BTHC, kv_BSC, step, index)
        if "flash_mla" not in step.shared:  # once a step: it depends on the rows' lengths, and not on the layer
            step.shared["flash_mla"] = self._plan(q_BTHC, step)
        table, lengths, metadata, splits = step.shared["flash_mla"]
        # Queries are the last positions of their row, so that causal, aligned to its end, is what each may see.
        out, _ = self._module.flash_mla_with_kvcache(
            q_BTHC.contiguous(),
            step.cache.pages(index),
            table,
            lengths,
            FLASH_MLA_WIDTHS[0],
            metadata,
            splits,
            softmax_scale=1.0,
            causal=True,
        )
        return out

    def _plan(self, q_BTHC: Tensor, step: Step) -> tuple[Tensor, Tensor, Any, Any]:
        """Table of pages [B, pages], lengths [B], and FlashMLA's own plan for them."""
        lengths = (step.position_ids[:, -1] + 1).to(torch.int32)
        length, heads = q_BTHC.shape[1:3]
        # Queries of a key head (all heads share one) and key heads; later releases take and need nothing.
        metadata, splits = self._module.get_mla_metadata(lengths, length * heads, 1)
        return step.cache.page_table(), lengths, metadata, splits


def latent_kernel(device: torch.device, dtype: torch.dtype, latent: int, rope: int) -> LatentKernel:
    """The kernel for a model's widths: the one place that chooses."""
    module = flash_mla() if flash_mla_serves(nvidia_capability(device), dtype, latent, rope) else None
    return Products(latent) if module is None else FlashMLA(module)


def flash_mla_serves(capability: tuple[int, int] | None, dtype: torch.dtype, latent: int, rope: int) -> bool:
    """Whether FlashMLA's dense decoding has a kernel: Hopper alone, V3's widths, bf16."""
    return capability == HOPPER and dtype == torch.bfloat16 and (latent, rope) == FLASH_MLA_WIDTHS


@functools.cache
def flash_mla() -> ModuleType | None:
    """The package, where it is installed and loads; asked once."""
    try:
        return importlib.import_module("flash_mla")
    except (ImportError, OSError):  # OSError: built against another CUDA
        return None
