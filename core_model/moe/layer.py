"""DeepSeekMoE: routed experts chosen per token, plus shared experts that see every token.

Source: V3 report §2.1.2, Eq. 12.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core_model.config import V3Config
from core_model.moe.cap import RankCap
from core_model.moe.experts import Experts
from core_model.moe.gate import Gate, Routing
from core_model.precision import Linear
from core_model.swiglu import swiglu


class MLP(nn.Module):
    """SwiGLU feed-forward, [..., D] -> [..., D]."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(dim, width)
        self.up_proj = Linear(dim, width)
        self.down_proj = Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class MoE(nn.Module):
    """y = sum_k w_k E_k(x) + shared(x); [B, T, D] -> [B, T, D] and the routing of its B*T tokens.

    cap: bounds what one rank's experts compute in training; None (V3) leaves nothing out.
    """

    def __init__(self, config: V3Config) -> None:
        super().__init__()
        self.cap: RankCap | None = None
        self.gate = Gate(config)
        self.experts = Experts(config)
        self.shared_experts = MLP(config.hidden_size, config.moe_intermediate_size * config.n_shared_experts)

    @property
    def is_capped(self) -> bool:
        """Whether a forward now is one of training with a cap; evaluation and generation know none."""
        return self.cap is not None and self.training and torch.is_grad_enabled()

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing]:
        x_TD = x_BTD.flatten(0, 1)
        routing = self.gate(x_TD)
        if self.is_capped:
            assert self.cap is not None
            kept_TK = self.cap.kept(routing.indices_TK, routing.weights_TK, self.gate.experts)
            routing = routing._replace(kept_TK=kept_TK)
        routed = self.experts(x_TD, routing.indices_TK, routing.weights_TK, routing.kept_TK)
        return (routed + self.shared_experts(x_TD)).view_as(x_BTD), routing
