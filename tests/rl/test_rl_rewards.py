"""Sample rewards: right answers in the right form are paid, tricks are not, faults of the judge are no answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.tasks import REASONING_FAMILIES, get_family
from eval.tasks.family import Judgement
from recipes.rows import Verdict
from rl.rewards import RewardRecipe, SampleRewards

PAY = RewardRecipe(accuracy=1.0, format=0.1)


@pytest.fixture
def rewards(tokenizer):
    return SampleRewards(tokenizer, PAY)


def gold_of(family: str, index: int = 0):
    problem = get_family(family).problem(index, "train")
    return problem, get_family(family).reference_answer(problem)


@pytest.mark.parametrize("family", [*REASONING_FAMILIES, "code"])
def test_right_answers_are_paid_in_full_and_spoilt_ones_for_their_form_only(rewards, spell, family):
    problem, gold = gold_of(family)
    texts = [f"<think>So it is.</think>{gold}", f"<think>So it is.</think>{gold}1"]
    right, spoilt = rewards.score([problem] * 2, [spell(text) for text in texts], ["stop"] * 2)
    assert (right.reward, right.verdict, right.family) == (pytest.approx(1.1), Verdict.CORRECT, family)
    assert spoilt.reward == pytest.approx(0.1)
    assert not spoilt.correct


TRICKS = {
    "no thought": "{gold}",
    "an empty thought": "<think></think>{gold}",
    "a thought of spaces": "<think>  \n</think>{gold}",
    "a thought never closed": "<think>It is {gold}.",
    "a thought never opened": "It is.</think>{gold}",
    "a second thought after the answer": "<think>So.</think>{gold}<think>Or not.</think>",
    "a second end of thought": "<think>So.</think>0</think>{gold}",
    "text before the thought": "{gold}<think>So.</think>{gold}",
    "the answer inside the thought only": "<think>{gold}</think>",
    "no answer but a space": "<think>{gold}</think> ",
    "nothing": "",
}


@pytest.mark.parametrize("trick", TRICKS)
def test_a_wrong_form_earns_nothing_whatever_the_answer(rewards, spell, trick):
    problem, gold = gold_of("chain_sum")
    (sample,) = rewards.score([problem], [spell(TRICKS[trick].format(gold=gold))], ["stop"])
    assert sample.reward == 0.0
    assert not sample.well_formed


GUESSES = {
    "every number": " ".join(map(str, range(-50, 200))),
    "the answer is": "The answer is {gold}",
    "two answers": "{gold} {gold}",
    "an alternative": "{gold} or 7",
    "a sum to be done": "{gold} + 0",
    "leading zeros": "0{gold}",
    "underscores": "1_2_{gold}",
    "a word": "gold",
    "a list of all": "1 2 3 {gold}",
}


@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize("family", ["chain_sum", "gcd", "number_sorting", "letter_counting"])
def test_guesses_and_enumerations_earn_no_accuracy(rewards, spell, family, guess):
    problem, gold = gold_of(family)
    (sample,) = rewards.score([problem], [spell("<think>Hm.</think>" + GUESSES[guess].format(gold=gold))], ["stop"])
    assert sample.reward == pytest.approx(0.1)


def test_a_completion_that_was_cut_earns_nothing(rewards, spell):
    problem, gold = gold_of("chain_sum")
    (sample,) = rewards.score([problem], [spell(f"<think>So.</think>{gold}", stop=False)], ["length"])
    assert (sample.reward, sample.verdict, sample.truncated) == (0.0, Verdict.TRUNCATED, True)


def test_thoughts_may_be_optional(tokenizer, spell):
    problem, gold = gold_of("chain_sum")
    rewards = SampleRewards(tokenizer, RewardRecipe(require_thought=False))
    bare, unclosed = rewards.score([problem] * 2, [spell(gold), spell(f"<think>{gold}")], ["stop"] * 2)
    assert bare.reward == pytest.approx(1.1)
    assert unclosed.reward == 0.0


@pytest.mark.parametrize("verdict", [Verdict.INFRA_ERROR, Verdict.INVALID_PROBLEM])
def test_a_fault_of_the_judge_is_no_reward_not_a_low_one(tokenizer, spell, verdict):
    problem, gold = gold_of("chain_sum")
    rewards = SampleRewards(tokenizer, PAY, judge=lambda asked, answers: [Judgement(verdict) for _ in answers])
    (sample,) = rewards.score([problem], [spell(f"<think>So.</think>{gold}")], ["stop"])
    assert sample.reward is None


def test_equal_answers_to_a_problem_are_judged_once(tokenizer, spell):
    problem, gold = gold_of("chain_sum")
    other, _ = gold_of("chain_sum", 1)
    asked = []

    def judge(problems, answers):
        asked.extend(zip([problem.id for problem in problems], answers, strict=True))
        return [Judgement(Verdict.CORRECT if answer == gold else Verdict.WRONG_ANSWER) for answer in answers]

    texts = [f"<think>a</think>{gold}", f"<think>bb</think>{gold}", "<think>a</think>7", f"<think>a</think>{gold}"]
    rewards = SampleRewards(tokenizer, PAY, judge=judge)
    scored = rewards.score([problem] * 3 + [other], [spell(text) for text in texts], ["stop"] * 4)
    assert asked == [(problem.id, gold), (problem.id, "7"), (other.id, gold)]
    assert [sample.correct for sample in scored] == [True, True, False, True]


@given(st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=30), min_size=1, max_size=8), st.randoms())
def test_any_tokens_earn_within_bounds_and_in_any_order_the_same(tokenizer, completions, random):
    rewards = SampleRewards(tokenizer, PAY)
    problem, _ = gold_of("gcd")
    scored = rewards.score([problem] * len(completions), completions, ["stop"] * len(completions))
    assert all(0 <= sample.reward <= 1.1 for sample in scored)
    order = list(range(len(completions)))
    random.shuffle(order)
    again = rewards.score([problem] * len(completions), [completions[i] for i in order], ["stop"] * len(completions))
    assert again == [scored[i] for i in order]


def test_rewards_that_never_fire_are_refused():
    with pytest.raises(ValueError, match="nothing would be learnt"):
        RewardRecipe(accuracy=0.0, format=0.0)
