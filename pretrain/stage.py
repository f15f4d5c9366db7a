"""Pre-training: corpus, model, loop, validation, model folder. An extension stage is the same with other data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from core_model.config import V3Config
from core_model.errors import InputError
from core_model.moe import RankCap
from core_model.parallel.device import training_device
from pretrain import validation
from pretrain.batches import StepBatches
from pretrain.data.packing import PackedDataset, RowDataset
from pretrain.data.prepare import PreparedCorpus, open_corpus, prepare_corpus
from pretrain.recipe import Recipe
from recipes.checkpoints import latest_checkpoint, save_checkpoint
from recipes.progress import progress_bar
from recipes.run import Run

if TYPE_CHECKING:
    from core_model.model import V3ForCausalLM
    from core_model.parallel.engine import TorchEngine

STATE = "trainer.json"


def build_model(recipe: Recipe, vocabulary_size: int) -> V3ForCausalLM:
    """The model of this stage, on its device.

    Raises:
        InputError: the configuration does not fit together, its vocabulary is not the tokenizer's, or its experts do
            not divide among the ranks of the cap.
    """
    from core_model.model import V3ForCausalLM

    if recipe.model is not None:
        config = V3Config.preset(recipe.model.preset, **recipe.model.overrides, rope_scaling=recipe.rope_scaling)
        model = V3ForCausalLM(config).initialize(recipe.model.init_std, recipe.seed)
    else:
        assert recipe.init_from is not None
        length = max(recipe.data.sequence_length, recipe.data.base_length)
        model = V3ForCausalLM.from_pretrained(
            recipe.init_from, rope_scaling=recipe.rope_scaling, max_position_embeddings=length
        )
    if model.config.vocab_size != vocabulary_size:
        raise InputError(
            "recipe",
            where="model vocab_size",
            expected=f"{vocabulary_size}, the tokenizer's vocabulary",
            found=str(model.config.vocab_size),
        )
    model.compute_dtype = getattr(torch, recipe.compute_dtype)
    model.recompute = recipe.recompute
    if recipe.rank_cap is not None:
        try:
            model.rank_cap = RankCap(recipe.rank_cap.ranks, recipe.rank_cap.factor)
        except ValueError as error:
            raise InputError(
                "recipe", where="rank_cap", expected="one that the model's experts can be placed by", found=str(error)
            ) from error
    return model.to(training_device())  # type: ignore[arg-type]


def build_engine(recipe: Recipe, model: V3ForCausalLM) -> TorchEngine:
    from core_model.parallel.engine import TorchEngine

    optimizer = recipe.optimizer
    return TorchEngine(
        model,
        betas=optimizer.betas,
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        clip=optimizer.clip,
    )


class Trainer:
    """The loop of one stage: from the last checkpoint to the last step.

    Its state is the step, what the engine holds, and what was measured before training; the data follow from the
    step alone.
    """

    def __init__(self, recipe: Recipe, run: Run, corpus: PreparedCorpus) -> None:
        self.recipe, self.run, self.corpus = recipe, run, corpus
        self.model = build_model(recipe, len(corpus.tokenizer))
        self.engine = build_engine(recipe, self.model)
        self.batches = StepBatches(recipe, corpus, self.model.device)
        self.short = PackedDataset(corpus.validation, recipe.data.base_length)
        self.step = 0
        self.before: dict[str, Any] = {}
        self.routers: dict[str, Any] = {}

    def resume(self) -> None:
        """Continue from the newest checkpoint, when there is one."""
        checkpoint = latest_checkpoint(self.run.checkpoints)
        if checkpoint is not None:
            self.engine.load(checkpoint)
            state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
            self.step, self.before, self.routers = state["step"], state["before"], state["routers"]
        # The line of step n is written after step n: a checkpoint at n has lines 1..n (and that of step 0).
        self.run.rewind(self.step if checkpoint is not None else -1)

    def save(self) -> None:
        def write(folder: Path) -> None:
            self.engine.save(folder)
            state = {"step": self.step, "before": self.before, "routers": self.routers}
            (folder / STATE).write_text(json.dumps(state), encoding="utf-8")

        save_checkpoint(self.run.checkpoints, self.step, write, keep=1)

    def validate(self) -> dict[str, Any]:
        """Short text at the base length; long text by position in an extension stage."""
        recipe = self.recipe
        found: dict[str, Any] = {
            "short": validation.short_text(
                self.model, self.short, self.corpus.validation, recipe.evaluation.short_tokens, recipe.data.micro_batch
            )
        }
        if recipe.data.rows == "long" and recipe.evaluation.long_rows:
            length = recipe.data.sequence_length
            rows = RowDataset(self.corpus.long(length, "validation"), length)
            found["long"] = validation.by_position(self.model, rows, recipe.evaluation.long_rows)
        return found

    def train(self) -> dict[str, Any]:
        """Train to the last step and return what was measured before and after."""
        recipe = self.recipe
        self.resume()
        if not self.before:
            self.before = self.validate()
            self.run.log(0, {"validation/bits_per_byte": self.before["short"]["bits_per_byte"]})
        description = f"{recipe.name} ({recipe.data.sequence_length} tokens)"
        with progress_bar(
            recipe.steps * self.batches.tokens, description, done=self.step * self.batches.tokens, unit="tok"
        ) as bar:
            while self.step < recipe.steps:
                bar.advance(self.batches.tokens, loss=self.train_step())
                if self.step % recipe.checkpoint_every == 0 and self.step < recipe.steps:
                    self.save()
        after = self.validate()
        return {
            "steps": recipe.steps,
            "tokens": recipe.steps * self.batches.tokens,
            "before": self.before,
            "after": after,
        }

    def train_step(self) -> float:
        """One optimiser step; returns the language-model loss."""
        recipe, step = self.recipe, self.step
        self.model.loss_weights.mtp = recipe.mtp_weight.at(step)
        self.model.loss_weights.balance = recipe.balance_alpha
        losses = self.engine.forward_backward(self.batches.of(step))
        logged = (step + 1) % recipe.log_every == 0 or step + 1 == recipe.steps
        metrics: dict[str, float] = {}
        if logged:
            metrics = {
                "loss": losses.loss,
                "lm_loss": losses.lm,
                "mtp_loss": losses.mtp,
                "balance_loss": losses.balance,
            }
            metrics |= self._router_metrics()
        learning_rate = recipe.learning_rate.at(step)
        norm = self.engine.step(learning_rate, recipe.bias_speed.at(step))
        self.step += 1
        every = recipe.evaluation.every
        if every and self.step % every == 0 and self.step < recipe.steps:
            short = validation.short_text(
                self.model, self.short, self.corpus.validation, recipe.evaluation.short_tokens, recipe.data.micro_batch
            )
            metrics["validation/bits_per_byte"] = short["bits_per_byte"]
        if metrics:
            tokens = float(self.step * self.batches.tokens)
            self.run.log(self.step, metrics | {"learning_rate": learning_rate, "grad_norm": norm, "tokens": tokens})
        return losses.lm

    def _router_metrics(self) -> dict[str, float]:
        """Balance of the step's tokens per router; the last step's is kept for the report."""
        metrics: dict[str, float] = {}
        for name, found in self.engine.router_statistics().items():
            layer = name.split(".")[2]
            self.routers[f"layer {layer}"] = {**found.metrics(), "load": found.load}
            metrics |= {f"router/layer_{layer}/{key}": value for key, value in found.metrics().items()}
        return metrics


def run_stage(recipe: Recipe, run: Run) -> dict[str, Any]:
    """Prepare or open the corpus, train, write `model/`, `report.json`; returns the summary."""
    if recipe.corpus is not None:
        folder = run.path / "corpus"
        prepare_corpus(recipe.corpus, folder)
    else:
        assert recipe.corpus_from is not None
        folder = recipe.corpus_from
    corpus = open_corpus(folder)
    trainer = Trainer(recipe, run, corpus)
    result = trainer.train()
    trainer.run.log(recipe.steps, {"validation/bits_per_byte": result["after"]["short"]["bits_per_byte"]})
    model_folder = run.path / "model"
    corpus.tokenizer.save_pretrained(model_folder)
    trainer.model.save_pretrained(model_folder)
    report = {
        **result,
        "routers": trainer.routers,
        "corpus": corpus.summary,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
    }
    (run.path / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return {
        "steps": result["steps"],
        "tokens": result["tokens"],
        "bits_per_byte": result["after"]["short"]["bits_per_byte"],
        "max_violation": max((r["max_violation"] for r in trainer.routers.values()), default=0.0),
        "dead_experts": sum(round(r["dead"] * len(r["load"])) for r in trainer.routers.values()),
    }
