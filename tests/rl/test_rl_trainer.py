"""The trainer: groups and losses by hand, verdicts that do not count, references, and learning itself."""

from __future__ import annotations

import math

import pytest
import torch

import rl.trainer
from core_model.model import V3ForCausalLM
from eval.tasks.family import Judgement
from recipes.rows import Verdict
from rl.length import Kimi
from rl.logprobs import completion_logprobs
from rl.rewards import RewardRecipe, SampleRewards, ScoredSample

ANY_FORM = RewardRecipe(accuracy=1.0, format=0.0, require_thought=False)


class Scripted(SampleRewards):
    """Verdicts from a list, whatever the completions say."""

    verdicts: list[Verdict]
    consolation = 0.0  # what wrong answers earn

    def score(self, problems, completion_ids, finish_reasons):
        return [
            ScoredSample(p.source, v, True, len(ids), self.reward(v) if v.counts else None)
            for p, v, ids in zip(problems, self.verdicts, completion_ids, strict=True)
        ]

    def reward(self, verdict):
        return 1.0 if verdict is Verdict.CORRECT else self.consolation


@pytest.fixture
def scripted(tokenizer):
    return Scripted(tokenizer, ANY_FORM)


RIGHT, WRONG, FAULT = Verdict.CORRECT, Verdict.WRONG_ANSWER, Verdict.INFRA_ERROR


def scripted_batch(trainer, verdicts):
    """The batch that TRL makes of one round of rollouts with these verdicts."""
    trainer.policy.rollouts.stop_ids = tuple(range(0, 300, 10))  # so that lengths differ
    trainer.policy.rewards.verdicts = verdicts
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    asked = [trainer.train_dataset[i] for i in range(len(verdicts) // trainer.num_generations)]
    rows = [dict(row) for row in asked for _ in range(trainer.num_generations)]
    return trainer._generate_and_score_completions(rows)


def advantages_of(verdicts, scale=True):
    """GRPO's advantages of one group, over the verdicts that count; 0 for the others."""
    rewards = torch.tensor([float(v is RIGHT) for v in verdicts if v.counts])
    centred = rewards - rewards.mean()
    if scale and len(rewards) > 1:
        centred = centred / (rewards.std() + 1e-4)
    values = iter(centred.tolist())
    return [next(values) if v.counts else 0.0 for v in verdicts]


def loss_by_hand(trainer, batch, verdicts, kind):
    """The policy loss from plain forwards, one sample at a time; ratio 1, so the clip is without effect."""
    group, total, counted, tokens = trainer.num_generations, torch.zeros(()), 0, 0
    scale = kind != "dr_grpo"
    advantages = [a for i in range(0, len(verdicts), group) for a in advantages_of(verdicts[i : i + group], scale)]
    for row, verdict in enumerate(verdicts):
        if not verdict.counts:
            continue
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
        completion = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
        logits = trainer.policy.model(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
        logprobs = logits.log_softmax(-1).gather(1, completion[:, None]).squeeze(1)
        each = -advantages[row] * torch.exp(logprobs - logprobs.detach())
        total = total + (each.mean() if kind == "grpo" else each.sum())
        counted, tokens = counted + 1, tokens + len(completion)
    return total / {"grpo": counted, "dapo": tokens, "dr_grpo": counted * trainer.max_completion_length}[kind]


@pytest.mark.parametrize("verdicts", [[RIGHT, WRONG, WRONG, WRONG, RIGHT, RIGHT, RIGHT, WRONG],
                                      [RIGHT, FAULT, WRONG, WRONG, FAULT, FAULT, FAULT, FAULT],
                                      [FAULT, RIGHT, FAULT, WRONG, RIGHT, WRONG, WRONG, FAULT],
                                      [WRONG, WRONG, WRONG, WRONG, RIGHT, WRONG, RIGHT, RIGHT]],
                         ids=["all count", "a group is masked", "some are masked", "a group is flat"])  # fmt: skip
@pytest.mark.parametrize("kind", ["dapo", "grpo", "dr_grpo"])
def test_loss_and_gradients_by_hand(make_trainer, scripted, kind, verdicts):
    trainer = make_trainer(scripted, loss_type=kind, scale_rewards="none" if kind == "dr_grpo" else "group")
    batch = scripted_batch(trainer, verdicts)
    loss = trainer._compute_loss(trainer.model, batch)
    model = trainer.policy.model
    model.zero_grad()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected = loss_by_hand(trainer, batch, verdicts, kind)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    assert largest > 0
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-3, atol=1e-5 * max(largest, 1.0))


def test_flat_groups_go_without_a_backward_pass(make_trainer, scripted, monkeypatch):
    passes = []

    def counted(policy, input_ids, *rest):
        passes.append((len(input_ids), torch.is_grad_enabled()))
        return completion_logprobs(policy, input_ids, *rest)

    monkeypatch.setattr(rl.trainer, "completion_logprobs", counted)
    trainer = make_trainer(scripted)
    batch = scripted_batch(trainer, [RIGHT, RIGHT, RIGHT, RIGHT, RIGHT, WRONG, WRONG, WRONG])
    trainer._compute_loss(trainer.model, batch)
    assert passes == [(4, True), (4, False)]
    entropy = trainer._metrics["train"]["entropy"][-1]
    trainer.bias_speed = 0.01  # the routing's counts are about all samples
    trainer._compute_loss(trainer.model, batch)
    assert passes[2:] == [(8, True)]
    assert trainer._metrics["train"]["entropy"][-1] == pytest.approx(entropy, rel=1e-5)


@pytest.mark.parametrize("consolation", [0.1, 0.7, 1.0])
def test_a_flat_group_teaches_exactly_nothing(make_trainer, scripted, monkeypatch, consolation):
    monkeypatch.setattr(scripted, "consolation", consolation)  # the mean of equal rewards need not be exact
    batch = scripted_batch(make_trainer(scripted), [WRONG, WRONG, FAULT, WRONG, WRONG, WRONG, WRONG, RIGHT])
    assert batch["advantages"][:4].tolist() == [0.0] * 4
    assert bool(batch["advantages"][4:].any()) is (consolation < 1.0)


def test_a_masked_sample_gives_the_others_the_advantages_of_a_smaller_group(make_trainer, scripted):
    verdicts = [RIGHT, FAULT, WRONG, WRONG, RIGHT, WRONG, WRONG, WRONG]
    batch = scripted_batch(make_trainer(scripted), verdicts)
    first, second = batch["advantages"].view(2, 4).tolist()
    assert first == pytest.approx(advantages_of(verdicts[:4]), abs=1e-5)
    assert [first[0], first[2], first[3]] == pytest.approx(advantages_of([RIGHT, WRONG, WRONG]), abs=1e-5)
    assert second == pytest.approx(advantages_of(verdicts[4:]), abs=1e-5)
    # TRL alone would keep its tokens in the denominator.
    assert batch["completion_mask"][1].sum() == 0
    assert batch["num_items_in_batch"] == batch["completion_mask"].sum() > 0


def test_metrics_leave_masked_samples_out(make_trainer, scripted):
    trainer = make_trainer(scripted)
    scripted_batch(trainer, [RIGHT, FAULT, WRONG, RIGHT, WRONG, WRONG, WRONG, WRONG])
    found = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert found["masked"] == 1 / 8
    assert found["accuracy"] == pytest.approx(2 / 7)
    assert (found["accuracy/chain_sum"], found["accuracy/gcd"]) == (pytest.approx(2 / 3), 0.0)
    assert found["reward/mean"] == pytest.approx(2 / 7)
    assert found["groups/flat"] == 0.5


def test_nothing_that_counts_teaches_nothing(make_trainer, scripted):
    trainer = make_trainer(scripted, loss_type="grpo")
    batch = scripted_batch(trainer, [FAULT] * 8)
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    assert loss.item() == 0.0
    assert all(not p.grad.any() for p in trainer.policy.model.parameters() if p.grad is not None)


def test_length_is_paid_within_the_group_that_counts(make_trainer, scripted):
    trainer = make_trainer(scripted, policy={"length": Kimi(kind="kimi", weight=0.4)}, scale_rewards="none")
    verdicts = [RIGHT, RIGHT, FAULT, WRONG, RIGHT, RIGHT, RIGHT, RIGHT]
    batch = scripted_batch(trainer, verdicts)
    lengths = [sample.tokens for sample in trainer.policy.rewards.latest]
    expected = []
    for start in (0, 4):
        rows = [i for i in range(start, start + 4) if verdicts[i].counts]
        low, high = min(lengths[i] for i in rows), max(lengths[i] for i in rows)
        paid = {}
        for i in rows:
            share = 0.5 - (lengths[i] - low) / (high - low) if high > low else 0.0
            right = verdicts[i] is RIGHT
            paid[i] = float(right) + 0.4 * (share if right else min(0.0, share))
        mean = sum(paid.values()) / len(paid)
        expected += [paid[i] - mean if i in paid else 0.0 for i in range(start, start + 4)]
    assert len(set(lengths)) > 2
    assert batch["advantages"].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_reference_is_one_of_ours_and_kl_starts_at_zero(make_trainer, scripted, model_folder):
    reference = V3ForCausalLM.from_pretrained(model_folder)
    trainer = make_trainer(scripted, beta=0.1, policy={"reference": reference})
    assert type(trainer.ref_model) is V3ForCausalLM
    assert not any(p.requires_grad for p in trainer.ref_model.parameters())
    batch = scripted_batch(trainer, [RIGHT, WRONG, WRONG, WRONG] * 2)
    torch.testing.assert_close(batch["ref_per_token_logps"], batch["sampling_per_token_logps"], rtol=0, atol=1e-5)
    trainer._compute_loss(trainer.model, batch)
    assert trainer._metrics["train"]["kl"][-1] == pytest.approx(0.0, abs=1e-7)
    with pytest.raises(ValueError, match="reference"):
        make_trainer(beta=0.1)


def answers(judged):
    """A judge that finds the answers right that `judged` says are."""
    return lambda problems, texts: [Judgement(RIGHT if judged(text) else WRONG) for text in texts]


def test_a_learnable_task_is_learnt(make_trainer):
    """One token: any that begins with a lower-case letter is right, about a third of them."""
    trainer = make_trainer(
        judge=answers(lambda text: text[:1].islower()), pay=ANY_FORM,
        max_steps=15, per_device_train_batch_size=64, num_generations=16, learning_rate=2e-2,
        max_completion_length=1, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer.policy.rollouts.stop_ids = tuple(range(300))
    trainer.train()
    accuracy = [line["accuracy"] for line in trainer.run.lines]
    assert accuracy[0] < 0.6
    assert sum(accuracy[-3:]) / 3 > 0.9
    assert [line["step"] for line in trainer.run.lines] == list(range(1, 16))
    # The engine samples from the weights of each step: a stale one would drift away.
    assert max(line["mismatch/logprob_max"] for line in trainer.run.lines) < 1e-4


def test_kimi_shortens_what_is_right_anyway(make_trainer):
    trainer = make_trainer(
        judge=answers(lambda text: True), pay=ANY_FORM, policy={"length": Kimi(kind="kimi")},
        max_steps=15, per_device_train_batch_size=48, num_generations=16, learning_rate=2e-2,
        max_completion_length=10, lr_scheduler_type="constant", scale_rewards="none", loss_type="dr_grpo",
    )  # fmt: skip
    trainer.policy.rollouts.stop_ids = tuple(range(0, 300, 3))
    trainer.train()
    tokens = [line["tokens/mean"] for line in trainer.run.lines]
    assert sum(tokens[-3:]) / 3 < 0.6 * tokens[0]


def test_a_copied_engine_takes_over_every_update(make_trainer):
    """bf16 rollouts of an fp32 policy: a copy of the weights, renewed before each batch."""
    trainer = make_trainer(
        judge=answers(lambda text: text[:1].islower()), pay=ANY_FORM, engine_dtype=torch.bfloat16,
        max_steps=4, learning_rate=2e-2, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer.policy.rollouts.stop_ids = tuple(range(0, 300, 5))
    trainer.train()
    assert trainer.policy.rollouts.engine.model is not trainer.policy.model
    assert all(line["mismatch/logprob_mean"] < 0.05 for line in trainer.run.lines)
    before = [line["mismatch/logprob_mean"] for line in trainer.run.lines][-1]
    trainer.policy.rollouts.engine.refresh_weights = lambda: None
    with torch.no_grad():
        for parameter in trainer.policy.model.parameters():
            parameter.mul_(1.2)
    trainer.model.train()
    rows = [dict(trainer.train_dataset[i // 4]) for i in range(8)]
    trainer._compute_loss(trainer.model, trainer._generate_and_score_completions(rows))
    assert trainer._metrics["train"]["mismatch/logprob_mean"][-1] > 2 * before


def test_samples_may_serve_several_steps(make_trainer):
    """num_iterations 2: the second step is off-policy, its ratio against the first step's log-probabilities."""
    trainer = make_trainer(
        judge=answers(lambda text: len(text) % 2 == 0), pay=ANY_FORM,
        max_steps=4, num_iterations=2, save_steps=2, learning_rate=2e-2, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer.policy.rollouts.stop_ids = tuple(range(0, 300, 5))
    trainer.train()
    ratios = [line["mismatch/logprob_mean"] for line in trainer.run.lines]
    assert max(ratios[0], ratios[2]) < 1e-5 < min(ratios[1], ratios[3])
    assert len(trainer.train_dataset) == 2 * 2


def test_drafts_may_be_trained_beside_the_policy(make_trainer):
    trainer = make_trainer(
        judge=answers(lambda text: text[:1].islower()), pay=ANY_FORM, policy={"mtp_weight": 0.5},
        max_steps=2, learning_rate=1e-2, lr_scheduler_type="constant",
    )  # fmt: skip
    drafts = trainer.policy.model.model.mtp_layers()[0]
    before = drafts.eh_proj.weight.detach().clone()
    trainer.train()
    assert not torch.equal(drafts.eh_proj.weight, before)
    assert all(math.isfinite(line["mtp_loss"]) for line in trainer.run.lines)
