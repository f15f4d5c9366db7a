"""A bound on the rows of an expert-parallel rank: of the (token, expert) pairs beyond it, the lightest are left out.

A fresh router may send most of a batch to one rank, which then runs out of memory (deepseek-ai/DeepEP#99). V3 drops
nothing, so that this is off unless a recipe asks for it; V2 trained with such a bound, of factor 1 (V2 report, the
token-dropping strategy). One process that holds the experts of all ranks has no less memory to find: there it shows
what the bound does to training.

Shape suffixes: T tokens, K experts per token, E experts, P (token, expert) pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from core_model.config import V3Config


@dataclass(frozen=True)
class RankCap:
    """At most ceil(factor * pairs / ranks) pairs of a forward on each of `ranks` equal runs of experts.

    ranks: expert-parallel ranks, rank r with the experts from r * E / ranks on. factor: times what falls on a rank
    whose load is even, so that below 1 an even load too would lose pairs. Padding takes rows like any other token.

    Raises:
        ValueError: fewer than 2 ranks, or a factor that is no number, below 1 or not finite.
    """

    ranks: int
    factor: float

    def __post_init__(self) -> None:
        if type(self.ranks) is not int or self.ranks < 2:
            raise ValueError(f"a rank cap needs 2 ranks or more, not {self.ranks!r}")
        if type(self.factor) not in (int, float) or not (1 <= self.factor < math.inf):
            raise ValueError(f"the factor of a rank cap must be finite and >= 1, not {self.factor!r}")

    def check(self, config: V3Config) -> None:
        """Whether a model's experts can be placed so.

        Raises:
            ValueError: the model routes nothing, or its experts do not divide among the ranks.
        """
        layers = config.num_hidden_layers + config.num_nextn_predict_layers
        if not any(map(config.is_moe_layer, range(layers))):
            raise ValueError("a rank cap needs experts, and no layer of this model has any")
        assert config.n_routed_experts is not None
        if config.n_routed_experts % self.ranks:
            raise ValueError(f"{config.n_routed_experts} experts do not divide among the {self.ranks} ranks of the cap")

    def pairs(self, total: int) -> int:
        """Most pairs of a rank, of `total` in all; it follows from shapes alone, so that no device is waited for."""
        return math.ceil(Fraction(str(self.factor)) * total / self.ranks)  # 1.1 as written: 11 of 40 on 4, not 12

    @torch.no_grad()
    def kept(self, indices_TK: Tensor, weights_TK: Tensor, experts: int) -> Tensor:
        """bool [T, K]: the heaviest pairs of each rank; of equal ones those of lower tokens, then of earlier choices.

        Weights that remain are not made up to their sum of before. A token is then what it is in evaluation less the
        lightest of its terms, rather than with other terms grown by amounts that depend on its neighbours; and one
        that loses all of its experts keeps the shared one alone, where dividing by the rest would be 0/0. Gradients
        follow: none through what was left out, and through the weights that remain that of the router's own choice.
        """
        order = weights_TK.flatten().sort(descending=True, stable=True).indices
        rank_P, by_rank = (indices_TK.flatten()[order] // (experts // self.ranks)).sort(stable=True)
        starts = torch.searchsorted(rank_P, torch.arange(self.ranks, device=rank_P.device))
        place_P = torch.arange(len(rank_P), device=rank_P.device) - starts[rank_P]
        kept = torch.empty_like(rank_P, dtype=torch.bool)
        kept[order[by_rank]] = place_P < self.pairs(len(rank_P))
        return kept.view_as(indices_TK)
