"""SwiGLU between its projections: silu(gate) * up, whose backward works from these two.

Shape suffixes: P rows, F width.
Source: V3 report §3.3.3, which keeps SwiGLU's inputs and makes its output again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from core_model.autograd import differentiable_once
from core_model.fused import fused


@fused
def activation(gate_PF: Tensor, up_PF: Tensor) -> Tensor:
    return F.silu(gate_PF) * up_PF


@fused
def gradients(dact_PF: Tensor, gate_PF: Tensor, up_PF: Tensor) -> tuple[Tensor, Tensor]:
    """Of gate and up."""
    return torch.ops.aten.silu_backward(dact_PF * up_PF, gate_PF), dact_PF * F.silu(gate_PF)


@fused
def weighted_activation(h_P2F: Tensor, weight_P: Tensor) -> Tensor:
    """silu(gate) * up * weight of [gate, up] side by side, [P, F]."""
    gate, up = h_P2F.chunk(2, dim=-1)
    return (F.silu(gate) * up).mul_(weight_P.unsqueeze(-1))


@fused
def weighted_gradients(dact_PF: Tensor, h_P2F: Tensor, weight_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of [gate, up] and, in fp32, of the weight; and the weighted activation once more."""
    gate, up = h_P2F.chunk(2, dim=-1)
    silu = F.silu(gate)
    act_PF = silu * up
    dweight_P = (dact_PF * act_PF).sum(dim=-1, dtype=torch.float32)
    weight_P1 = weight_P.unsqueeze(-1)
    dact_PF = dact_PF * weight_P1
    dh_P2F = torch.cat((torch.ops.aten.silu_backward(dact_PF * up, gate), dact_PF * silu), dim=-1)
    return dh_P2F, dweight_P, act_PF.mul_(weight_P1)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return activation(_rows(gate), _rows(up)).view(gate.shape)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        dgate, dup = gradients(*map(_rows, (grads[0], gate, up)))
        return dgate.view(gate.shape), dup.view(up.shape)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, all [..., F]."""
    if torch._C._functorch.peek_interpreter_stack() is not None:  # vmap and the like see operations
        return F.silu(gate) * up
    return _SwiGLU.apply(gate, up)
