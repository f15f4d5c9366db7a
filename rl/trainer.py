"""GRPO on TRL's trainer: our rollouts, our verdicts, our lengths, our log-probabilities.

TRL keeps the loss, its clipping and its variants. What is replaced, and why:

- rollouts come from `core_model.generation` (`rollout_func`);
- rewards in two tiers: per sample before the gather, per group [prompts, G] after it;
- a sample whose verdict does not count leaves its group's mean and deviation, and the loss, denominators included
  (TRL drops it from the statistics only);
- log-probabilities over packed real tokens, no padding; on-policy steps compute them once, and the samples of flat
  groups, which teach nothing, go without a backward pass;
- the reference model, where beta > 0, is one of ours (TRL would load transformers' class from the folder).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from core_model.model import V3ForCausalLM
from core_model.moe.balance import update_routing_bias
from recipes.checkpoints import step_of
from recipes.progress import progress_bar
from recipes.run import Run
from rl.length import LengthReward
from rl.logprobs import completion_logprobs, draft_loss
from rl.metrics import is_kept, rollout_metrics
from rl.problems import ProblemSequence
from rl.rewards import SampleRewards
from rl.rollouts import Rollouts, rollout_seed
from sft.checkpointing import RunCheckpoints

METRICS = "metrics.json"  # inside a checkpoint, beside the Trainer's own files
# These losses divide by the number of samples; the others divide by tokens, which masked samples do not have.
LOSSES_PER_SAMPLE = ("grpo", "dr_grpo", "sapo", "luspo")


@dataclass(frozen=True)
class Policy:
    """What is trained, and on what terms.

    reference: the model that KL is measured against; needed when beta > 0.
    mtp_weight: lambda of the MTP loss on the rollouts' tokens; it moves the MTP modules alone.
    """

    model: V3ForCausalLM
    rollouts: Rollouts
    rewards: SampleRewards
    length: LengthReward
    reference: V3ForCausalLM | None = None
    mtp_weight: float = 0.0


class V3GRPOTrainer(RunCheckpoints, GRPOTrainer):
    """GRPO for `V3ForCausalLM` on one process."""

    def __init__(
        self,
        policy: Policy,
        args: GRPOConfig,
        run: Run,
        problems: ProblemSequence,
        *,
        prompts: int,
        reflect: bool = True,
        bias_speed: float = 0.0,
    ) -> None:
        """
        Args:
            args: see `rl.trainer_config.build_config`.
            run: gets the metrics and the checkpoints.
            problems: asked in order, the first `prompts` of them once each.
            reflect: whether the system prompt asks for reasoning.
            bias_speed: step of the routing bias per optimiser step.

        Raises:
            ValueError: beta > 0 without a reference model.
        """
        if args.beta and policy.reference is None:
            raise ValueError("beta > 0 needs a reference model")
        self.policy, self.run, self.problems, self.bias_speed = policy, run, problems, bias_speed
        beta, args.beta = args.beta, 0.0  # else TRL would load a reference model of another class
        super().__init__(
            model=policy.model,
            reward_funcs=[policy.rewards],
            args=args,
            train_dataset=problems.dataset(prompts, reflect),
            processing_class=policy.rollouts.tokenizer,
            rollout_func=policy.rollouts,
        )
        self.remove_callback(PrinterCallback)
        self.add_callback(_StepEnd(self))
        self.beta = args.beta = beta
        if beta and policy.reference is not None:
            self.ref_model = policy.reference.eval().requires_grad_(False)
        self._score_seconds = self._step_started = 0.0
        self._logprobs = torch.empty(0)
        self._flat = torch.empty(0, dtype=torch.bool)  # [P]: the groups whose samples all earned the same
        self._teaches = torch.empty(0, dtype=torch.bool)  # [B]: the samples that have a gradient
        self._draft_loss: Tensor | None = None

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Train with a progress display, from a checkpoint of `_save_checkpoint` when one is given."""
        done = 0 if resume_from_checkpoint is None else step_of(Path(resume_from_checkpoint))
        with progress_bar(self.args.max_steps, "rl", done=done, unit="steps") as bar:
            self._bar = bar
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def begin_step(self) -> None:
        self._step_started = time.monotonic()

    def end_step(self) -> None:
        """After the optimiser's step, before logging and saving."""
        self._record("seconds/step", time.monotonic() - self._step_started)
        update_routing_bias(self.policy.model.model.routers(), self.bias_speed)
        shown = {"reward": "reward/mean", "tokens": "tokens/mean"}
        latest = {name: self._metrics["train"][key][-1] for name, key in shown.items() if self._metrics["train"][key]}
        self._bar.advance(1, **latest)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write a line to the run. The Trainer's closing summary, with its timings, is left out."""
        if "loss" not in logs:
            return
        recorded = self._metrics["train"]
        line = {name: _mean(recorded[name]) for name in sorted(recorded) if is_kept(name) and recorded[name]}
        line |= {name: float(logs[name]) for name in ("learning_rate", "grad_norm") if name in logs}
        recorded.clear()
        self.run.log(self.state.global_step, line)
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, line)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the Trainer would walk through all parameters at every micro-batch."""
        return 0

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        started, self.policy.rollouts.seconds, self._score_seconds = time.monotonic(), 0.0, 0.0
        loss = super().training_step(model, inputs, num_items_in_batch)
        generate, score = self.policy.rollouts.seconds, self._score_seconds
        self._record("seconds/generate", generate)
        self._record("seconds/score", score)
        self._record("seconds/learn", time.monotonic() - started - generate - score)
        return loss

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        # TRL shuffles the samples by the global generator; from here it depends on the step alone, as after a kill.
        torch.manual_seed(rollout_seed(self.args.seed, self.state.global_step, -1))
        batch = super()._generate_and_score_completions(inputs)
        latest = self.policy.rewards.latest
        counts = torch.tensor([sample.verdict.counts for sample in latest], device=batch["completion_mask"].device)
        batch["completion_mask"] = batch["completion_mask"] * counts[:, None]
        flat = self._flat.to(counts.device).repeat_interleave(len(counts) // len(self._flat))
        # Exactly 0, where TRL's mean of equal rewards may be off by a rounding that its deviation then magnifies.
        batch["advantages"] = batch["advantages"].masked_fill(flat, 0.0)
        batch["num_items_in_batch"] = self.accelerator.gather(batch["completion_mask"].sum()).sum()
        kept = self.accelerator.gather(counts).float().mean()
        scaled = self.loss_type in LOSSES_PER_SAMPLE and kept > 0
        batch["loss_scale"] = 1.0 / kept if scaled else torch.ones_like(kept)
        return batch

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        """Total rewards [samples of all processes, 1], NaN where the verdict does not count."""
        started = time.monotonic()
        asked = [{**row, "problem": self.problems[row["position"]]} for row in inputs]
        rewards = super()._calculate_rewards(asked, prompts, completions, completion_ids_list)[:, 0]
        latest = self.policy.rewards.latest
        facts = torch.tensor([[sample.tokens, sample.correct] for sample in latest], device=rewards.device)
        length_PG, correct_PG = self.accelerator.gather(facts).view(-1, self.num_generations, 2).unbind(-1)
        rewards_PG = rewards.view(-1, self.num_generations)
        rewards_PG = rewards_PG + self.policy.length.shape(
            length_PG.float(), correct_PG.bool(), ~rewards_PG.isnan(), self.state.global_step
        )
        known = ~rewards_PG.isnan()
        lowest = rewards_PG.masked_fill(~known, math.inf).amin(dim=1)
        self._flat = rewards_PG.masked_fill(~known, -math.inf).amax(dim=1) <= lowest
        for name, value in rollout_metrics(latest, rewards_PG).items():
            self._record(name, value)
        self._score_seconds = time.monotonic() - started
        return rewards_PG.reshape(-1, 1)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **unused: Any,
    ) -> tuple[Tensor, Tensor, None]:
        """Log-probabilities and entropies of the completions, [B, logits_to_keep]."""
        policy = self.accelerator.unwrap_model(model)
        rows = torch.arange(len(input_ids), device=input_ids.device)
        if torch.is_grad_enabled():
            parts = [(rows[self._teaches], True), (rows[~self._teaches], False)]
        else:
            parts = [(part, False) for part in rows.split(batch_size or len(rows))]
        self._logprobs = torch.zeros(len(rows), logits_to_keep, device=rows.device)
        entropies = torch.zeros_like(self._logprobs)
        for part, learns in parts:
            if len(part) == 0:
                continue
            with torch.set_grad_enabled(learns):
                chosen, entropy, packed, backbone = completion_logprobs(
                    policy, input_ids[part], attention_mask[part], logits_to_keep, self.temperature
                )
            self._logprobs = self._logprobs.index_copy(0, part, chosen)
            entropies[part] = entropy
            if self.policy.mtp_weight and learns:
                self._draft_loss = draft_loss(policy, packed, backbone)
        return self._logprobs, entropies, None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._teaches = inputs["advantages"] != 0
        # KL, drafts and the routing's counts are about every sample; and something must have a graph.
        if self.beta or self.policy.mtp_weight or self.bias_speed or not self._teaches.any():
            self._teaches = torch.ones_like(self._teaches)
        loss = super()._compute_loss(model, inputs) * inputs["loss_scale"]
        if self._draft_loss is not None:
            self._record("mtp_loss", float(self._draft_loss.detach()))
            loss = loss + self.policy.mtp_weight * self._draft_loss / self.current_gradient_accumulation_steps
            self._draft_loss = None
        sampled = inputs["completion_mask"].bool()
        difference = (self._logprobs.detach() - inputs["sampling_per_token_logps"])[sampled]
        if len(difference):
            self._record("mismatch/logprob_mean", float(difference.abs().mean()))
            self._record("mismatch/logprob_max", float(difference.abs().max()))
            self._record("mismatch/ratio", float(difference.exp().mean()))
        self._logprobs = torch.empty(0)
        # A micro-batch's share; averaged over them it is the loss of the whole batch.
        self._record("loss", float(loss.detach()) * self.current_gradient_accumulation_steps)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"step {self.state.global_step}: the loss is not finite; try a lower learning rate"
            )
        return loss

    def _record(self, name: str, value: float) -> None:
        """Add to the metrics averaged into the next log line; what cannot be measured is left out."""
        if math.isfinite(value):
            self._metrics["train"][name].append(value)

    def save_numbers(self, folder: Path) -> None:
        # No samples: `build_config` lets none be left over where a checkpoint is taken.
        (folder / METRICS).write_text(json.dumps(self._metrics["train"]) + "\n", encoding="utf-8")

    def load_numbers(self, folder: Path) -> None:
        self._metrics["train"].update(json.loads((folder / METRICS).read_text(encoding="utf-8")))


class _StepEnd(TrainerCallback):
    """Calls the trainer back before and after every optimiser step."""

    def __init__(self, trainer: V3GRPOTrainer) -> None:
        self.trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log = control.should_log or state.global_step >= state.max_steps  # the last step always
        self.trainer.end_step()


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
