"""The engine against plain forwards: whatever is generated beside a sample, and however, its tokens stay the same."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from small_engine import (
    WORDS,
    Letters,
    drawn_prompts,
    plain_greedy,
    plain_logprobs,
    small_model,
    tokens_of,
)

import core_model.generation.batch as batch_module
from core_model import V3Config, V3ForCausalLM
from core_model.accounting import kv_bytes_per_token
from core_model.generation import Engine, SamplingParams, ThinkingBudget
from core_model.generation.batch import Batch
from core_model.generation.speculation import MEASURES, SpeculationReport, SpeculationSwitch
from core_model.model import V3Model


@pytest.fixture(scope="module")
def model() -> V3ForCausalLM:
    return small_model()


@pytest.mark.parametrize("max_batch", [1, 3, 16])
def test_greedy_is_what_plain_forwards_choose(model, max_batch):
    prompts = drawn_prompts(9)
    found = tokens_of(Engine(model, max_batch=max_batch), prompts, SamplingParams(10, temperature=0.0))
    assert found == [[plain_greedy(model, prompt, 10)] for prompt in prompts]


@pytest.mark.parametrize("drafts", [1, 2, 5])
@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.8}])
def test_drafts_change_nothing_but_the_number_of_passes(model, drafts, settings):
    prompts = drawn_prompts(12, seed=1)
    common = {"n": 2, "stop_ids": (4,), "seed": 5, **settings}
    expected = Engine(model, max_batch=5).generate(prompts, SamplingParams(20, **common))
    engine = Engine(model, max_batch=5, speculate_always=True)
    found = engine.generate(prompts, SamplingParams(20, speculative=drafts, **common))
    pairs = [pair for couple in zip(expected, found, strict=True) for pair in zip(*couple, strict=True)]
    for one, other in pairs:
        assert one.token_ids == other.token_ids and one.finish_reason == other.finish_reason
        assert other.accepted_drafts <= min(other.proposed_drafts, len(other.token_ids))
    report = engine.speculation
    assert 0 < report.accepted[0] < report.proposed[0] and len(report.proposed) == drafts
    assert report.tokens_per_pass > 1.0
    assert sum(other.accepted_drafts for _, other in pairs) == sum(report.accepted)


def test_a_perfect_drafter_is_always_believed(model):
    """Drafts by the very tokens to come: every pass settles all of them, and the limit is kept."""
    prompt, count = drawn_prompts(1, seed=2)[0], 21
    expected = plain_greedy(model, prompt, count)
    engine = Engine(model, speculate_always=True)
    rows = engine.batch.rows

    def oracle(ran, tokens, taken, goes_on):
        made = int(rows.made[0])
        ahead = expected[made : made + 3] if goes_on[0] else []
        rows.drafts[0] = ahead + [-1] * (3 - len(ahead))

    engine.batch._draft = oracle  # type: ignore[method-assign]
    [[one]] = engine.generate([prompt], SamplingParams(count, temperature=0.0, speculative=3))
    assert one.token_ids == expected
    assert engine.speculation.acceptance == [1.0, 1.0, 1.0]
    assert engine.speculation.passes == 5  # 1 from the prompt, then four a pass


def test_sampling_with_drafts_follows_the_models_distribution(model):
    prompt, count = [3, 1, 4], 4000
    params = SamplingParams(2, temperature=1.0, n=count, speculative=1, seed=3)
    [samples] = Engine(model, max_batch=1000, speculate_always=True).generate([prompt], params)
    with torch.no_grad():
        first = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
        second = model(torch.tensor([[*prompt, i] for i in range(WORDS)])).logits[:, -1].softmax(-1)
    expected = (first[:, None] * second).flatten().double().numpy() * count
    found = np.bincount([s.token_ids[0] * WORDS + s.token_ids[1] for s in samples], minlength=WORDS**2)
    large = expected >= 5
    observed = np.append(found[large], found[~large].sum())
    wanted = np.append(expected[large], expected[~large].sum())
    chi_square = ((observed - wanted) ** 2 / wanted).sum()
    freedom = len(wanted) - 1
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)


def test_alone_or_among_others_a_sample_is_the_same(model):
    """Requests of all kinds that come while others run, against each alone."""
    draw = random.Random(7)
    prompts = drawn_prompts(40, longest=30, seed=7)
    settings = [
        SamplingParams(
            draw.randint(1, 25),
            temperature=draw.choice([0.0, 0.6, 1.0]),
            top_p=draw.choice([1.0, 0.9]),
            top_k=draw.choice([0, 4]),
            n=draw.randint(1, 4),
            seed=draw.randrange(100),
            stop_ids=draw.choice([(), (2,), (5, 7)]),
            speculative=draw.choice([0, 0, 1, 3]),
            logprobs=True,
        )
        for _ in prompts
    ]
    busy = Engine(model, max_batch=6, speculate_always=True)
    requests = []
    for prompt, params in zip(prompts, settings, strict=True):
        requests.append(busy.submit(prompt, params))
        for _ in range(draw.randint(0, 3)):
            busy.step()
    together = [request.result() for request in requests]
    assert not busy.step()  # nothing is left
    alone = Engine(model, max_batch=8)
    for prompt, params, found in zip(prompts, settings, together, strict=True):
        [expected] = alone.generate([prompt], params)
        for one, other in zip(expected, found, strict=True):
            assert one.token_ids == other.token_ids and one.finish_reason == other.finish_reason
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


@pytest.mark.parametrize("drafts", [0, 2])
def test_raw_log_probabilities_are_the_models_own_whatever_the_temperature(model, drafts):
    common = {"temperature": 0.5, "logprobs": True, "top_logprobs": 2, "speculative": drafts, "seed": 1}
    engine = Engine(model, speculate_always=True)
    for prompt in drawn_prompts(4, seed=18):
        raw, scaled = SamplingParams(9, **common, raw_logprobs=True), SamplingParams(9, **common)
        one, other = (request.result()[0] for request in [engine.submit(prompt, raw), engine.submit(prompt, scaled)])
        assert one.token_ids == other.token_ids  # beside each other in one batch
        np.testing.assert_allclose(plain_logprobs(model, prompt, one.token_ids, 1.0), one.logprobs, atol=1e-4)
        np.testing.assert_allclose(plain_logprobs(model, prompt, one.token_ids, 0.5), other.logprobs, atol=1e-4)
        for best, sharper in zip(one.top_logprobs, other.top_logprobs, strict=True):
            assert [token for token, _ in best] == [token for token, _ in sharper]
            # Divided by the temperature, the distance of two logits is twice as large.
            assert sharper[0][1] - sharper[1][1] == pytest.approx(2 * (best[0][1] - best[1][1]), abs=1e-4)


@pytest.mark.parametrize("drafts", [0, 2])
def test_log_probabilities_are_those_of_a_training_forward(drafts):
    model = V3ForCausalLM(V3Config.preset("nano")).initialize(0.06, seed=0).train()
    prompts = [[index % 1000 for index in range(start, start + 9)] for start in range(0, 3000, 100)]
    params = SamplingParams(24, temperature=0.8, logprobs=True, speculative=drafts)
    for prompt, [one] in zip(prompts, Engine(model, max_batch=7).generate(prompts, params), strict=True):
        exact = plain_logprobs(model, prompt, one.token_ids, 0.8)
        np.testing.assert_allclose(exact, one.logprobs, atol=1e-5)
    assert model.training


def test_deterministic_is_bitwise_the_same_in_any_company(model):
    prompts, params = drawn_prompts(6, seed=8), SamplingParams(8, n=2, logprobs=True, speculative=2)
    together = Engine(model, deterministic=True).generate(prompts, params)
    for prompt, found in zip(prompts, together, strict=True):
        [expected] = Engine(model, deterministic=True).generate([prompt], params)
        assert [(one.token_ids, one.logprobs) for one in found] == [(one.token_ids, one.logprobs) for one in expected]


def test_long_prompts_are_read_in_chunks_while_others_go_on(model, monkeypatch):
    prompts = drawn_prompts(3, longest=8, seed=9) + drawn_prompts(3, longest=90, seed=10)
    params = SamplingParams(12, temperature=0.0, speculative=1)
    expected = tokens_of(Engine(model), prompts, params)
    monkeypatch.setattr(batch_module, "PREFILL_TOKENS", 16)
    engine = Engine(model, speculate_always=True)
    first = engine.submit(prompts[0], params, stream=True)
    engine.step()
    rest = [engine.submit(prompt, params) for prompt in prompts[1:]]
    for _ in range(6):
        engine.step()
    assert first.done or engine.batch.rows.made[0] >= 6  # it did not wait for the long ones
    assert [[one.token_ids for one in request.result()] for request in (first, *rest)] == expected


def test_samples_of_one_prompt_are_read_once(model, monkeypatch):
    lengths = []
    forward = V3Model.forward

    def counted(self, input_ids=None, *args, **kwargs):
        lengths.append(tuple(input_ids.shape))
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(V3Model, "forward", counted)
    Engine(model).generate([[1, 2, 3, 4, 5]], SamplingParams(2, n=7))
    assert lengths == [(1, 5)]


def test_a_stream_gives_the_completion_piece_by_piece(model):
    engine = Engine(model, speculate_always=True)
    request = engine.submit([1, 2, 3], SamplingParams(15, n=3, logprobs=True, speculative=2), stream=True)
    tokens: dict[int, list[int]] = {0: [], 1: [], 2: []}
    logprobs: dict[int, list[float]] = {0: [], 1: [], 2: []}
    ended = {}
    for delta in request.stream():
        assert delta.index not in ended
        tokens[delta.index] += delta.token_ids
        logprobs[delta.index] += delta.logprobs
        if delta.finish_reason is not None:
            ended[delta.index] = delta.finish_reason
    for index, completion in enumerate(request.result()):
        assert tokens[index] == completion.token_ids and ended[index] == completion.finish_reason
        assert logprobs[index] == completion.logprobs
    with pytest.raises(ValueError, match="stream=True"):
        next(engine.submit([1], SamplingParams(1)).stream())


def test_an_aborted_request_makes_room(model):
    engine = Engine(model, max_batch=2)
    long = engine.submit([1, 2], SamplingParams(200, n=2), stream=True)
    waiting = engine.submit([3], SamplingParams(3), stream=True)
    never = engine.submit([4], SamplingParams(3, n=2))
    for _ in range(4):
        engine.step()
    long.abort()
    never.abort()
    assert waiting.result()[0].finish_reason == "length"
    assert [one.finish_reason for one in long.result()] == ["abort", "abort"]
    assert all(0 < len(one.token_ids) < 200 for one in long.result())
    assert [(one.token_ids, one.finish_reason) for one in never.result()] == [([], "abort")] * 2
    assert sum(delta.finish_reason == "abort" for delta in long.stream()) == 2
    assert not engine.step()


@pytest.mark.parametrize("drafts", [0, 3])
def test_stop_texts_end_a_sample_where_they_are_spelt(model, drafts):
    prompts = drawn_prompts(20, seed=11)
    free = tokens_of(Engine(model), prompts, SamplingParams(30, seed=1))
    spelt = [Letters().decode(tokens) for [tokens] in free]
    stops = (spelt[0][4:6], spelt[1][7])
    engine = Engine(model, Letters(), speculate_always=True)
    found = engine.generate(prompts, SamplingParams(30, seed=1, stop=stops, speculative=drafts))
    ended = 0
    for text, [one] in zip(spelt, found, strict=True):
        places = [text.find(stop) + len(stop) for stop in stops if stop in text]
        expected = text[: min(places)] if places else text
        assert Letters().decode(one.token_ids) == expected
        assert one.finish_reason == ("stop" if places else "length")
        ended += bool(places)
    assert ended > 2


@pytest.mark.parametrize("drafts", [0, 2])
def test_routed_experts_are_those_of_a_plain_forward(model, drafts):
    prompts = drawn_prompts(5, seed=13)
    params = SamplingParams(9, n=2, routed_experts=True, speculative=drafts)
    for prompt, samples in zip(prompts, Engine(model, speculate_always=True).generate(prompts, params), strict=True):
        for one in samples:
            ids = torch.tensor([prompt + one.token_ids[:-1]])
            with torch.no_grad():
                routings = model.model(ids).routings
            expected = torch.stack([routing.indices_TK for routing in routings], dim=1)
            assert one.routed_experts.dtype == np.int16
            assert one.routed_experts.tolist() == expected.tolist()


def test_scores_and_likeliest_tokens_are_those_of_a_plain_forward(model):
    sequences = [*drawn_prompts(9, seed=15), [3]]
    engine = Engine(model)
    for sequence, scored in zip(sequences, engine.score(sequences, top=3), strict=True):
        with torch.no_grad():
            logprobs = model(torch.tensor([sequence])).logits[0].log_softmax(-1)
        assert len(scored) == len(sequence) - 1
        for place, (own, best) in enumerate(scored):
            assert own == pytest.approx(float(logprobs[place, sequence[place + 1]]), abs=1e-5)
            values, tokens = logprobs[place].topk(3)
            assert [token for token, _ in best] == tokens.tolist()
            np.testing.assert_allclose([value for _, value in best], values, atol=1e-5)
    for drafts in (0, 2):
        params = SamplingParams(7, n=2, temperature=0.9, logprobs=True, top_logprobs=WORDS, speculative=drafts)
        request = Engine(model, speculate_always=True).submit(sequences[0], params, stream=True)
        streamed: dict[int, list] = {0: [], 1: []}
        for delta in request.stream():
            streamed[delta.index] += delta.top_logprobs
        for index, one in enumerate(request.result()):
            assert streamed[index] == one.top_logprobs and len(one.top_logprobs) == 7
            for token, logprob, best in zip(one.token_ids, one.logprobs, one.top_logprobs, strict=True):
                assert dict(best)[token] == pytest.approx(logprob, abs=1e-6)
                assert [value for _, value in best] == sorted((value for _, value in best), reverse=True)
    assert engine.score([[1, 2]])[0][0][1] == []
    with pytest.raises(ValueError, match="sequence 1: 0 tokens"):
        engine.score([[1], []])


def test_a_step_that_fails_loses_nothing(model, monkeypatch):
    engine = Engine(model, max_batch=4)
    prompts, params = drawn_prompts(3, seed=17), SamplingParams(6, temperature=0.0)
    expected = tokens_of(Engine(model), prompts, params)
    reserve = Batch._reserve

    def full(*_):
        raise MemoryError("no room for a cache")

    request = engine.submit(prompts[0], params)
    monkeypatch.setattr(Batch, "_reserve", full)
    with pytest.raises(MemoryError):
        request.result()
    with pytest.raises(MemoryError):
        engine.generate(prompts[1:], params)
    monkeypatch.setattr(Batch, "_reserve", reserve)
    assert [[one.token_ids for one in request.result()]] == expected[:1]
    assert engine.load == (0, 0)  # what was given up is not worked off

    forward = Batch._read
    monkeypatch.setattr(Batch, "_read", full)
    with pytest.raises(MemoryError):
        engine.generate([prompts[0]], params)
    monkeypatch.setattr(Batch, "_read", forward)
    assert tokens_of(engine, prompts, params) == expected  # the prompt that failed is not read again

    def interrupted(self, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Batch, "_settle", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(prompts, params)
    monkeypatch.undo()
    assert engine.load[1] == 0 and tokens_of(engine, prompts, params) == expected


def test_a_stream_that_was_read_ends_at_once(model):
    request = Engine(model).submit([1, 2], SamplingParams(3, n=2), stream=True)
    assert len(list(request.stream())) == 6 and list(request.stream()) == []


def test_drafts_that_spell_the_end_are_accepted_ones(model):
    for prompt in drawn_prompts(50, seed=2):
        expected = plain_greedy(model, prompt, 9)
        late = [token for place, token in enumerate(expected) if place >= 2 and token not in expected[:place]]
        if late:
            break
    stop = late[0]
    engine = Engine(model, speculate_always=True)
    rows, place = engine.batch.rows, expected.index(stop)

    def oracle(ran, tokens, taken, goes_on):
        rows.drafts[0] = expected[1:8] if goes_on[0] else -1

    engine.batch._draft = oracle  # type: ignore[method-assign]
    [[one]] = engine.generate([prompt], SamplingParams(20, temperature=0.0, speculative=7, stop_ids=(stop,)))
    assert one.token_ids == expected[: place + 1] and one.finish_reason == "stop"
    assert one.accepted_drafts == place  # all but the first token, the stop among them


def test_a_large_cache_is_let_go(model):
    engine = Engine(model, max_batch=32)
    engine.generate([[1, 2, 3]] * 32, SamplingParams(5))
    engine.generate([[1] * 150], SamplingParams(20))
    assert engine.batch.cache.buffer_LBSC.shape[1:3] == (1, 170)
    large = engine.batch.cache
    engine.generate([[1] * 100], SamplingParams(20))
    assert engine.batch.cache is large  # near enough


def test_the_cache_takes_what_the_formula_says_and_grows(model):
    engine = Engine(model, max_batch=8)
    engine.generate([[1, 2, 3]] * 5, SamplingParams(7))
    assert engine.batch.cache.nbytes == 5 * 10 * kv_bytes_per_token(model.config, torch.float32)
    expected = tokens_of(Engine(model), [[5, 6]], SamplingParams(30, temperature=0.0, speculative=2))
    first = engine.submit([5, 6], SamplingParams(30, temperature=0.0))
    engine.step()
    second = engine.submit([7] * 40, SamplingParams(9, temperature=0.0, speculative=2))
    assert [[first.result()[0].token_ids]] == expected
    assert second.result()[0].token_ids == plain_greedy(model, [7] * 40, 9)


def test_what_cannot_be_is_refused_before_anything_runs(model):
    engine = Engine(model, max_tokens=10)
    with pytest.raises(ValueError, match="prompt 1: the prompt is empty"):
        engine.generate([[1], []], SamplingParams(1))
    with pytest.raises(ValueError, match="8 tokens and 3 new ones exceed 10"):
        engine.submit([1] * 8, SamplingParams(3))
    with pytest.raises(ValueError, match="tokenizer"):
        engine.submit([1], SamplingParams(3, stop=("a",)))
    with pytest.raises(ValueError, match="2 prompts but 1"):
        engine.generate([[1], [2]], [SamplingParams(1)])
    bare = V3ForCausalLM(V3Config.preset("nano", num_nextn_predict_layers=0))
    with pytest.raises(ValueError, match="no MTP module"):
        Engine(bare).submit([1], SamplingParams(3, speculative=1))
    for wrong in ({"speculative": 8}, {"stop": ("",)}, {"n": 0}):
        with pytest.raises(ValueError):
            SamplingParams(3, **wrong)
    for wrong in ({"max_tokens": 3}, {"min_tokens": 3}, {"min_tokens": 3, "extending": (6,)},
                  {"min_tokens": 9, "extending": (1,), "max_tokens": 3, "closing": (6,)}):  # fmt: skip
        with pytest.raises(ValueError):
            ThinkingBudget(6, **wrong)
    assert engine.generate([], SamplingParams(1)) == []


def test_drafting_stops_where_it_does_not_pay():
    switch = SpeculationSwitch()
    assert switch.needs_plain(4, 1) and switch.pays(4, 1)  # unknown: find out
    for _ in range(MEASURES):
        switch.plain(4, 1, 1.0)
        switch.drafted(4, 1, 1.6, 1.8)
    assert switch.pays(4, 1) and switch.pays(5, 1) and not switch.needs_plain(7, 1)
    for _ in range(60):
        switch.drafted(4, 1, 1.6, 1.1)
    assert not switch.pays(4, 1)
    assert switch.pays(64, 1)  # another size of batch, not known yet
    for _ in range(64):
        switch.declined(4, 1)
    assert switch.pays(4, 1)  # asked again after some rows


def test_a_report_counts_what_follows_a_rejected_draft_as_rejected():
    report = SpeculationReport()
    report.add(np.array([2, 2, 0]), np.array([0, 1, 0]), np.array([1, 2, 1]))
    report.add(np.array([1, 0, 0]), np.array([1, 0, 0]), np.array([2, 1, 1]))
    assert (report.proposed, report.accepted) == ([3, 2], [2, 0])
    assert report.acceptance == [2 / 3, 0.0]
    assert report.tokens_per_pass == 5 / 3
