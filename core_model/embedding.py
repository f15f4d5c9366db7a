"""The embedding of tokens, whose gradient compiled code sums where it can."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core_model.autograd import differentiable_once
from core_model.native import training


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight_WD: Tensor) -> Tensor:
        rows = F.embedding(ids, weight_WD)
        ctx.save_for_backward(ids)
        ctx.vocabulary = len(weight_WD)
        return rows

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        (ids,) = ctx.saved_tensors
        return None, training.embedding_backward(training.plain(ids.long()), training.plain(grads[0]), ctx.vocabulary)


class Embedding(nn.Embedding):
    """ids [...] -> [..., D]; the gradient is compiled where it can be."""

    def forward(self, input: Tensor) -> Tensor:
        trained = self.weight.requires_grad and torch.is_grad_enabled()
        plain = self.padding_idx is self.max_norm is None and not (self.scale_grad_by_freq or self.sparse)
        if trained and plain and training.serves_embedding(input, self.weight):
            return _Embedding.apply(input, self.weight)
        return super().forward(input)
