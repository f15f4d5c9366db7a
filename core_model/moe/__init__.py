"""DeepSeekMoE: the router, the experts, their composition and balance."""

from core_model.moe.cap import RankCap
from core_model.moe.layer import MLP, MoE

__all__ = ["MLP", "MoE", "RankCap"]
