"""`Linear`: weights follow the activations' dtype.

Parameters stay fp32 (the optimiser's master weights); the model casts its activations once, after the embedding,
and each product runs in the activations' dtype. Which dtype is fastest depends on the processor (`fastest_dtype`).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """y = x W^T, no bias, computed in x's dtype whatever the dtype of the weight."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))
