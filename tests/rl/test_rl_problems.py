"""The sequence of problems, the pre-flight over it, and the keys of a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_model.errors import InputError
from core_model.generation import Engine
from eval.tasks import judge_answers
from eval.tasks.family import Judgement
from recipes.loader import load_recipe
from recipes.rows import Verdict
from rl.length import NoLength
from rl.preflight import check_rewards, check_room
from rl.problems import ProblemSequence
from rl.recipe import Recipe
from rl.rewards import RewardRecipe, SampleRewards
from rl.rollouts import Rollouts, rollout_seed
from rl.trainer_config import build_config, find_fault, prompts_needed

MIXED = {"chain_sum": 2.0, "gcd": 1.0, "letter_counting": 1.0}


@given(st.integers(0, 200), st.integers(1, 60))
def test_any_stretch_has_the_shares_asked_for(first, count):
    sequence = ProblemSequence(MIXED, start=100, seed=0)
    families = [sequence.place(i)[0] for i in range(first, first + count)]
    for family, weight in MIXED.items():
        assert abs(families.count(family) - count * weight / 4) <= 2


def test_the_sequence_is_the_same_however_it_is_read_and_repeats_no_place():
    forward = [ProblemSequence(MIXED, 100, 0).place(i) for i in range(40)]
    sequence = ProblemSequence(MIXED, 100, 0)
    assert [sequence.place(i) for i in reversed(range(40))] == forward[::-1]
    assert len(set(forward)) == 40
    assert min(index for _, index in forward) == 100
    assert sequence[7].source == forward[7][0]
    assert sequence[7] == ProblemSequence(MIXED, 100, 0)[7] != ProblemSequence(MIXED, 100, 1)[7]


def test_prompts_ask_for_reasoning_or_not():
    sequence = ProblemSequence(MIXED, 0, 0)
    asked, bare = sequence.prompt(0, reflect=True), sequence.prompt(0, reflect=False)
    assert [message["role"] for message in asked] == ["system", "user"]
    assert asked[1:] == bare
    rows = sequence.dataset(5, reflect=True)
    assert rows["position"] == list(range(5))
    assert rows[3]["prompt"] == sequence.prompt(3, reflect=True)


def test_no_two_prompts_share_random_numbers():
    seeds = {rollout_seed(s, step, prompt) for s in range(3) for step in range(20) for prompt in range(20)}
    assert len(seeds) == 3 * 20 * 20
    assert max(seeds) < 2**63


class Preflight:
    def __init__(self, tokenizer, pay=None, judge=None):
        self.rewards = SampleRewards(tokenizer, pay or RewardRecipe(), **({} if judge is None else {"judge": judge}))

    def run(self, families, longest=200):
        check_rewards(self.rewards, ProblemSequence(families, 0, 0), 3, longest, Path("recipe.yaml"))


def test_the_preflight_passes_what_is_sound(tokenizer):
    """It raises where something is not; passing, it has had answers of every family judged."""
    judged = []

    def judge(problems, answers):
        judged.extend(problem.source for problem in problems)
        return judge_answers(problems, answers)

    families = {"chain_sum": 1.0, "base_conversion": 1.0, "number_sorting": 1.0, "code": 1.0}
    Preflight(tokenizer, judge=judge).run(families)
    bare = RewardRecipe(accuracy=1.0, format=0.0, require_thought=False)
    Preflight(tokenizer, bare, judge=judge).run({"gcd": 1.0})
    assert set(judged) == {*families, "gcd"}


@pytest.mark.parametrize("verdict", [Verdict.WRONG_ANSWER, Verdict.CORRECT, Verdict.INFRA_ERROR])
def test_the_preflight_stops_a_verifier_that_always_says_the_same(tokenizer, verdict):
    judge = lambda problems, answers: [Judgement(verdict) for _ in answers]  # noqa: E731
    with pytest.raises(InputError, match=r"problems\.families\.gcd: expected the reference answer"):
        Preflight(tokenizer, judge=judge).run({"gcd": 1.0})


def test_the_preflight_stops_a_limit_that_no_answer_fits(tokenizer):
    with pytest.raises(InputError, match="at most 5 tokens"):
        Preflight(tokenizer).run({"number_sorting": 1.0}, longest=5)


def test_prompt_and_completion_must_fit_the_model(model, tokenizer):
    from rl.trainer import Policy

    rollouts = Rollouts(Engine(model, tokenizer), tokenizer, 0)
    policy = Policy(model, rollouts, SampleRewards(tokenizer, RewardRecipe()), NoLength())
    prompts = [ProblemSequence(MIXED, 0, 0).prompt(i, reflect=True) for i in range(8)]
    check_room(policy, prompts, 50, Path("recipe.yaml"))
    with pytest.raises(InputError, match="the model has 160 positions") as caught:
        check_room(policy, prompts, 159, Path("recipe.yaml"))
    fits = int(str(caught.value).partition("at most ")[2].partition(":")[0])
    check_room(policy, prompts, fits, Path("recipe.yaml"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"max_step": 3}, "did you mean 'max_steps'"),
        ({"max_steps": "3"}, "max_steps"),
        ({"max_steps": 0}, "at least 1"),
        ({}, "max_steps: expected the number of optimiser steps, at least 1; found nothing"),
        ({"max_steps": 1, "use_vllm": True}, "our own engine"),
        ({"max_steps": 1, "router_aux_loss_coef": 0.001}, "bias_speed"),
        ({"max_steps": 1, "seed": 1}, "the recipe's own keys"),
        ({"max_steps": 1, "temperature": 0.0}, "greedy"),
        ({"max_steps": 1, "save_strategy": "epoch"}, "found 'epoch'"),
        ({"max_steps": 1, "beta": True}, "beta"),
    ],
)
def test_keys_that_are_none_of_trl_or_not_ours_to_give_are_refused(keys, message):
    assert message in str(find_fault(keys))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"per_device_train_batch_size": 6, "num_generations": 4}, "divisible by num_generations"),
        ({"num_generations": 1}, "at least 2 generations"),
        ({"gradient_accumulation_steps": 4, "steps_per_generation": 2}, "a divisor of steps_per_generation"),
        ({"num_iterations": 2, "save_steps": 3}, "a multiple of 2"),
    ],
)
def test_batches_that_do_not_fit_together_are_one_message(tmp_path, keys, message):
    with pytest.raises(InputError, match=message):
        build_config({"max_steps": 4, "num_generations": 4} | keys, seed=0, folder=tmp_path)


def test_the_number_of_problems_is_that_of_the_rounds_of_rollouts(tmp_path):
    def needed(**keys):
        base = {"max_steps": 6, "num_generations": 4, "per_device_train_batch_size": 8, "save_steps": 12}
        return prompts_needed(build_config(base | keys, seed=0, folder=tmp_path))

    assert needed() == 6 * 2
    assert needed(gradient_accumulation_steps=2) == 6 * 4
    assert needed(num_iterations=2) == 3 * 2
    assert needed(steps_per_generation=4) == 2 * 8


def test_shipped_recipes_differ_in_length_alone(repository):
    folder = repository / "recipes" / "nano"
    accuracy, length = (load_recipe(folder / f"rl_{name}.yaml", schema=Recipe) for name in ("plateau", "length"))
    assert accuracy.length.kind == "none"
    assert length.length.kind == "kimi"
    assert (accuracy.problems, accuracy.rewards) == (length.problems, length.rewards)
    # A right answer, however long, earns more than a wrong one, however short.
    assert accuracy.rewards.accuracy > length.length.weight


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("problems.families={chain_sums: 1}", "no task family 'chain_sums'"),
        ("problems.families.gcd=0", "above 0"),
        ("length.kind=shortest", "one of none, kimi, cosine, overlong, target; found 'shortest'"),
        ("length={weight: 1}", "the key kind, one of none, kimi, cosine, overlong, target; found none"),
        ("length={kind: target, target: 9, slope: 0}", r"slope: 0}': expected greater than 0 \(reward lost"),
        (
            "length.kind=cosine",
            r"yaml: length.limit: expected a value for this required key \(tokens at which the curve",
        ),
        ("length.margin=3", "one of the keys kind, start_step, weight; found the unknown key 'margin'"),
        ("trainer.learning_rat=1", r"'trainer.learning_rat=1': expected a key of TRL's GRPOConfig \(did you mean"),
        ("trainer.max_steps=many", "'trainer.max_steps=many': expected a valid integer; found 'many'"),
        ("rewards.acuracy=1", "did you mean 'accuracy'"),
    ],
)
def test_a_mistyped_recipe_is_one_message(repository, override, message):
    with pytest.raises(InputError, match=message):
        load_recipe(repository / "recipes" / "nano" / "rl_accuracy.yaml", [override], Recipe)
