"""Log-probabilities of sampled tokens, once per step and only where they are needed.

The samples of a batch are laid end to end in one row, padding left out: every product of the model then runs over real
tokens only, and each sample starts at position 0, as it did when it was generated. The output head sees completion
tokens alone, in chunks, so that [tokens, vocabulary] never exists in fp32.

Shape suffixes: B samples, T tokens, C completion tokens, N completion tokens of the whole batch, D model,
W vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from core_model.loss import IGNORE, cross_entropy_sum
from core_model.model import V3ForCausalLM, V3ModelOutput
from core_model.mtp import shift_left, targets
from core_model.precision import plain_weight

CHUNK = 1024  # tokens whose logits exist at once
ROW_MULTIPLE = 256  # rows are padded to it: the CPU's bf16 kernels are built once per number of rows


@dataclass(frozen=True)
class PackedSamples:
    """Samples end to end: [1, T] each; `sampled` is True on completion tokens, `real` False on the row's padding."""

    input_ids: Tensor
    position_ids: Tensor
    sampled: Tensor
    real: Tensor


def pack_samples(input_ids_BT: Tensor, attention_mask_BT: Tensor, completion_length: int) -> PackedSamples:
    """Lay padded samples end to end; their last `completion_length` columns are completions."""
    real_BT = attention_mask_BT.bool()
    sampled_BT = real_BT.clone()
    sampled_BT[:, :-completion_length] = False
    position_BT = attention_mask_BT.long().cumsum(dim=1) - 1
    count = int(real_BT.sum())
    length = -(-max(count, 1) // ROW_MULTIPLE) * ROW_MULTIPLE

    def laid(values_BT: Tensor) -> Tensor:
        row = values_BT.new_zeros(1, length)
        row[0, :count] = values_BT[real_BT]
        return row

    # The tail is padding, of no document: any position will do there but 0, which starts one.
    position_ids = laid(position_BT)
    position_ids[0, count:] = 1
    return PackedSamples(laid(input_ids_BT), position_ids, laid(sampled_BT), laid(real_BT))


def completion_logprobs(
    model: V3ForCausalLM, input_ids_BT: Tensor, attention_mask_BT: Tensor, completion_length: int, temperature: float
) -> tuple[Tensor, Tensor, PackedSamples, V3ModelOutput]:
    """Log-probability and entropy of each completion token under softmax(logits / temperature).

    Returns:
        logprobs [B, C] fp32 with gradient, entropies [B, C] fp32 without, both 0 on padding; then what `draft_loss`
        needs: the packed samples and the backbone's output.
    """
    packed = pack_samples(input_ids_BT, attention_mask_BT, completion_length)
    backbone = model.model(packed.input_ids, packed.real.long(), packed.position_ids)
    # The state that predicts a token is the one before it. A prompt has at least one token, so it is the sample's own.
    predicting = packed.sampled.roll(-1, dims=1)[0].nonzero().squeeze(1)
    hidden_ND = cast(Tensor, backbone.last_hidden_state)[0].index_select(0, predicting)
    chosen_N = packed.input_ids[0, predicting + 1]
    logprobs_N, entropies_N = _ChosenLogProbs.apply(
        hidden_ND, plain_weight(model, "lm_head"), chosen_N, temperature, CHUNK
    )
    sampled_BC = attention_mask_BT[:, -completion_length:].bool()
    zeros_BC = logprobs_N.new_zeros(sampled_BC.shape)
    return (
        zeros_BC.masked_scatter(sampled_BC, logprobs_N),
        zeros_BC.masked_scatter(sampled_BC, entropies_N),
        packed,
        backbone,
    )


def draft_loss(model: V3ForCausalLM, packed: PackedSamples, backbone: V3ModelOutput) -> Tensor:
    """Mean MTP cross-entropy over the completion tokens, that moves the MTP modules and nothing else.

    Trunk, embedding and head are detached: the drafts follow the policy, the policy does not follow the drafts.
    """
    labels = packed.input_ids.masked_fill(~packed.sampled, IGNORE)
    context = backbone.context
    assert context is not None
    hidden, losses = cast(Tensor, backbone.last_hidden_state).detach(), []
    documents = None if context.documents is None else context.documents.id_BT
    head_WD = plain_weight(model, "lm_head").detach()
    for depth, layer in enumerate(model.model.mtp_layers(), 1):
        embedding = model.model.embed(shift_left(packed.input_ids, depth, 0)).detach()
        hidden, _ = layer(hidden, embedding, context)
        losses.append(cross_entropy_sum(hidden, head_WD, targets(labels, depth, documents, IGNORE)))
    if not losses:
        return hidden.new_zeros((), dtype=torch.float32)
    return torch.stack(losses).mean() / packed.sampled.sum().clamp_min(1)


class _ChosenLogProbs(torch.autograd.Function):
    """log p of the chosen tokens and the entropy of p, logits made chunk by chunk and again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_WD: Tensor, chosen_N: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        weight = weight_WD.to(hidden_ND.dtype)
        logprobs_N = hidden_ND.new_empty(len(hidden_ND), dtype=torch.float32)
        entropies_N, normalisers_N = torch.empty_like(logprobs_N), torch.empty_like(logprobs_N)
        for start in range(0, len(hidden_ND), chunk):
            part = slice(start, start + chunk)
            logits = (hidden_ND[part] @ weight.T).float().div_(temperature)
            normaliser = logits.logsumexp(dim=-1)
            normalisers_N[part] = normaliser
            logprobs_N[part] = logits.gather(1, chosen_N[part, None]).squeeze(1) - normaliser
            probs = (logits - normaliser[:, None]).exp_()
            entropies_N[part] = normaliser - torch.linalg.vecdot(probs, logits)
        ctx.save_for_backward(hidden_ND, weight_WD, chosen_N, normalisers_N)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropies_N)
        return logprobs_N, entropies_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_WD, chosen_N, normalisers_N = ctx.saved_tensors
        grad_N = grads[0] / ctx.temperature
        weight = weight_WD.to(hidden_ND.dtype)
        dhidden_ND = torch.empty_like(hidden_ND)
        dweight_WD = torch.zeros_like(weight_WD, dtype=torch.float32)
        for start in range(0, len(hidden_ND), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logits = (hidden_ND[part] @ weight.T).float().div_(ctx.temperature)
            # d log p_c / d logits = onehot(c) - p
            dlogits = (logits - normalisers_N[part, None]).exp_().mul_(-grad_N[part, None])
            dlogits.scatter_add_(1, chosen_N[part, None], grad_N[part, None])
            dlogits = dlogits.to(hidden_ND.dtype)
            torch.mm(dlogits, weight, out=dhidden_ND[part])
            dweight_WD += dlogits.T @ hidden_ND[part]
        return dhidden_ND, dweight_WD.to(weight_WD.dtype), None, None, None
