"""One transformer block: attention and feed-forward, each behind a norm and a residual.

Shape suffixes: B batch, T tokens, D model.
"""

from __future__ import annotations

from torch import Tensor, nn

from core_model.attention import AttentionContext, MultiHeadLatentAttention
from core_model.config import V3Config
from core_model.moe import MLP, MoE
from core_model.moe.gate import Routing
from core_model.native import decoder as compiled
from core_model.norm import RMSNorm


class DecoderLayer(nn.Module):
    """[B, T, D] -> [B, T, D] and the routing of its tokens (None for a dense layer)."""

    def __init__(self, config: V3Config, layer_index: int) -> None:
        super().__init__()
        self.self_attn = MultiHeadLatentAttention(config, layer_index)
        self.mlp: nn.Module = (
            MoE(config) if config.is_moe_layer(layer_index) else MLP(config.hidden_size, config.intermediate_size)
        )
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> tuple[Tensor, Routing | None]:
        parts = compiled.served(self, x_BTD, context)
        if parts is not None:
            y_BTD, routing = compiled.run(parts, x_BTD, context)
            return y_BTD, None if routing is None else Routing(*routing)
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), context)
        normed_BTD = self.post_attention_layernorm(x_BTD)
        if isinstance(self.mlp, MoE):
            mlp_BTD, routing = self.mlp(normed_BTD)
            return x_BTD + mlp_BTD, routing
        return x_BTD + self.mlp(normed_BTD), None
