"""Cross-entropy that never holds [tokens, vocabulary] in fp32.

Shape suffixes: N tokens, D model, W vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core_model.autograd import differentiable_once
from core_model.fused import compiles_on, fused
from core_model.native import training
from core_model.precision import Linear
from core_model.replaced import is_own

IGNORE = -100
CHUNK = 1024  # tokens whose logits exist at once
# On an accelerator as many tokens as have this many logits: the head's gradient is read and written once a chunk, with
# V3's vocabulary more bytes than the logits of 1,024 tokens. Single operations hold six times the 1 GiB of a kernel.
FUSED_LOGITS, SINGLE_LOGITS = 2**29, 2**27


@fused
def loss_and_dlogits(logits_NW: Tensor, label_N1: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Sum of -log p(label), fp32, and its gradient in `dtype`."""
    log_probs = torch.log_softmax(logits_NW.float(), dim=-1)
    picked_N1 = log_probs.gather(1, label_N1)
    dlogits = log_probs.exp_().to(dtype)
    # p - 1 before it is rounded: where p is nearly 1, rounding p would leave nothing of it.
    return -picked_N1.sum(), dlogits.scatter_(1, label_N1, picked_N1.expm1().to(dtype))


@fused
def scaled(x_ND: Tensor, scale: Tensor) -> Tensor:
    """In fp32: rounded to bf16, a scale of 1/3 would weigh the states by 1.002, and the head by 1."""
    return x_ND.float().mul(scale).to(x_ND.dtype)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and gradients of a chunk in one pass, while its logits exist."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_WD: Tensor, labels_N: Tensor, chunk: int) -> Tensor:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        ctx.weight_dtype = weight_WD.dtype
        if training.serves_loss(hidden_ND, weight_WD):
            dhidden = torch.empty_like(hidden_ND, memory_format=torch.contiguous_format) if need_hidden else None
            dweight = torch.empty_like(weight_WD) if need_weight else None
            loss = training.cross_entropy(hidden_ND, weight_WD, labels_N, dhidden, dweight)
            ctx.save_for_backward(dhidden, dweight)
            return torch.tensor(loss, dtype=torch.float32, device=hidden_ND.device)
        weight_WD = weight_WD.to(hidden_ND.dtype)
        dhidden = torch.empty_like(hidden_ND) if need_hidden else None
        dweight = torch.zeros_like(weight_WD, dtype=torch.float32) if need_weight and not len(hidden_ND) else None
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        for start in range(0, len(hidden_ND), chunk):
            part = slice(start, start + chunk)
            logits = hidden_ND[part] @ weight_WD.T
            if not (need_hidden or need_weight):
                total += F.cross_entropy(logits.float(), labels_N[part], reduction="sum")
                continue
            part_loss, dlogits = loss_and_dlogits(logits, labels_N[part, None], hidden_ND.dtype)
            total += part_loss
            if dhidden is not None:
                torch.mm(dlogits, weight_WD, out=dhidden[part])
            if need_weight:
                product = dlogits.T @ hidden_ND[part]
                dweight = product.float() if dweight is None else dweight.add_(product)
        ctx.save_for_backward(dhidden, dweight)
        return total

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dhidden, dweight = ctx.saved_tensors
        (scale,) = grads
        return (
            None if dhidden is None else scaled(dhidden, scale),
            None if dweight is None else (dweight * scale).to(ctx.weight_dtype),
            None,
            None,
        )


def cross_entropy_sum(hidden: Tensor, weight_WD: Tensor, labels: Tensor, chunk: int | None = None) -> Tensor:
    """Sum over tokens of -log p(label), fp32 scalar; labels of IGNORE are left out before any work.

    Args:
        hidden: [..., D], states for the output head.
        weight_WD: the head.
        labels: [...], the token each state should predict.
        chunk: tokens whose logits exist at once; None for what suits the device.
    """
    hidden_ND, labels_N = hidden.flatten(0, -2), labels.flatten()
    if not torch.is_grad_enabled():
        weight_WD = weight_WD.detach()  # else the function below works out a gradient that nobody asks for
    kept = (labels_N != IGNORE).nonzero().squeeze(1)
    if len(kept) < len(labels_N):
        hidden_ND, labels_N = hidden_ND.index_select(0, kept), labels_N.index_select(0, kept)
    return _ChunkedCrossEntropy.apply(hidden_ND, weight_WD, labels_N, chunk or chunk_on(hidden.device, len(weight_WD)))


def head_cross_entropy_sum(head: nn.Module, hidden: Tensor, labels: Tensor) -> Tensor:
    """`cross_entropy_sum` of a head: by its weight, or by calling it where it does more than that weight says."""
    if is_own(head, Linear):
        return cross_entropy_sum(hidden, cast(Tensor, head.weight), labels)

    def chunk_loss(hidden_ND: Tensor, labels_N: Tensor) -> Tensor:
        return F.cross_entropy(head(hidden_ND).float(), labels_N, reduction="sum")

    hidden_ND, labels_N = hidden.flatten(0, -2), labels.flatten()
    kept = (labels_N != IGNORE).nonzero().squeeze(1)
    total = hidden_ND.sum(dtype=torch.float32) * 0  # of no tokens too a loss that has gradients
    for chunk in kept.split(CHUNK):
        total = total + checkpoint(chunk_loss, hidden_ND[chunk], labels_N[chunk], use_reentrant=False)
    return total


def chunk_on(device: torch.device, vocabulary: int) -> int:
    """Tokens whose logits exist at once."""
    if device.type == "cpu":
        return CHUNK
    return max(CHUNK, (FUSED_LOGITS if compiles_on(device) else SINGLE_LOGITS) // vocabulary)


@torch.no_grad()
def token_losses(hidden_BTD: Tensor, weight_WD: Tensor, labels_BT: Tensor, chunk: int = CHUNK) -> Tensor:
    """-log p(label) of each token, fp32 [B, T]; 0 where the label is IGNORE. For evaluation."""
    hidden_ND, labels_N = hidden_BTD.flatten(0, 1), labels_BT.flatten()
    weight_WD = weight_WD.to(hidden_ND.dtype)
    losses = hidden_ND.new_zeros(len(labels_N), dtype=torch.float32)
    for start in range(0, len(hidden_ND), chunk):
        part = slice(start, start + chunk)
        losses[part] = F.cross_entropy(
            (hidden_ND[part] @ weight_WD.T).float(), labels_N[part], ignore_index=IGNORE, reduction="none"
        )
    return losses.view_as(labels_BT)
