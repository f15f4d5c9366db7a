"""The embedding of tokens, whose gradient compiled code sums where it can."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from core_model.native import training


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight_WD: Tensor) -> Tensor:
        rows = F.embedding(ids, weight_WD)
        ctx.save_for_backward(ids, weight_WD)
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        ids, weight_WD = ctx.saved_tensors
        return None, training.embedding_backward(ids.long().contiguous(), grads[0].contiguous(), weight_WD)


class Embedding(nn.Embedding):
    """ids [...] -> [..., D]; the gradient is compiled where it can be."""

    def forward(self, input: Tensor) -> Tensor:
        trained = self.weight.requires_grad and torch.is_grad_enabled() and type(input) is Tensor and input.numel() > 0
        plain = self.padding_idx is self.max_norm is None and not (self.scale_grad_by_freq or self.sparse)
        if trained and plain and training.serves(self.weight.data, self.weight):
            return _Embedding.apply(input, self.weight)
        return super().forward(input)
