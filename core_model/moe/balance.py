"""Load balance: the routing bias, the sequence-wise loss, the statistics that show both at work.

Shape suffixes: B sequences, T tokens a sequence, G routers, E experts, K experts per token.
Source: V3 report Eq. 16-20, §4.2; Wang et al. 2024 (auxiliary-loss-free balancing), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from core_model.autograd import differentiable_once
from core_model.moe.gate import Gate, top_k_low_index
from core_model.native import training


def gates(model: nn.Module) -> Iterator[tuple[str, Gate]]:
    """Every router of a model, with its name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Gate))


class _CompiledSequenceLoss(torch.autograd.Function):
    """The loss and its gradient in one pass over the scores."""

    @staticmethod
    def forward(ctx: Any, scores_TE: Tensor, top_k: int, sequences: int, real_BT: Tensor | None) -> Tensor:
        scores_BTE = training.plain(scores_TE).unflatten(0, (sequences, -1))
        dscores = torch.empty_like(scores_BTE) if ctx.needs_input_grad[0] else None
        real_BT = None if real_BT is None else training.plain(real_BT)
        loss = training.sequence_balance(scores_BTE, top_k, real_BT, dscores)
        ctx.save_for_backward(None if dscores is None else dscores.flatten(0, 1))
        return torch.tensor(loss, dtype=torch.float32, device=scores_TE.device)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (dscores,) = ctx.saved_tensors
        return dscores * grads[0], None, None, None


def sequence_balance_loss(scores_TE: Tensor, top_k: int, sequences: int, real_BT: Tensor | None = None) -> Tensor:
    """Mean over sequences of sum_i f_i P_i, before alpha; 1 for a perfectly even router.

    f_i counts the unbiased top-k of each token (times E / (K T)); P_i is the mean normalised score. The gradient
    flows through P alone. Tokens that are padding (`real_BT` False) belong to no sequence.
    """
    if not sequences:
        return scores_TE.sum()  # 0, with a gradient of none
    if real_BT is not None:
        real_BT = real_BT.to(scores_TE.device, torch.bool).expand(sequences, len(scores_TE) // sequences)
    if training.serves_scores(scores_TE, top_k):
        return _CompiledSequenceLoss.apply(scores_TE, top_k, sequences, real_BT)
    scores_BTE = scores_TE.unflatten(0, (sequences, -1))
    experts = scores_TE.shape[-1]
    real_BT1 = torch.ones_like(scores_BTE[..., :1]) if real_BT is None else real_BT.unsqueeze(-1).float()
    length_B1 = real_BT1.sum(dim=1).clamp_min(1)
    chosen_BTK = top_k_low_index(scores_BTE.detach(), top_k)
    counts_BE = scores_TE.new_zeros(sequences, experts).scatter_add_(
        1, chosen_BTK.flatten(1), real_BT1.expand_as(chosen_BTK).flatten(1)
    )
    f_BE = counts_BE * experts / (top_k * length_B1)
    p_BE = (scores_BTE / scores_BTE.sum(dim=-1, keepdim=True) * real_BT1).sum(dim=1) / length_B1
    return (f_BE * p_BE).sum(dim=-1).mean()


@torch.no_grad()
def update_routing_bias(routers: Sequence[Gate], speed: float, group: dist.ProcessGroup | None = None) -> None:
    """Move the bias of each router by `speed` against its load since the last update, then forget that load.

    b_i += speed * sign(mean load - load_i), then centred: only differences matter, and the common drift of the
    published rule would make the bias range meaningless in long runs. To be called once per optimiser step, on the
    load of the whole batch: where torch.distributed runs, the loads of the processes are added up.

    Args:
        group: the processes that share these routers and have tokens of their own; None for all.
    """
    if routers and speed:
        # All at once: on an accelerator every operation is a launch, and V3 has 59 routers.
        device = routers[0].e_score_correction_bias.device  # a model may lie on several
        load_GE = torch.stack([gate.tokens_per_expert.to(device) for gate in routers])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(load_GE, group=group)
        load_GE = load_GE.float()
        bias_GE = torch.stack([gate.e_score_correction_bias.to(device) for gate in routers])
        moved_GE = bias_GE + speed * torch.sign(load_GE.mean(dim=1, keepdim=True) - load_GE)
        moved_GE -= moved_GE.mean(dim=1, keepdim=True)
        seen_G1 = load_GE.any(dim=1, keepdim=True)  # asked there: no host waits for the load
        for gate, bias_E in zip(routers, torch.where(seen_G1, moved_GE, bias_GE), strict=True):
            gate.e_score_correction_bias.copy_(bias_E)
    for gate in routers:
        gate.forget()


@dataclass(frozen=True)
class RouterStatistics:
    """One router's balance over the tokens counted since the last bias update.

    max_violation: (largest load - mean) / mean (0 is even). dead: share of experts without a token.
    entropy: of the load distribution, over ln E (1 is even). bias_range: largest minus smallest bias.
    sequence_loss: the sequence-wise balance loss before alpha (1 is even), None where it is not part of the loss.
    left_out: share of (token, expert) pairs that the rank cap left out, None where there is none. All else counts what
    the router chose.
    """

    load: list[int]
    max_violation: float
    dead: float
    entropy: float
    bias_range: float
    sequence_loss: float | None = None
    left_out: float | None = None

    def metrics(self) -> dict[str, float]:
        """The numbers to log, by name."""
        return {name: value for name, value in asdict(self).items() if name != "load" and value is not None}


def router_statistics(model: nn.Module) -> dict[str, RouterStatistics]:
    """Statistics by router name, for routers that have counted any token."""
    found = {}
    for name, gate in gates(model):
        load = gate.tokens_per_expert.float()
        if load.sum() == 0:
            continue
        share = load / load.sum()
        total, sequences = gate.sequence_loss.tolist()
        left_out, pairs = gate.left_out.tolist()
        entropy = -(share * share.clamp_min(1e-12).log()).sum() / torch.tensor(float(len(load))).log()
        found[name] = RouterStatistics(
            load=gate.tokens_per_expert.tolist(),
            max_violation=float(load.max() / load.mean() - 1),
            dead=float((load == 0).float().mean()),
            entropy=float(entropy),
            bias_range=float(gate.e_score_correction_bias.max() - gate.e_score_correction_bias.min()),
            sequence_loss=total / sequences if sequences else None,
            left_out=left_out / pairs if pairs else None,
        )
    return found
