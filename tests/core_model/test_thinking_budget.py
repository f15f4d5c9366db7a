"""Limits on a thought: kept by the engine, whatever the model would have done."""

from __future__ import annotations

import numpy as np
import pytest
from small_engine import drawn_prompts, plain_logprobs, small_model

from core_model import V3ForCausalLM
from core_model.generation import Engine, SamplingParams, ThinkingBudget


@pytest.fixture(scope="module")
def model() -> V3ForCausalLM:
    return small_model()


@pytest.mark.parametrize("drafts", [0, 2])
def test_a_budget_ends_a_thought_or_extends_it(model, drafts):
    end = 6
    prompts = drawn_prompts(30, seed=12)
    params = {"seed": 2, "speculative": drafts}
    engine = Engine(model, speculate_always=True)
    closed = ThinkingBudget(end, max_tokens=5, closing=(9, end, 10))
    for [one] in engine.generate(prompts, SamplingParams(20, thinking=closed, **params)):
        place = one.token_ids.index(end)
        assert place <= 6 and len(one.token_ids) == 20
        if place == 6:
            assert one.token_ids[5:8] == [9, end, 10]
    longer = ThinkingBudget(end, min_tokens=8, extending=(11, 12))
    extended = 0
    for [one] in engine.generate(prompts, SamplingParams(20, thinking=longer, **params)):
        place = one.token_ids.index(end) if end in one.token_ids else 20
        assert place >= 8
        extended += any(one.token_ids[i : i + 2] == [11, 12] for i in range(8))
    assert extended > 5
    none = ThinkingBudget(end, max_tokens=0, closing=(end,))
    assert all(one.token_ids[0] == end for [one] in engine.generate(prompts, SamplingParams(3, thinking=none)))
    both = ThinkingBudget(end, max_tokens=4, closing=(end,), min_tokens=4, extending=(11, 12, 11, 12, 11))
    for prompt, [one] in zip(
        prompts, engine.generate(prompts, SamplingParams(9, thinking=both, logprobs=True, **params)), strict=True
    ):
        assert one.token_ids[4] == end and end not in one.token_ids[:4]  # the most holds while it is extended too
        exact = plain_logprobs(model, prompt, one.token_ids, 1.0)  # of tokens that were put in as well
        np.testing.assert_allclose(exact, one.logprobs, atol=1e-4)


START, END, EOS = 3, 6, 5


def parts_of(tokens: list[int]) -> tuple[list[int], list[int], list[int]]:
    """What stands before the first START, between it and the END after it, and after that; EOS in none of them."""
    tokens = [token for token in tokens if token != EOS]
    start = tokens.index(START) if START in tokens else len(tokens)
    rest = tokens[start + 1 :]
    end = rest.index(END) if END in rest else len(rest)
    return tokens[:start], rest[:end], rest[end + 1 :]


@pytest.mark.parametrize("drafts", [0, 2])
def test_only_what_follows_the_beginning_of_a_thought_is_limited(model, drafts):
    engine, prompts = Engine(model, speculate_always=True), drawn_prompts(60, seed=20)
    params = {"seed": 3, "speculative": drafts, "stop_ids": (EOS,)}
    budget = ThinkingBudget(END, max_tokens=4, closing=(9, END), start_id=START)
    free = engine.generate(prompts, SamplingParams(24, **params))
    found = engine.generate(prompts, SamplingParams(24, thinking=budget, **params))
    thoughtless = short = cut = 0
    for [one], [limited] in zip(free, found, strict=True):
        before, thought, _ = parts_of(one.token_ids)
        if START not in one.token_ids or len(thought) < 4:
            thoughtless += START not in one.token_ids
            short += START in one.token_ids
            assert limited.token_ids == one.token_ids and limited.finish_reason == one.finish_reason
        else:
            expected = [*before, START, *thought[:4], 9, END][:24]
            assert limited.token_ids[: len(expected)] == expected
            cut += len(expected) < 24
    assert min(thoughtless, short, cut) > 3


def test_a_thought_of_no_tokens_is_put_first_and_no_other_is_limited(model):
    none = ThinkingBudget(END, max_tokens=0, closing=(END, 9), start_id=START)
    found = Engine(model).generate(drawn_prompts(30, seed=21), SamplingParams(30, thinking=none, seed=1))
    assert all(one.token_ids[:3] == [START, END, 9] and len(one.token_ids) == 30 for [one] in found)
    # A second beginning stands in the answer.
    assert any(START in one.token_ids[3:] for [one] in found)


@pytest.mark.parametrize("drafts", [0, 2])
@pytest.mark.parametrize("start", [None, START])
def test_a_least_thought_holds_against_eos_too(model, drafts, start):
    engine, prompts = Engine(model, speculate_always=True), drawn_prompts(60, seed=22)
    params = {"seed": 4, "speculative": drafts, "stop_ids": (EOS,)}
    budget = ThinkingBudget(END, min_tokens=8, extending=(11, 12), start_id=start)
    free = engine.generate(prompts, SamplingParams(30, **params))
    found = engine.generate(prompts, SamplingParams(30, thinking=budget, **params))
    extended_at_eos = 0
    for [one], [longer] in zip(free, found, strict=True):
        if start is not None and start not in one.token_ids:  # no thought: its end is its own
            assert longer.token_ids == one.token_ids
            continue
        before = 0 if start is None else one.token_ids.index(start) + 1
        thought = longer.token_ids[before : before + 8]
        assert END not in thought and EOS not in thought
        assert len(thought) == 8 or longer.finish_reason == "length"
        place = one.token_ids.index(EOS) if EOS in one.token_ids else 30
        if place - before < 8 and END not in one.token_ids[before:place]:
            assert longer.token_ids[place : place + 2] == [11, 12][: 30 - place]
            extended_at_eos += 1
    assert extended_at_eos > 3
    ends = [one.finish_reason for [one] in found]
    assert "stop" in ends  # a thought that is long enough may end the sample


def test_tags_are_two_tokens():
    with pytest.raises(ValueError, match="two tokens"):
        ThinkingBudget(END, start_id=END)
