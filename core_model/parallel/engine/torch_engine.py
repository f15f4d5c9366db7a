"""The plain torch engine: one device, fp32 master weights, fused AdamW. The reference for every other adapter.

Shape suffixes: B sequences, T tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from core_model import mtp
from core_model.checkpoint import load_weights, save_folder
from core_model.documents import document_ids
from core_model.loss import IGNORE
from core_model.model import V3ForCausalLM
from core_model.moe.balance import RouterStatistics, router_statistics, update_routing_bias
from core_model.native import training

OPTIMIZER = "optimizer.pt"


@dataclass(frozen=True)
class MicroBatch:
    """input_ids and labels [B, T]; labels are the token at each position, or IGNORE. position_ids isolate documents."""

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor | None = None

    @property
    def targets(self) -> int:
        """Tokens the main head predicts: the first of a document is none."""
        documents = document_ids(self.position_ids, None, (self.labels.shape[0], self.labels.shape[1]))
        return int((mtp.targets(self.labels, 0, documents, IGNORE) != IGNORE).sum())


@dataclass(frozen=True)
class StepLosses:
    """Means over the tokens of one step."""

    loss: float
    lm: float
    mtp: float
    balance: float


class TorchEngine:
    """Owns the optimiser of a model on one device.

    Args:
        betas, eps, weight_decay: AdamW's; decay on matrices only.
        clip: limit of the gradient norm.
    """

    def __init__(
        self,
        model: V3ForCausalLM,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        clip: float = 1.0,
    ) -> None:
        self.model, self.clip = model, clip
        matrices = [p for p in model.parameters() if p.dim() > 1]
        vectors = [p for p in model.parameters() if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)

    def forward_backward(self, batches: list[MicroBatch]) -> StepLosses:
        """Accumulate the gradients of one step; every token weighs the same, whatever its micro-batch.

        The balance loss is a mean over sequences, so each micro-batch's counts by its share of the tokens. A
        micro-batch without a target adds nothing.

        Raises:
            ValueError: no micro-batch has a target.
        """
        self.model.train()
        counts = [batch.targets for batch in batches]  # before anything is launched, since it waits for the device
        total = sum(counts)
        if not total:
            raise ValueError(f"none of the step's {len(batches)} micro-batches has a token to predict")
        # Read once, at the end: each float of it would wait for the device.
        sums = torch.zeros(4, dtype=torch.float32, device=self.model.device)
        for batch, count in zip(batches, counts, strict=True):
            share = count / total
            backbone = self.model.model(batch.input_ids, position_ids=batch.position_ids)
            out = self.model.losses(batch.input_ids, batch.labels, backbone, normaliser=max(count, 1))
            assert out.loss is not None and out.lm_loss is not None
            (out.loss * share).backward()
            none = torch.zeros_like(out.lm_loss)
            mtp_loss = torch.stack(out.mtp_losses).mean() if out.mtp_losses else none
            balance = none if out.balance_loss is None else out.balance_loss
            sums += share * torch.stack((out.loss.detach(), out.lm_loss, mtp_loss, balance))
        return StepLosses(*sums.tolist())

    def grad_norm(self) -> Tensor:
        """Norm of all gradients, before clipping."""
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        gradients = [p.grad for p in parameters if p.grad is not None]
        if training.serves_norm(gradients):
            return torch.tensor(training.total_norm(gradients), dtype=torch.float32, device=self.model.device)
        return torch.nn.utils.get_total_norm(gradients)

    def router_statistics(self) -> dict[str, RouterStatistics]:
        """Balance over the tokens since the last step."""
        return router_statistics(self.model)

    def step(self, learning_rate: float, bias_speed: float) -> float:
        """Clip, update weights and routing biases, drop gradients; returns the gradient norm before clipping.

        Raises:
            FloatingPointError: the gradient is not finite; nothing was updated.
        """
        norm = self.grad_norm()
        size = float(norm)
        if not math.isfinite(size):
            raise FloatingPointError(f"gradient norm is {size}: the weights are as before this step")
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        # The fused step divides gradients by this as it reads them: clipping costs no pass of its own.
        self.optimizer.grad_scale = (norm / self.clip).clamp_min(1.0).float()  # type: ignore[attr-defined]
        try:
            self.optimizer.step()
        finally:
            del self.optimizer.grad_scale  # type: ignore[attr-defined]
        self.optimizer.zero_grad(set_to_none=True)
        update_routing_bias(self.model.model.routers(), bias_speed)
        return size

    def save(self, folder: Path) -> None:
        """Write weights and optimiser state into `folder`."""
        save_folder(self.model, folder / "model")
        torch.save(self.optimizer.state_dict(), folder / OPTIMIZER)

    def load(self, folder: Path) -> None:
        """Take back what `save` wrote, bit for bit."""
        load_weights(self.model, folder / "model")
        self.optimizer.load_state_dict(torch.load(folder / OPTIMIZER, weights_only=True))
