"""What queries see over a transformers cache, and the masks and positions that a forward refuses.

Shape suffixes: B batch, T query tokens, S cached positions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def refuse_other_shapes(
    position_ids: Tensor | None, attention_mask: Tensor | None, batch: int, length: int, past: int
) -> None:
    """Raises: ValueError: position_ids that are not [B or 1, T], or an attention_mask that is not [B, past + T]."""
    if position_ids is not None and position_ids.shape not in ((batch, length), (1, length)):
        raise ValueError(f"position_ids must be [{batch}, {length}], not {list(position_ids.shape)}")
    if attention_mask is not None and attention_mask.shape != (batch, past + length):
        raise ValueError(f"attention_mask must be [{batch}, {past + length}], not {list(attention_mask.shape)}")


def refuse_packed(position_ids: Tensor | None, attention_mask: Tensor | None, past: int) -> None:
    """Raises: ValueError: a document begins behind another one; padding may have any positions."""
    if position_ids is None:
        return
    starts, length = position_ids == 0, position_ids.shape[1]
    if attention_mask is None:
        behind = torch.arange(past, past + length, device=starts.device) > 0
    else:
        real = attention_mask.bool()
        behind = (real & (real.cumsum(dim=1) > 1))[:, past:]
    if (starts & behind).any():
        raise ValueError("positions restart behind a document: over a cache its tokens would be seen")


def visible_in_cache(
    attention_mask: Tensor | None, batch: int, length: int, past: int, device: torch.device
) -> Tensor | None:
    """What queries past .. past + length see of a cache, bool [B, 1, T, S]; None for plain causal or everything."""
    padded = attention_mask is not None and not attention_mask.bool().all()
    if not padded and (past == 0 or length == 1):
        return None
    queries = torch.arange(past, past + length, device=device)
    visible = (torch.arange(past + length, device=device) <= queries[:, None]).expand(batch, 1, -1, -1)
    if padded:
        assert attention_mask is not None
        keys = attention_mask.bool()[:, None, None, :]
        # A padded query sees nothing real; let it see itself, so that its softmax is finite.
        itself = torch.arange(past + length, device=device) == queries[:, None]
        visible = (visible & keys) | itself
    return visible
