"""DeepSeekMoE: routed experts chosen per token, plus shared experts that see every token.

Source: V3 report §2.1.2, Eq. 12.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from core_model.config import V3Config
from core_model.moe.experts import Experts
from core_model.moe.gate import Gate, Routing
from core_model.precision import Linear


class MLP(nn.Module):
    """SwiGLU feed-forward, [..., D] -> [..., D]."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(dim, width)
        self.up_proj = Linear(dim, width)
        self.down_proj = Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MoE(nn.Module):
    """y = sum_k w_k E_k(x) + shared(x); [B, T, D] -> [B, T, D] and the routing of its B*T tokens."""

    def __init__(self, config: V3Config) -> None:
        super().__init__()
        self.gate = Gate(config)
        self.experts = Experts(config)
        self.shared_experts = MLP(config.hidden_size, config.moe_intermediate_size * config.n_shared_experts)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing]:
        x_TD = x_BTD.flatten(0, 1)
        routing = self.gate(x_TD)
        routed = self.experts(x_TD, routing.indices_TK, routing.weights_TK)
        return (routed + self.shared_experts(x_TD)).view_as(x_BTD), routing
