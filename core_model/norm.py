"""RMSNorm, the only normalisation of V3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from core_model.autograd import differentiable_once
from core_model.native import training
from core_model.recompute import derived, drops_derived


class _RMSNormFunction(torch.autograd.Function):
    """Statistics and products in fp32, in place; the composite takes 1.6 to 4 times as long on CPU (LABBOOK.md)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, keep_input: bool) -> Tensor:
        unit = x.to(torch.float32, copy=True)
        mean_square = torch.linalg.vector_norm(unit, dim=-1, keepdim=True).square_().div_(unit.shape[-1])
        inverse = mean_square.add_(eps).rsqrt_()
        unit.mul_(inverse)
        ctx.save_for_backward(x if keep_input else unit, inverse, weight)
        ctx.keep_input = keep_input
        return (unit * weight).to(x.dtype)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        unit, inverse, weight = ctx.saved_tensors
        if ctx.keep_input:
            unit = unit.to(torch.float32, copy=True).mul_(inverse)
        grad = grads[0].to(torch.float32, copy=True)
        dweight = (grad * unit).flatten(0, -2).sum(0)
        grad.mul_(weight)
        along = torch.linalg.vecdot(grad, unit).unsqueeze_(-1).div_(unit.shape[-1])
        dx = grad.addcmul_(unit, along, value=-1).mul_(inverse)
        return dx.to(grads[0].dtype), dweight, None, None


class _CompiledRMSNorm(torch.autograd.Function):
    """One pass each way; half of the time of the operations above, in fp32 on two cores (LABBOOK.md)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = training.plain(x)
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return training.norm(x, weight, eps)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dweight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        return training.norm_backward(x, weight, ctx.eps, training.plain(grads[0]), dweight), dweight, None


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the statistics in fp32, the result in x's dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return derived(self._normalise, x)

    def _normalise(self, x: Tensor) -> Tensor:
        weight = self.weight.float()
        if training.serves(x, weight):
            return _CompiledRMSNorm.apply(x, weight, self.eps)
        return _RMSNormFunction.apply(x, weight, self.eps, drops_derived())
