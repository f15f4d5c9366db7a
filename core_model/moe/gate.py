"""The router: sigmoid scores, a bias used for selection only, node-limited top-k.

Shape suffixes: T tokens, D model, E experts, K experts per token, G groups.
Source: V3 report Eq. 12-16 and §2.1.2; deepseek-ai/DeepSeek-V3 inference/model.py (`Gate`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core_model.config import V3Config
from core_model.precision import KeepsFp32Buffers, autocast_to
from core_model.recompute import derived


class Routing(NamedTuple):
    """indices_TK (int64), weights_TK (fp32, with gradient), scores_TE (fp32 sigmoid, with gradient).

    kept_TK: False for the pairs that a rank cap left out of the experts' work; None where there is no cap.
    """

    indices_TK: Tensor
    weights_TK: Tensor
    scores_TE: Tensor
    kept_TK: Tensor | None = None


def top_k_low_index(x: Tensor, k: int) -> Tensor:
    """Indices of the k largest of the last dimension, ties to the lower index (torch.topk leaves ties open)."""
    # A copy, since a view would keep the indices of all experts in memory until backward.
    return x.sort(dim=-1, descending=True, stable=True).indices[..., :k].contiguous()


class Gate(KeepsFp32Buffers):
    """Chooses K of E experts for every token; all of it in fp32.

    The bias is a persistent buffer, never touched by autograd: `balance.update_routing_bias` moves it by the load in
    `tokens_per_expert`, which it then resets. The load is counted by whoever runs the layers (`count`), not in forward:
    a forward that runs again for backward would count it twice. `sequence_loss` holds the sum of the sequence-wise
    balance loss over as many sequences, [2], for the statistics, `left_out` how many pairs a rank cap left out and of
    how many, [2].
    """

    fp32_buffers = ("e_score_correction_bias",)
    e_score_correction_bias: Tensor

    def __init__(self, config: V3Config) -> None:
        super().__init__()
        assert config.n_routed_experts is not None
        self.experts = config.n_routed_experts
        self.top_k = config.num_experts_per_tok
        self.groups, self.top_groups = config.n_group, config.topk_group
        self.normalise, self.scaling = config.norm_topk_prob, config.routed_scaling_factor
        self.weight = nn.Parameter(torch.zeros(self.experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(self.experts, dtype=torch.float32))
        # No buffers: DistributedDataParallel would overwrite what a process has counted by what the first one has, and
        # `to_empty` would fill them with anything. They follow what is counted from device to device.
        self.tokens_per_expert = torch.zeros(self.experts, dtype=torch.int64, device="cpu")
        self.sequence_loss = torch.zeros(2, dtype=torch.float32, device="cpu")
        self.left_out = torch.zeros(2, dtype=torch.int64, device="cpu")

    def select(self, scores_TE: Tensor) -> Tensor:
        """indices_TK by biased score, within the `topk_group` groups whose two best sum highest."""
        biased = scores_TE + self.e_score_correction_bias
        if self.groups > 1:
            grouped_TGE = biased.unflatten(-1, (self.groups, -1))
            group_scores = grouped_TGE.topk(2, dim=-1).values.sum(dim=-1)
            kept = torch.zeros_like(group_scores, dtype=torch.bool)
            kept.scatter_(1, top_k_low_index(group_scores, self.top_groups), True)
            # -inf, not 0: a fresh model's biased scores may be negative.
            biased = grouped_TGE.masked_fill(~kept.unsqueeze(-1), float("-inf")).flatten(1)
        return top_k_low_index(biased, self.top_k)

    def forward(self, x_TD: Tensor) -> Routing:
        with autocast_to(x_TD.device, None):  # a trainer's autocast would route in bf16
            return self.route(derived(Tensor.float, x_TD))

    def route(self, x_TD: Tensor) -> Routing:
        """`forward` of fp32 states, autocast being off."""
        scores_TE = F.linear(x_TD, self.weight.float()).sigmoid()
        indices_TK = self.select(scores_TE.detach())
        weights_TK = scores_TE.gather(1, indices_TK)
        if self.normalise:
            weights_TK = weights_TK / (weights_TK.sum(dim=-1, keepdim=True) + 1e-20)
        return Routing(indices_TK, weights_TK * self.scaling, scores_TE)

    @torch.no_grad()
    def count(self, routing: Routing, real_BT: Tensor | None = None) -> None:
        """Add a training forward's choices to the load; tokens that are padding (`real_BT` False) are none.

        What a rank cap left out was chosen: were it not counted, the bias would take an overfull rank for one that is
        just full, and hardly move what made it so.
        """
        if getattr(self, "_is_replica", False):
            raise RuntimeError("nn.DataParallel forgets what its replicas count: use DistributedDataParallel")
        if real_BT is None:
            ones_TK = torch.ones_like(routing.indices_TK)
        else:
            ones_TK = real_BT.flatten().long().unsqueeze(1).expand_as(routing.indices_TK)
        # Not bincount and no boolean index, which make a device wait for their size.
        self.tokens_per_expert = self.tokens_per_expert.to(ones_TK.device)
        self.tokens_per_expert.scatter_add_(0, routing.indices_TK.flatten(), ones_TK.flatten())
        if routing.kept_TK is not None:
            self.left_out = self.left_out.to(ones_TK.device)
            self.left_out += torch.stack((ones_TK.masked_fill(routing.kept_TK, 0).sum(), ones_TK.sum()))

    @torch.no_grad()
    def note_sequence_loss(self, mean: Tensor, sequences: int) -> None:
        """Add a micro-batch's balance loss, a mean over its sequences."""
        self.sequence_loss = self.sequence_loss.to(mean.device)
        self.sequence_loss[0] += mean * sequences
        self.sequence_loss[1] += sequences

    def forget(self) -> None:
        """Start counting anew, once the routing bias has followed the load."""
        for counter in (self.tokens_per_expert, self.sequence_loss, self.left_out):
            counter.zero_()
