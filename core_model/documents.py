"""Attention that stays inside documents: packed rows and padded rows are the same problem.

Tokens of several documents lie in one row (packing), or a row holds one document and padding. Either way the
documents are gathered into batches of their own, [documents, longest], where plain causal attention is exact and no
mask is needed (padding comes after the last token of each document, so nothing attends to it). Kernels that know no
block-diagonal masks keep their fast path, and the work is that of the documents, not of the whole row. Documents of
like length share a batch: a fifth to a quarter more tokens a second on mixed packs than one batch (LABBOOK.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LENGTH_GROUPS = 3  # batches at the most


@dataclass(frozen=True)
class Documents:
    """Where each document's tokens are.

    gathers: for each group of documents [N, L], for document n and offset l the flat token index (0 where there is
        none).
    slot_BT: for each token its place in the groups laid end to end, flattened; the first place for tokens of no
        document.
    token_X, end_N: the tokens of the documents one after the other, and where each document's end; int32.
    id_BT: the document of each token, -1 for padding.
    real_BT: which tokens are not padding, bool; None when all are. Found once a batch, since the question makes a
        device wait.
    """

    gathers: tuple[Tensor, ...]
    slot_BT: Tensor
    token_X: Tensor
    end_N: Tensor
    id_BT: Tensor
    real_BT: Tensor | None

    def split(self, x_BTHd: Tensor) -> list[Tensor]:
        """[B, T, ...] -> [N, L, ...] for each group"""
        flat = x_BTHd.flatten(0, 1)
        return [flat.index_select(0, gather.flatten()).unflatten(0, gather.shape) for gather in self.gathers]

    def join(self, groups_NLHd: Sequence[Tensor]) -> Tensor:
        """[N, L, ...] of each group -> [B, T, ...]; tokens of no document get some finite value."""
        flat = torch.cat([group.flatten(0, 1) for group in groups_NLHd])
        return flat.index_select(0, self.slot_BT.flatten()).unflatten(0, self.slot_BT.shape)


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
    size = 0
    for members in lengths.argsort(stable=True).tensor_split(min(LENGTH_GROUPS, len(lengths))):
        longest = max(int(lengths[members[-1]]), 1)
        place_of[members] = size + torch.arange(len(members), device=flat.device) * longest
        gathers.append((size, len(members), longest))
        size += len(members) * longest
    offsets = torch.arange(len(tokens), device=flat.device) - (lengths.cumsum(0) - lengths)[flat[tokens]]
    places = place_of[flat[tokens]] + offsets
    gather = torch.zeros(size, dtype=torch.long, device=flat.device)
    gather[places] = tokens
    slots = torch.zeros_like(flat)
    slots[tokens] = places
    groups = tuple(gather[start : start + count * longest].view(count, longest) for start, count, longest in gathers)
    real = ids >= 0 if len(tokens) < len(flat) else None
    ends = lengths.cumsum(0).to(torch.int32)
    return Documents(groups, slots.view(shape), tokens.to(torch.int32), ends, ids, real)
