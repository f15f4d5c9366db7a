"""Routed experts: rows grouped by expert, two GEMMs an expert, nothing dropped (but what a rank cap leaves out).

Shape suffixes: T tokens, K experts per token, D model, E experts, F expert width, P rows (token, expert) grouped by
expert and padded.

One function with a backward of its own over two kinds of products. On CUDA `F.grouped_mm` takes all experts at once. On
CPU it is a loop of plain GEMMs, over row counts padded to a multiple of 32, since oneDNN builds a primitive per shape
(LABBOOK.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core_model.autograd import differentiable_once
from core_model.config import V3Config
from core_model.fused import fused
from core_model.parallel.device import forgets_empty_groups
from core_model.precision import autocast_dtype
from core_model.swiglu import weighted_activation, weighted_gradients

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


@fused
def gathered_sum(y_PD: Tensor, row_TK: Tensor, kept_TK: Tensor | None) -> Tensor:
    """sum_k y[row[t, k]] over the pairs that are kept, [T, D]; a gather, so that it is deterministic."""
    total = None
    for k in range(row_TK.shape[1]):
        term = y_PD.index_select(0, row_TK[:, k])
        if kept_TK is not None:
            term = term.masked_fill(~kept_TK[:, k, None], 0)
        total = term if total is None else total.add_(term)
    assert total is not None
    return total


class Products(Protocol):
    """The GEMMs of all experts over rows grouped by expert. What lies behind the last group is left as memory was."""

    def times_transposed(self, x_PI: Tensor, weight_EOI: Tensor) -> Tensor:
        """x W^T, [P, O]."""
        ...

    def times(self, x_PO: Tensor, weight_EOI: Tensor) -> Tensor:
        """x W, [P, I]."""
        ...

    def of_rows(self, a_PO: Tensor, b_PI: Tensor) -> Tensor:
        """a^T b of each group, [E, O, I]."""
        ...


class LoopedProducts:
    """One GEMM after the other; the fast way on CPU. ends: where each expert's rows end."""

    def __init__(self, ends: Tensor) -> None:
        self.ends: list[int] = ends.tolist()

    def groups(self) -> Iterator[tuple[int, slice]]:
        start = 0
        for expert, end in enumerate(self.ends):
            if end > start:
                yield expert, slice(start, end)
            start = end

    def times_transposed(self, x_PI: Tensor, weight_EOI: Tensor) -> Tensor:
        y_PO = x_PI.new_empty(len(x_PI), weight_EOI.shape[1])
        for expert, rows in self.groups():
            torch.mm(x_PI[rows], weight_EOI[expert].T, out=y_PO[rows])
        return y_PO

    def times(self, x_PO: Tensor, weight_EOI: Tensor) -> Tensor:
        y_PI = x_PO.new_empty(len(x_PO), weight_EOI.shape[2])
        for expert, rows in self.groups():
            torch.mm(x_PO[rows], weight_EOI[expert], out=y_PI[rows])
        return y_PI

    def of_rows(self, a_PO: Tensor, b_PI: Tensor) -> Tensor:
        products_EOI = a_PO.new_zeros(len(self.ends), a_PO.shape[1], b_PI.shape[1])
        for expert, rows in self.groups():
            torch.mm(a_PO[rows].T, b_PI[rows], out=products_EOI[expert])
        return products_EOI


class GroupedProducts:
    """`F.grouped_mm` of all experts at once, which makes nothing wait; the fast way on CUDA. ends: as above."""

    def __init__(self, ends: Tensor) -> None:
        self.ends = ends.to(torch.int32)
        self.forgets_empty = forgets_empty_groups(ends.device)

    def times_transposed(self, x_PI: Tensor, weight_EOI: Tensor) -> Tensor:
        return F.grouped_mm(x_PI, weight_EOI.transpose(1, 2), offs=self.ends)

    def times(self, x_PO: Tensor, weight_EOI: Tensor) -> Tensor:
        return F.grouped_mm(x_PO, weight_EOI, offs=self.ends)

    def of_rows(self, a_PO: Tensor, b_PI: Tensor) -> Tensor:
        if not len(a_PO):  # which grouped_mm refuses on CUDA
            return a_PO.new_zeros(len(self.ends), a_PO.shape[1], b_PI.shape[1])
        products_EOI = F.grouped_mm(a_PO.T, b_PI, offs=self.ends)
        if self.forgets_empty:
            is_empty_E = self.ends.diff(prepend=self.ends.new_zeros(1)) == 0
            products_EOI.masked_fill_(is_empty_E[:, None, None], 0)
        return products_EOI


def _in_rows(weights_TK: Tensor, token_P: Tensor, row_TK: Tensor) -> Tensor:
    """Of each row the weight of its pair, [P]; 0 for rows that only pad."""
    return weights_TK.new_zeros(len(token_P)).scatter_(0, row_TK.flatten(), weights_TK.flatten())


class _Experts(torch.autograd.Function):
    """SwiGLU experts over grouped rows, their weight gradients written in place.

    A pair's weight goes into the activation, which is narrower than the output that it would otherwise scale, and its
    gradient needs no output then. What is kept are tokens and SwiGLU's inputs, no rows.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weights_TK: Tensor,
        gate_up: Tensor,
        down: Tensor,
        rows: Rows,
        kept_TK: Tensor | None,
        products: Products,
    ) -> Tensor:
        h_P2F = products.times_transposed(x_TD.index_select(0, rows.token_P), gate_up)
        weight_P = _in_rows(weights_TK.to(x_TD.dtype), rows.token_P, rows.row_TK)
        y_PD = products.times_transposed(weighted_activation(h_P2F, weight_P), down)
        ctx.save_for_backward(x_TD, h_P2F, weights_TK, gate_up, down, rows.token_P, rows.row_TK, kept_TK)
        ctx.products = products
        return gathered_sum(y_PD, rows.row_TK, kept_TK)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy_TD,) = grads
        x_TD, h_P2F, weights_TK, gate_up, down, token_P, row_TK, kept_TK = ctx.saved_tensors
        products: Products = ctx.products
        need_x, need_weights, need_gate_up, need_down = ctx.needs_input_grad[:4]
        dx_TD = dweights_TK = dgate_up = ddown = None
        weight_P = _in_rows(weights_TK.to(dy_TD.dtype), token_P, row_TK)
        dy_PD = dy_TD.index_select(0, token_P)
        dh_P2F, dweight_P, act_PF = weighted_gradients(products.times(dy_PD, down), h_P2F, weight_P)
        if need_weights:
            dweights_TK = dweight_P[row_TK]
            if kept_TK is not None:
                dweights_TK.masked_fill_(~kept_TK, 0)
        if need_down:
            ddown = products.of_rows(dy_PD, act_PF)
        del dy_PD, act_PF
        if need_gate_up:
            dgate_up = products.of_rows(dh_P2F, x_TD.index_select(0, token_P))
        if need_x:
            dx_TD = gathered_sum(products.times(dh_P2F, gate_up), row_TK, kept_TK)
        return dx_TD, dweights_TK, dgate_up, ddown, None, None, None


def looped_experts(
    x_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor, kept_TK: Tensor | None = None
) -> Tensor:
    """Experts as a loop of GEMMs; the fast way on CPU. [T, D]"""
    multiple = 1
    if x_TD.dtype == torch.bfloat16:
        many = indices_TK.numel() >= len(gate_up) * ROW_MULTIPLE // 2
        multiple = ROW_MULTIPLE if many else FEW_ROWS_MULTIPLE
    rows = group_rows(indices_TK, len(gate_up), multiple, kept_TK)
    return _Experts.apply(x_TD, weights_TK, gate_up, down, rows, kept_TK, LoopedProducts(rows.ends))


def grouped_experts(
    x_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor, kept_TK: Tensor | None = None
) -> Tensor:
    """Experts through `F.grouped_mm`; the fast way on CUDA. [T, D]"""
    rows = group_rows(indices_TK, len(gate_up), 1, kept_TK)
    return _Experts.apply(x_TD, weights_TK, gate_up, down, rows, kept_TK, GroupedProducts(rows.ends))


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
        dtype = autocast_dtype(x_TD.device) or x_TD.dtype  # autocast itself knows no product that is written in place
        gate_up, down = self.gate_up_proj.to(dtype), self.down_proj.to(dtype)
        return run(x_TD.to(dtype), indices_TK, weights_TK, gate_up, down, kept_TK)
