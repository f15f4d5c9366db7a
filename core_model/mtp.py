"""Multi-token prediction: module k predicts token i + k + 1 from position i, keeping the causal chain.

Shape suffixes: B batch, T tokens, D model.
Source: V3 report §2.2, Eq. 21-25, in the convention of the released weights (README_WEIGHTS.md, and
reference implementations that reproduce their acceptance): the projection takes [embedding; hidden state], the
reverse of Eq. 21; the hidden state is the one after the model's final norm, or after the previous module's
`shared_head.norm`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core_model.attention import AttentionContext
from core_model.config import V3Config
from core_model.decoder import DecoderLayer
from core_model.moe.gate import Routing
from core_model.norm import RMSNorm
from core_model.precision import Linear
from core_model.recompute import derived


class SharedHead(nn.Module):
    """The norm before the output head, which belongs to the main model."""

    def __init__(self, config: V3Config) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class MTPLayer(DecoderLayer):
    """MTP module of one depth, stored as layer `num_hidden_layers + depth - 1`."""

    def __init__(self, config: V3Config, layer_index: int) -> None:
        super().__init__(config, layer_index)
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = Linear(2 * config.hidden_size, config.hidden_size)
        self.shared_head = SharedHead(config)

    def forward(  # type: ignore[override]  # FSDP gathers a module's weights where it is called, so all are used in here
        self, hidden_BTD: Tensor, embedding_BTD: Tensor, context: AttentionContext
    ) -> tuple[Tensor, Routing | None]:
        """Normed state for the shared head, and the routing.

        Args:
            hidden_BTD: at position i, the normed state of the previous depth.
            embedding_BTD: at position i, the embedding of token i + depth.
        """
        joined = derived(join, self.enorm(embedding_BTD), self.hnorm(hidden_BTD))
        x_BTD, routing = super().forward(self.eh_proj(joined), context)
        return self.shared_head.norm(x_BTD), routing


def join(embedding_BTD: Tensor, hidden_BTD: Tensor) -> Tensor:
    return torch.cat((embedding_BTD, hidden_BTD), dim=-1)


def shift_left(x_BT: Tensor, by: int, fill: int) -> Tensor:
    """Column i takes column i + by; the last `by` columns take `fill`."""
    tail = x_BT.new_full((x_BT.shape[0], min(by, x_BT.shape[1])), fill)
    return torch.cat((x_BT[:, by:], tail), dim=1)


def targets(labels_BT: Tensor, depth: int, document_BT: Tensor | None, ignore: int) -> Tensor:
    """Label of each position at a depth: the token depth + 1 to its right, `ignore` where that leaves the document.

    depth 0 is the main model. `document_BT` numbers the documents of packed rows (None: one a row).
    """
    shifted = shift_left(labels_BT, depth + 1, ignore)
    if document_BT is None:
        return shifted
    inside = shift_left(document_BT, depth + 1, -2) == document_BT
    return shifted.masked_fill(~inside, ignore)
