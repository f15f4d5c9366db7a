"""RMSNorm, the only normalisation of V3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from core_model.autograd import differentiable_once
from core_model.fused import fused
from core_model.native import training
from core_model.recompute import derived


@fused
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x / rms(x) * weight of rows, in x's dtype, and 1 / rms(x) in fp32 [N, 1], in which all of it is worked out.

    In place: the composite takes 1.6 to 4 times as long on CPU (LABBOOK.md).
    """
    unit = x.to(torch.float32, copy=True)
    mean_square = torch.linalg.vector_norm(unit, dim=-1, keepdim=True).square_().div_(unit.shape[-1])
    inverse = mean_square.add_(eps).rsqrt_()
    return (unit.mul_(inverse) * weight).to(x.dtype), inverse


@fused
def rms_norm_backward(dy: Tensor, x: Tensor, inverse: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x, in its dtype, and of the weight, fp32 [D]."""
    unit = x.to(torch.float32, copy=True).mul_(inverse)
    grad = dy.to(torch.float32, copy=True)
    product = grad * unit
    dweight = product.sum(0)
    along = product.mul_(weight).sum(-1, keepdim=True).div_(unit.shape[-1])  # no product, which autocast would round
    return grad.mul_(weight).addcmul_(unit, along, value=-1).mul_(inverse).to(x.dtype), dweight


class _RMSNormFunction(torch.autograd.Function):
    """Keeps its input, which the residual stream keeps as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, inverse = rms_norm(x.reshape(-1, x.shape[-1]), weight, eps)
        ctx.save_for_backward(x, inverse, weight)
        return y.view(x.shape)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, weight = ctx.saved_tensors
        dy, rows = (one.reshape(-1, x.shape[-1]) for one in (grads[0], x))
        dx, dweight = rms_norm_backward(dy, rows, inverse, weight)
        return dx.view(x.shape), dweight, None


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
        return _RMSNormFunction.apply(x, weight, self.eps)
