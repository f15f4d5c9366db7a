"""`Linear`: weights follow the activations' dtype.

Parameters stay fp32 (the optimiser's master weights); the model casts its activations once, after the embedding,
and each product runs in the activations' dtype. Which dtype is fastest depends on the processor (`fastest_dtype`).
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from core_model.replaced import is_own, why_not


class Linear(nn.Linear):
    """y = x W^T, no bias, computed in x's dtype whatever the dtype of the weight."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def plain_weight(of: nn.Module, name: str) -> Tensor:
    """The weight [out, in] of `of`'s layer `name`, for a product that is not made by calling the layer.

    Raises:
        ValueError: the layer does something else than multiply by it.
    """
    layer = cast(Linear, getattr(of, name))
    if not is_own(layer, Linear):
        raise ValueError(f"{type(of).__name__}.{name} {why_not(layer)}")
    return layer.weight
