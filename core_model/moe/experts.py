"""Routed experts: rows grouped by expert, two GEMMs an expert, nothing dropped (but what a rank cap leaves out).

Shape suffixes: T tokens, K experts per token, D model, E experts, F expert width, P rows (token, expert) grouped by
expert and padded.

Two implementations behind one function. On CUDA `F.grouped_mm` takes all experts at once. On CPU a loop of plain
GEMMs with a backward of our own, because (figures: LABBOOK.md) oneDNN builds a primitive per shape, so row counts are
padded to a multiple of 32, and because indexing a stacked weight in a loop makes autograd fill and add a full-size
gradient per expert.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core_model.autograd import differentiable_once
from core_model.config import V3Config

ROW_MULTIPLE = 32
FEW_ROWS_MULTIPLE = 4  # where an expert has less than half of that many rows: what is padded is computed


class Rows(NamedTuple):
    """Placement of the T*K (token, expert) pairs in rows grouped by expert.

    token_P: the token of each row; rows that only pad name token 0 and have no pair.
    row_TK: the row of each pair. ends: where each expert's rows end, padding included; behind the last are those of
    pairs that are not kept.
    """

    token_P: Tensor
    row_TK: Tensor
    ends: Tensor


def group_rows(indices_TK: Tensor, experts: int, multiple: int, kept_TK: Tensor | None = None) -> Rows:
    """Group the pairs by expert, each group padded to a multiple of `multiple` rows; order within a group kept.

    Without padding (`multiple` 1) the number of rows is known beforehand, and no step makes a device wait.
    """
    pairs = (indices_TK if kept_TK is None else indices_TK.masked_fill(~kept_TK, experts)).flatten()
    sorted_pairs, order = pairs.sort(stable=True)
    ranks = torch.arange(len(pairs), device=pairs.device)
    ends = torch.searchsorted(sorted_pairs, torch.arange(experts + 1, device=pairs.device), right=True)
    row_TK = torch.empty_like(pairs)
    if multiple == 1:
        row_TK[order] = ranks
        return Rows(order // indices_TK.shape[1], row_TK.view_as(indices_TK), ends[:-1])
    counts = ends.diff(prepend=ends.new_zeros(1))
    padded = (counts + multiple - 1) // multiple * multiple
    padded_ends = padded.cumsum(0)
    shift = (padded_ends - padded) - (ends - counts)  # from rank among all pairs to row
    rows = ranks + shift[sorted_pairs]
    token_P = torch.zeros(int(padded_ends[-1]), dtype=torch.long, device=pairs.device)
    token_P[rows] = order // indices_TK.shape[1]
    row_TK[order] = rows
    return Rows(token_P, row_TK.view_as(indices_TK), padded_ends[:-1])


def weighted_sum(y_PD: Tensor, row_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    """sum_k weights[t, k] * y[row[t, k]], [T, D]; a gather, so that it is deterministic."""
    total = None
    for k in range(row_TK.shape[1]):
        term = y_PD.index_select(0, row_TK[:, k])
        if weights_TK is not None:
            term = term * weights_TK[:, k, None]
        total = term if total is None else total.add_(term)
    assert total is not None
    return total


class _LoopedExperts(torch.autograd.Function):
    """SwiGLU experts over grouped rows, one GEMM an expert and product, weight gradients written in place."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor, rows: Rows) -> Tensor:
        ends = rows.ends.tolist()
        x_PD = x_TD.index_select(0, rows.token_P)
        h_P2F = x_PD.new_empty(len(x_PD), gate_up.shape[1])
        y_PD = torch.empty_like(x_PD)
        start = 0
        for expert, end in enumerate(ends):
            if end > start:
                torch.mm(x_PD[start:end], gate_up[expert].T, out=h_P2F[start:end])
            start = end
        gate, up = h_P2F.chunk(2, dim=-1)
        act_PF = F.silu(gate) * up
        start = 0
        for expert, end in enumerate(ends):
            if end > start:
                torch.mm(act_PF[start:end], down[expert].T, out=y_PD[start:end])
            start = end
        y_PD[start:] = 0  # what is not kept
        ctx.save_for_backward(x_PD, h_P2F, act_PF, y_PD, weights_TK, gate_up, down, rows.token_P, rows.row_TK)
        ctx.ends = ends
        return weighted_sum(y_PD, rows.row_TK, weights_TK.to(x_TD.dtype))

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy_TD,) = grads
        x_PD, h_P2F, act_PF, y_PD, weights_TK, gate_up, down, token_P, row_TK = ctx.saved_tensors
        dweights_TK = torch.stack(
            [(dy_TD * y_PD.index_select(0, row_TK[:, k])).sum(-1, dtype=torch.float32) for k in range(row_TK.shape[1])],
            dim=1,
        )
        weight_P = torch.zeros(len(token_P), dtype=dy_TD.dtype, device=dy_TD.device)  # 0 for rows that only pad
        weight_P[row_TK.flatten()] = weights_TK.to(dy_TD.dtype).flatten()
        dy_PD = dy_TD.index_select(0, token_P).mul_(weight_P[:, None])
        dact_PF = torch.empty_like(act_PF)
        dgate_up, ddown = torch.zeros_like(gate_up), torch.zeros_like(down)
        start = 0
        for expert, end in enumerate(ctx.ends):
            if end > start:
                torch.mm(dy_PD[start:end], down[expert], out=dact_PF[start:end])
                torch.mm(dy_PD[start:end].T, act_PF[start:end], out=ddown[expert])
            start = end
        gate, up = h_P2F.chunk(2, dim=-1)
        dh_P2F = torch.cat((torch.ops.aten.silu_backward(dact_PF * up, gate), dact_PF * F.silu(gate)), dim=-1)
        dx_PD = torch.empty_like(x_PD)
        start = 0
        for expert, end in enumerate(ctx.ends):
            if end > start:
                torch.mm(dh_P2F[start:end], gate_up[expert], out=dx_PD[start:end])
                torch.mm(dh_P2F[start:end].T, x_PD[start:end], out=dgate_up[expert])
            start = end
        dx_PD[start:] = 0
        return weighted_sum(dx_PD, row_TK, None), dweights_TK, dgate_up, ddown, None


def looped_experts(
    x_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor, kept_TK: Tensor | None = None
) -> Tensor:
    """Experts as a loop of GEMMs; the fast way on CPU. [T, D]"""
    multiple = 1
    if x_TD.dtype == torch.bfloat16:
        many = indices_TK.numel() >= len(gate_up) * ROW_MULTIPLE // 2
        multiple = ROW_MULTIPLE if many else FEW_ROWS_MULTIPLE
    rows = group_rows(indices_TK, len(gate_up), multiple, kept_TK)
    return _LoopedExperts.apply(x_TD, weights_TK, gate_up, down, rows)


def grouped_experts(
    x_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor, kept_TK: Tensor | None = None
) -> Tensor:
    """Experts through `F.grouped_mm`; the fast way on CUDA. [T, D]"""
    rows = group_rows(indices_TK, len(gate_up), 1, kept_TK)
    ends = rows.ends.to(torch.int32)

    def taken(x_PD: Tensor) -> Tensor:
        """0 behind the last expert's rows, where products leave what memory held: in y, and backward's in dx."""
        if kept_TK is None:
            return x_PD
        return x_PD.masked_fill((torch.arange(len(x_PD), device=ends.device) >= ends[-1]).unsqueeze(1), 0.0)

    x_PD = taken(x_TD.index_select(0, rows.token_P))
    h_P2F = F.grouped_mm(x_PD, gate_up.transpose(1, 2), offs=ends)
    gate, up = h_P2F.chunk(2, dim=-1)
    y_PD = taken(F.grouped_mm(F.silu(gate) * up, down.transpose(1, 2), offs=ends))
    y_TKD = y_PD.index_select(0, rows.row_TK.flatten()).unflatten(0, rows.row_TK.shape)
    return (y_TKD * weights_TK.to(y_TKD.dtype).unsqueeze(-1)).sum(dim=1)


class Experts(nn.Module):
    """The routed experts of one layer, stacked: gate_up_proj [E, 2F, D], down_proj [E, D, F]."""

    def __init__(self, config: V3Config) -> None:
        super().__init__()
        assert config.n_routed_experts is not None
        experts, width, dim = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, dim))
        self.down_proj = nn.Parameter(torch.empty(experts, dim, width))

    def forward(self, x_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor, kept_TK: Tensor | None = None) -> Tensor:
        """sum_k w_k E_k(x), [T, D]; pairs where `kept_TK` is False are not computed and add nothing."""
        run = looped_experts if x_TD.device.type == "cpu" else grouped_experts
        gate_up, down = self.gate_up_proj.to(x_TD.dtype), self.down_proj.to(x_TD.dtype)
        return run(x_TD, indices_TK, weights_TK, gate_up, down, kept_TK)
