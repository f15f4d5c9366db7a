"""TRL's SFTTrainer with the model's own losses, the routing bias, and checkpoints that resume exactly.

What differs from TRL's: the loss is `V3ForCausalLM.forward`'s (next token, MTP, balance), where TRL calls backbone and
head apart; the routing bias moves once per optimiser step; checkpoints are ours (sft/checkpointing.py); metrics go to
the run; evaluation is per token, not per batch.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from trl import SFTTrainer

from core_model import V3ForCausalLM
from core_model.attention import AttentionContext
from core_model.loss import head_cross_entropy_sum
from core_model.moe.balance import router_statistics, update_routing_bias
from core_model.mtp import targets
from recipes.progress import Bar, progress_bar
from recipes.run import Run
from sft.checkpointing import RunCheckpoints
from sft.data import IGNORE, PackCollator
from sft.meters import Meters
from sft.recipe import Recipe

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig

METERS = "meters.json"  # inside a checkpoint
VALIDATION_LOSS = "validation/loss"


class V3SFTTrainer(RunCheckpoints, SFTTrainer):
    """Trains a `V3ForCausalLM` on packs.

    Args:
        model: on any device; the Trainer moves it.
        config: see `sft.trainer_config.build_config`.
        recipe: for the weights of the losses and the bias's speed.
        run: gets the metrics and the checkpoints.
        tokenizer: for the padding token.
        training, validation: packs (`sft.data.to_dataset`); validation may be None.
    """

    def __init__(
        self,
        model: V3ForCausalLM,
        config: SFTConfig,
        recipe: Recipe,
        run: Run,
        tokenizer: PreTrainedTokenizerFast,
        training: Dataset,
        validation: Dataset | None,
    ) -> None:
        self.recipe, self.run = recipe, run
        self.meters = Meters()
        self.router_line: dict[str, float] = {}
        super().__init__(
            model=model,
            args=config,
            data_collator=PackCollator(cast(int, tokenizer.pad_token_id)),
            train_dataset=training,
            eval_dataset=validation,
            processing_class=tokenizer,
        )
        self.remove_callback(PrinterCallback)
        self.add_callback(_StepEnd(self))

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Train with a progress display, from a checkpoint when one is given."""
        with ExitStack() as stack:
            progress = _ShowProgress(stack)
            self.add_callback(progress)
            try:
                return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
            finally:
                self.remove_callback(progress)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The micro-batch's share of the batch's loss.

        Sums over tokens are divided by the targets of the whole batch, all of its micro-batches; the balance loss,
        a mean over sequences, by the number of micro-batches.
        """
        micro_batches = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
        self.v3.loss_weights.mtp = self.recipe.mtp_weight
        self.v3.loss_weights.balance = self.recipe.balance_alpha / micro_batches
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        nothing = outputs.lm_loss.new_zeros(())
        mtp_loss = torch.stack(outputs.mtp_losses).mean() if outputs.mtp_losses else nothing
        balance_loss = nothing if outputs.balance_loss is None else outputs.balance_loss / micro_batches
        mask = inputs.get("attention_mask")
        tokens = torch.tensor(inputs["input_ids"].numel()) if mask is None else mask.sum()
        self.meters.add(
            [outputs.loss, outputs.lm_loss, mtp_loss, balance_loss], tokens, (inputs["labels"] != IGNORE).sum()
        )
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def end_step(self, will_log: bool) -> None:
        """After the optimiser's step: note the routers' balance, then move their biases.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        loss = self.meters.end_step()["loss"]
        if not torch.isfinite(torch.tensor(loss)):
            raise FloatingPointError(f"step {self.state.global_step}: the loss is {loss}; try a lower learning rate")
        if will_log:
            for name, router in router_statistics(self.v3).items():
                layer = f"router/layer_{name.split('.')[2]}"
                self.router_line |= {f"{layer}/{key}": value for key, value in router.metrics().items()}
        update_routing_bias(self.v3.model.routers(), self.recipe.bias_speed)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write a training line to the run. The Trainer's closing summary, with its timings, is left out."""
        if "loss" not in logs:
            return
        line = self.meters.drain() | self.router_line
        line |= {name: float(logs[name]) for name in ("learning_rate", "grad_norm") if name in logs}
        line["epoch"] = float(self.state.epoch or 0.0)
        self.run.log(self.state.global_step, line)
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, line)

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Dataset | None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean loss of the assistant's tokens over the validation packs, in nats; logged at the current step."""
        self.v3.eval()
        total, count = 0.0, 0
        for batch in self.get_eval_dataloader(eval_dataset):
            inputs = self._prepare_inputs(batch)
            labels = inputs.pop("labels")
            backbone = self.v3.model(**inputs)
            context = cast(AttentionContext, backbone.context)
            documents = None if context.documents is None else context.documents.id_BT
            next_tokens = targets(labels, 0, documents, IGNORE)
            total += float(head_cross_entropy_sum(self.v3.lm_head, backbone.last_hidden_state, next_tokens))
            count += int((next_tokens != IGNORE).sum())
        metrics = {VALIDATION_LOSS: total / max(count, 1)}
        self.run.log(self.state.global_step, metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Matrices, as in pre-training; the Trainer goes by names and would decay some of the norms."""
        return [name for name, parameter in model.named_parameters() if parameter.dim() > 1]

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the Trainer would walk through all parameters at every micro-batch."""
        return 0

    def start_fresh(self) -> None:
        """The untrained model's validation loss, at step 0."""
        if self.eval_dataset is not None:
            self.evaluate()

    def save_numbers(self, folder: Path) -> None:
        self.meters.save(folder / METERS)

    def load_numbers(self, folder: Path) -> None:
        self.meters.load(folder / METERS)


class _StepEnd(TrainerCallback):
    """Calls the trainer back after every optimiser step, before logging, evaluation and saving."""

    def __init__(self, trainer: V3SFTTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log = control.should_log or state.global_step >= state.max_steps  # the last step always
        self.trainer.end_step(control.should_log)


class _ShowProgress(TrainerCallback):
    """A bar over the optimiser steps, from the one that is resumed from."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.shown: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        bar = progress_bar(state.max_steps, "sft", done=state.global_step, unit="steps")
        self.bar: Bar = self.stack.enter_context(bar)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.advance(1, **self.shown)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.shown["loss"] = logs["lm_loss"]

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self.shown["validation"] = metrics[VALIDATION_LOSS]
