"""Attention that stays inside documents: packed rows and padded rows are the same problem.

Tokens of several documents lie in one row (packing), or a row holds one document and padding. Either way the
documents are gathered into batches of their own, [documents, longest], where plain causal attention is exact and no
mask is needed (padding comes after the last token of each document, so nothing attends to it). Kernels that know no
block-diagonal masks keep their fast path, and the work is that of the documents, not of the whole row. Documents of
like length share a batch: a fifth to a quarter more tokens a second on mixed packs than one batch (LABBOOK.md).

Kernels that do know documents (core_model/attention_kernels.py) take them end to end with their bounds, or as a mask
of blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

LENGTH_GROUPS = 3  # batches at the most
BLOCK = 128  # queries and keys in a block of FlexAttention's mask


@dataclass(frozen=True)
class Documents:
    """Where each document's tokens are.

    gathers: for each group of documents [N, L], for document n and offset l the flat token index (0 where there is
        none).
    slot_BT: for each token its place in the groups laid end to end, flattened; the first place for tokens of no
        document.
    token_X, bound_M: the tokens of the documents one after the other, and where each document's begin and end: 0, the
        end of the first, of the second, ...; int32.
    longest: tokens of the longest document. Like `real_BT` found once a batch: to ask makes a device wait.
    id_BT: the document of each token, -1 for padding.
    real_BT: which tokens are not padding, bool; None when all are. Found once a batch, since the question makes a
        device wait.
    """

    gathers: tuple[Tensor, ...]
    slot_BT: Tensor
    token_X: Tensor
    bound_M: Tensor
    longest: int
    id_BT: Tensor
    real_BT: Tensor | None

    @property
    def end_N(self) -> Tensor:
        """Where each document's tokens end; int32."""
        return self.bound_M[1:]

    def split(self, x_BTHd: Tensor) -> list[Tensor]:
        """[B, T, ...] -> [N, L, ...] for each group"""
        flat = x_BTHd.flatten(0, 1)
        return [flat.index_select(0, gather.flatten()).unflatten(0, gather.shape) for gather in self.gathers]

    def join(self, groups_NLHd: Sequence[Tensor]) -> Tensor:
        """[N, L, ...] of each group -> [B, T, ...]; tokens of no document get some finite value."""
        flat = torch.cat([group.flatten(0, 1) for group in groups_NLHd])
        return flat.index_select(0, self.slot_BT.flatten()).unflatten(0, self.slot_BT.shape)

    def pack(self, x_BTHd: Tensor) -> Tensor:
        """[B, T, ...] -> [X, ...], the documents end to end; a view where no token is padding."""
        flat = x_BTHd.flatten(0, 1)
        return flat if self.real_BT is None else flat.index_select(0, self.token_X)

    def unpack(self, x_XHd: Tensor) -> Tensor:
        """[X, ...] -> [B, T, ...]; zeros for tokens of no document."""
        if self.real_BT is None:
            return x_XHd.unflatten(0, self.id_BT.shape)
        flat = x_XHd.new_zeros(self.id_BT.numel(), *x_XHd.shape[1:])
        return flat.index_copy(0, self.token_X.long(), x_XHd).unflatten(0, self.id_BT.shape)

    @cached_property
    def block_mask(self) -> BlockMask:
        """FlexAttention's: which blocks of keys each block of queries reads, and which of these need no mask.

        Made from the first and last document of each block and never from pairs of tokens: at 128K tokens a row, that
        is 1024 blocks squared in place of 17e9 pairs. Padding sees itself, so that its softmax is finite.
        """
        from torch.nn.attention.flex_attention import BlockMask

        id_BT = self.id_BT
        length = id_BT.shape[1]
        blocks = -(-length // BLOCK)
        beyond = blocks * BLOCK - length
        # Padding counts to the document before it here: along a row the numbers never fall.
        order_BIK = F.pad(id_BT.cummax(dim=1).values, (0, beyond), mode="replicate").unflatten(1, (blocks, BLOCK))
        first_BI, last_BI = order_BIK[..., 0], order_BIK[..., -1]
        read_BIJ = (last_BI[:, None, :] >= first_BI[:, :, None]).tril()
        # Blocks of one document and nothing else (-2 stands for what is beyond the row), the keys' before the queries'.
        id_BIK = F.pad(id_BT, (0, beyond), value=-2).unflatten(1, (blocks, BLOCK))
        low_BI, high_BI = id_BIK.amin(dim=-1), id_BIK.amax(dim=-1)
        one_BI = torch.where((low_BI == high_BI) & (low_BI >= 0), low_BI, -1)
        whole_BIJ = ((one_BI[:, None, :] == one_BI[:, :, None]) & (one_BI[:, :, None] >= 0)).tril(-1)

        def seen(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query >= key) & (id_BT[b, query] == id_BT[b, key])

        return BlockMask.from_kv_blocks(
            *_counted(read_BIJ & ~whole_BIJ),
            *_counted(whole_BIJ),
            BLOCK_SIZE=BLOCK,
            mask_mod=seen,
            seq_lengths=(length, length),
        )


def _counted(blocks_BIJ: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, [B, 1, I], and their numbers before others, [B, 1, I, J]."""
    numbers = blocks_BIJ.int().argsort(dim=-1, descending=True, stable=True)
    return blocks_BIJ.sum(dim=-1, dtype=torch.int32).unsqueeze(1), numbers.to(torch.int32).unsqueeze(1)


def document_ids(position_ids: Tensor | None, attention_mask: Tensor | None, shape: tuple[int, int]) -> Tensor | None:
    """Document number of each token [B, T], -1 for padding; None when every row is one whole document.

    A document starts at each row's first token and wherever `position_ids` fall back to 0 inside it.
    """
    batch, length = shape
    restarts = None
    if position_ids is not None and length > 1:
        restarts = position_ids.expand(batch, length) == 0
        if not restarts[:, 1:].any():
            restarts = None
    real = None
    if attention_mask is not None and not attention_mask.bool().all():
        real = attention_mask.bool()
    if restarts is None and real is None:
        return None
    device = position_ids.device if position_ids is not None else attention_mask.device  # type: ignore[union-attr]
    starts = torch.zeros(batch, length, dtype=torch.bool, device=device) if restarts is None else restarts.clone()
    starts[:, 0] = True
    if real is None:
        return starts.flatten().cumsum(0).view(batch, length) - 1
    # A padded row is one document over its real tokens unless positions say otherwise.
    starts &= real
    first = real.int().argmax(dim=1)
    rows = torch.arange(batch, device=device)
    starts[rows, first] |= real.any(dim=1)
    ids = starts.flatten().cumsum(0).view(batch, length) - 1
    return ids.masked_fill(~real, -1)


def find_documents(
    position_ids: Tensor | None, attention_mask: Tensor | None, shape: tuple[int, int]
) -> Documents | None:
    """The documents of a batch, or None when every row is one document and plain causal attention is right."""
    ids = document_ids(position_ids, attention_mask, shape)
    if ids is None:
        return None
    flat = ids.flatten()
    tokens = (flat >= 0).nonzero().squeeze(1)
    lengths = torch.bincount(flat[tokens], minlength=1)
    place_of, gathers = torch.empty_like(lengths), []
    size = longest = 0
    for members in lengths.argsort(stable=True).tensor_split(min(LENGTH_GROUPS, len(lengths))):
        longest = int(lengths[members[-1]])
        padded = max(longest, 1)
        place_of[members] = size + torch.arange(len(members), device=flat.device) * padded
        gathers.append((size, len(members), padded))
        size += len(members) * padded
    offsets = torch.arange(len(tokens), device=flat.device) - (lengths.cumsum(0) - lengths)[flat[tokens]]
    places = place_of[flat[tokens]] + offsets
    gather = torch.zeros(size, dtype=torch.long, device=flat.device)
    gather[places] = tokens
    slots = torch.zeros_like(flat)
    slots[tokens] = places
    groups = tuple(gather[start : start + count * longest].view(count, longest) for start, count, longest in gathers)
    real = ids >= 0 if len(tokens) < len(flat) else None
    bounds = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    return Documents(groups, slots.view(shape), tokens.to(torch.int32), bounds, longest, ids, real)
