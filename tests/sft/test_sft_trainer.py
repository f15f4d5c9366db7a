"""The trainer: whose classes it is made of, what a step does to weights, biases and learning rate, what is logged."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from core_model import V3ForCausalLM
from core_model.moe.balance import gates
from recipes.loader import load_recipe
from recipes.run import Run, read_metrics
from sft.data import Limit, PackCollator, pack, read_samples, split_problems, to_dataset
from sft.stage import load_start


@pytest.fixture
def make_trainer(stage, tokenizer):
    """A trainer on the training samples of the recipe's rows, in packs that are all full rows of one width."""
    from sft.trainer import V3SFTTrainer
    from sft.trainer_config import build_config

    opened = []

    def make(run_dir: str, *overrides: str) -> V3SFTTrainer:
        recipe = load_recipe(stage.recipe, [f"run_dir={stage.root / run_dir}", *overrides])
        run = Run.open(recipe, [], recipe.input_paths())
        opened.append(run)
        model, tokenizer = load_start(recipe)
        samples, held_out = split_problems(read_samples([recipe.data], tokenizer, Limit(128, "a pack")), 0.2, 0)
        packs = [pack([len(sample) for sample in side], 128, 0) for side in (samples, held_out)]
        config = build_config(recipe.trainer, seed=recipe.seed, folder=run.path, has_validation=True)
        sides = (to_dataset(samples, packs[0]), to_dataset(held_out, packs[1]))
        return V3SFTTrainer(model, config, recipe, run, tokenizer, *sides)

    yield make
    for run in opened:
        run.close()


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.v3.state_dict().items()}


def lines_of(trainer, key: str) -> list[dict]:
    return [line for line in read_metrics(trainer.run.path / "metrics.jsonl") if key in line]


def test_the_trainer_is_trls_and_the_model_ours(make_trainer):
    from trl import SFTTrainer

    trainer = make_trainer("run")
    assert isinstance(trainer, SFTTrainer)
    assert type(trainer.model) is V3ForCausalLM
    assert type(trainer.accelerator.unwrap_model(trainer.model_wrapped)) is V3ForCausalLM


def test_recomputation_trains_the_same_weights(make_trainer):
    trainers = [
        make_trainer(f"run_{policy}", f"recompute={policy}", "trainer.max_steps=1") for policy in ("none", "v3")
    ]
    assert [trainer.v3.recompute for trainer in trainers] == ["none", "v3"]
    kept, again = (trainer.train() and weights(trainer) for trainer in trainers)
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_gradient_accumulation_does_not_change_the_step(make_trainer):
    # Plain gradient descent: what differs in the gradient differs in the weights.
    common = ("trainer.max_steps=1", "trainer.optim=sgd", "trainer.learning_rate=1.0", "trainer.warmup_steps=0")
    common = (*common, "trainer.max_grad_norm=1000.0", "balance_alpha=0.5", "trainer.weight_decay=0.0")
    states, lines = [], []
    for batch, accumulation in ((4, 1), (1, 4), (2, 2)):
        trainer = make_trainer(
            f"{batch}",
            *common,
            f"trainer.per_device_train_batch_size={batch}",
            f"trainer.gradient_accumulation_steps={accumulation}",
        )
        trainer.data_collator = PackCollator(
            pad_id=2, multiple=128
        )  # rows of one width: the balance loss is a mean over rows
        before = weights(trainer)
        trainer.train()
        states.append({name: value - before[name] for name, value in weights(trainer).items()})
        lines.append(lines_of(trainer, "lm_loss")[0])
    moved = sum(float(step.abs().sum()) for step in states[0].values())
    assert moved > 1
    for state, line in zip(states[1:], lines[1:], strict=True):
        for name, step in state.items():
            torch.testing.assert_close(step, states[0][name], rtol=1e-4, atol=2e-6)
        for key in ("loss", "lm_loss", "mtp_loss", "balance_loss", "grad_norm"):
            assert line[key] == pytest.approx(lines[0][key], rel=1e-5)
        assert (line["tokens"], line["trained_tokens"]) == (lines[0]["tokens"], lines[0]["trained_tokens"])


def test_the_logged_loss_is_the_sum_of_its_weighted_parts(make_trainer):
    trainer = make_trainer("run", "mtp_weight=0.3", "balance_alpha=0.01", "trainer.max_steps=2")
    trainer.train()
    for line in lines_of(trainer, "lm_loss"):
        parts = line["lm_loss"] + 0.3 * line["mtp_loss"] + 0.01 * line["balance_loss"]
        assert line["loss"] == pytest.approx(parts, rel=1e-6)
        assert min(line["mtp_loss"], line["balance_loss"], line["grad_norm"], line["tokens"]) > 0


def test_mtp_layers_learn_only_when_their_loss_counts(make_trainer):
    for weight in (0.0, 0.3):
        trainer = make_trainer(f"mtp{weight}", f"mtp_weight={weight}", "trainer.max_steps=2")
        before = weights(trainer)
        trainer.train()
        name = "model.layers.2.eh_proj.weight"
        assert torch.equal(before[name], weights(trainer)[name]) == (weight == 0.0)


def test_the_routing_bias_moves_once_a_step_against_the_load(make_trainer):
    trainer = make_trainer("run", "bias_speed=0.01", "trainer.max_steps=1")
    loads = []
    end_step = trainer.end_step
    trainer.end_step = lambda will_log: (
        loads.extend(gate.tokens_per_expert.clone() for _, gate in gates(trainer.v3)),
        end_step(will_log),
    )
    trainer.train()
    assert len(loads) == 2  # layer 1 and the MTP module
    batch_tokens = lines_of(trainer, "tokens")[0]["tokens"]
    for load, (_, gate) in zip(loads, gates(trainer.v3), strict=True):
        assert load.sum() >= 2 * batch_tokens  # both micro-batches, top-2
        expected = 0.01 * torch.sign(load.float().mean() - load)
        torch.testing.assert_close(gate.e_score_correction_bias, expected - expected.mean())
        assert gate.tokens_per_expert.sum() == 0
    still = make_trainer("still", "bias_speed=0", "trainer.max_steps=1")
    still.train()
    assert all(gate.e_score_correction_bias.abs().max() == 0 for _, gate in gates(still.v3))
    assert lines_of(still, "router/layer_1/max_violation")[0]["router/layer_1/max_violation"] > 0


def test_weight_decay_is_for_matrices_only(make_trainer):
    groups = make_trainer("run", "trainer.weight_decay=0.1").create_optimizer().param_groups
    shapes = {group["weight_decay"]: {parameter.dim() > 1 for parameter in group["params"]} for group in groups}
    assert shapes == {0.1: {True}, 0.0: {False}}


def test_the_learning_rate_is_a_cosine_to_its_floor(make_trainer):
    trainer = make_trainer("run", "trainer.max_steps=8")
    trainer.train()
    rates = [line["learning_rate"] for line in lines_of(trainer, "learning_rate")]

    def cosine(step: int) -> float:
        if step < 2:
            return 1e-2 * step / 2
        return 1e-2 * (0.2 + 0.8 * (1 + math.cos(math.pi * (step - 2) / 6)) / 2)

    assert rates == pytest.approx([cosine(step) for step in range(8)])
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(2e-3)


def test_lines_are_means_over_the_steps_between_them(make_trainer):
    every = make_trainer("every", "trainer.max_steps=5")
    every.train()
    third = make_trainer("third", "trainer.max_steps=5", "trainer.logging_steps=3")
    third.train()
    single, joined = lines_of(every, "lm_loss"), lines_of(third, "lm_loss")
    assert [line["step"] for line in joined] == [3, 5]  # the last step always
    assert joined[0]["lm_loss"] == pytest.approx(sum(line["lm_loss"] for line in single[:3]) / 3, rel=1e-6)
    assert joined[1]["lm_loss"] == pytest.approx(sum(line["lm_loss"] for line in single[3:]) / 2, rel=1e-6)
    assert joined[1]["tokens"] == single[4]["tokens"]


def test_validation_is_per_token_over_all_samples(make_trainer):
    trainer = make_trainer("run", "trainer.per_device_eval_batch_size=3")
    found = trainer.evaluate()["validation/loss"]
    model, total, count = trainer.v3.eval(), 0.0, 0
    model.loss_weights.mtp = model.loss_weights.balance = 0.0
    for one in trainer.eval_dataset:
        starts = [0, *one["seq_lengths"].cumsum().tolist()]
        for begin, end in itertools.pairwise(starts):
            ids = torch.tensor(one["input_ids"][begin:end], dtype=torch.long)[None]
            labels = torch.tensor(one["labels"][begin:end], dtype=torch.long)[None]
            total += float(model(ids, labels=labels, num_items_in_batch=1.0).lm_loss)
            count += int((labels != -100).sum())
    assert found == pytest.approx(total / count, rel=1e-6)
    assert lines_of(trainer, "validation/loss") == [{"step": 0, "validation/loss": found}]


def test_a_loss_that_is_not_finite_stops_the_run(make_trainer):
    trainer = make_trainer("run", "trainer.max_steps=3")
    with torch.no_grad():
        trainer.v3.lm_head.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="step 1: the loss is nan"):
        trainer.train()
