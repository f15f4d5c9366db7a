"""What goes wrong in the engine stays with the request it belongs to."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import asdict

import numpy as np
import pytest
import torch
from reference import random_model, tiny_config
from small_engine import WORDS, Letters, drawn_prompts, small_model, tokens_of

import core_model.generation.engine as engine_module
from core_model import V3ForCausalLM
from core_model.accounting import kv_bytes_per_token
from core_model.generation import Engine, SamplingParams, ThinkingBudget
from core_model.generation.batch import PATIENCE, Batch


@pytest.fixture(scope="module")
def model() -> V3ForCausalLM:
    return small_model()


GREEDY = SamplingParams(6, temperature=0.0)


@pytest.mark.parametrize("routed", [False, True])
def test_prompts_whose_joining_fails_are_read_again(model, monkeypatch, routed):
    prompts = drawn_prompts(3, seed=3)
    params = SamplingParams(6, temperature=0.0, n=2, routed_experts=routed)
    expected = Engine(model).generate(prompts, params)
    engine = Engine(model)
    logits = engine.batch.path.logits
    monkeypatch.setattr(engine.batch.path, "logits", lambda _: (_ for _ in ()).throw(MemoryError("full")))
    requests = [engine.submit(prompt, params) for prompt in prompts]
    with pytest.raises(MemoryError):
        requests[0].result()
    assert engine.load == (6, 0)  # still on their way
    monkeypatch.setattr(engine.batch.path, "logits", logits)
    for request, samples in zip(requests, expected, strict=True):
        for found, wanted in zip(request.result(), samples, strict=True):
            assert found.token_ids == wanted.token_ids
            assert not routed or np.array_equal(found.routed_experts, wanted.routed_experts)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("settled", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_no_tokens(monkeypatch, temperature, settled, value):
    """Where prompts end, and while their samples go on; when the model is whole again, so is the engine."""
    engine = Engine(small_model())
    params, prompts = SamplingParams(4, temperature=temperature), drawn_prompts(2, seed=5)
    expected = tokens_of(engine, prompts, params)
    logits, passes = engine.batch.path.logits, iter(range(9))

    def spoilt(hidden):
        out = logits(hidden).clone()
        if next(passes) >= settled:
            out[0, ..., 3] = value
        return out

    with monkeypatch.context() as patch, pytest.raises(FloatingPointError, match="not finite"):
        patch.setattr(engine.batch.path, "logits", spoilt)
        engine.generate(prompts, params)
    assert engine.load == (0, 0)
    assert tokens_of(engine, prompts, params) == expected


@pytest.mark.parametrize("driven", [False, True])
@pytest.mark.parametrize("when", ["read", "decoded"])
def test_a_prompt_whose_logits_are_not_finite_takes_no_other_down(monkeypatch, caplog, driven, when):
    sound, params = [1, 2, 3], SamplingParams(12, temperature=0.0, n=2)
    broken = small_model()
    (expected,) = tokens_of(Engine(broken), [sound], params)
    unsaid = max(set(range(4, WORDS)).difference(*expected))
    with torch.no_grad():
        broken.model.embed_tokens.weight[unsaid] = float("nan")
    spoilt = [1, unsaid] if when == "read" else [1, 2]
    engine, stop = Engine(broken), threading.Event()
    if when == "decoded":  # the second pass of the row whose prompt has two tokens
        logits, passes = engine.batch.path.logits, iter(range(99))

        def spoil(hidden):
            out = logits(hidden).clone()
            if next(passes) == 1:
                out[-1] = float("nan")
            return out

        monkeypatch.setattr(engine.batch.path, "logits", spoil)
    with caplog.at_level(logging.CRITICAL):
        fine, other = engine.submit(sound, params), engine.submit(spoilt, GREEDY)
        if driven:
            driver = threading.Thread(target=engine.drive, args=(stop,), daemon=True)
            driver.start()
        else:
            with pytest.raises(FloatingPointError):
                other.result()
        assert [one.token_ids for one in fine.result()] == expected
        assert [one.finish_reason for one in other.result()] == ["abort"]
        if driven:
            stop.set()
            engine.wake()
            driver.join(timeout=10)
    assert engine.load == (0, 0)


def test_a_driver_whose_joining_fails_leaves_nobody_waiting(model, monkeypatch, caplog):
    monkeypatch.setattr(Batch, "_join", lambda *_: (_ for _ in ()).throw(MemoryError("full")))
    engine, stop = Engine(model), threading.Event()
    driver = threading.Thread(target=engine.drive, args=(stop,), daemon=True)
    driver.start()
    try:
        with caplog.at_level(logging.CRITICAL):
            requests = [engine.submit(prompt, GREEDY) for prompt in drawn_prompts(3)]
            assert {one.finish_reason for request in requests for one in request.result()} == {"abort"}
    finally:
        stop.set()
        engine.wake()
        driver.join(timeout=10)
    assert not driver.is_alive()


@pytest.mark.parametrize("token", [-1, WORDS, 10**6])
def test_tokens_that_are_none_are_refused_before_they_spoil_a_batch(model, token):
    engine = Engine(model)
    with pytest.raises(ValueError, match=f"prompt 1: token {token}, expected 0 to {WORDS - 1}"):
        engine.generate([[1, 2], [3, token]], GREEDY)
    with pytest.raises(ValueError, match=f"sequence 0: token {token}"):
        engine.score([[3, token]])
    assert engine.load == (0, 0)


def test_a_listener_that_fails_ends_its_own_request_only(model, caplog):
    engine, prompts = Engine(model), drawn_prompts(2, seed=5)

    def broken(_):
        raise RuntimeError("nobody home")

    with caplog.at_level(logging.ERROR):
        bad = engine.submit(prompts[0], GREEDY, broken)
        good = engine.submit(prompts[1], GREEDY)
        assert [one.token_ids for one in good.result()] == tokens_of(Engine(model), [prompts[1]], GREEDY)[0]
        assert bad.result()[0].finish_reason == "abort"
    assert "nobody home" in caplog.text


def test_a_free_row_is_not_kept_from_a_request_for_long(model):
    engine = Engine(model, max_batch=8)
    engine.submit([1], SamplingParams(120, temperature=0.0, n=7))
    engine.step()
    late = engine.submit([2], SamplingParams(1, temperature=0.0))
    steps = 0
    while not late.done:
        engine.step()
        steps += 1
    assert 1 < steps <= PATIENCE + 2


def test_the_cache_has_no_place_for_drafts_that_nobody_asks_for(model):
    engine = Engine(model, max_batch=1)
    for speculative in (0, 3, 0):
        engine.batch.cache = None
        engine.generate([[1, 2, 3]], SamplingParams(7, temperature=0.0, speculative=speculative))
        assert engine.batch.cache is not None
        plain = 10 * kv_bytes_per_token(model.config, torch.float32)
        assert (engine.batch.cache.nbytes == plain) == (speculative == 0)


@pytest.mark.parametrize("keys", [{"max_batch": 0}, {"max_batch": -1}, {"max_tokens": 0}, {"max_tokens": 1}])
def test_an_engine_without_room_is_refused(model, keys):
    with pytest.raises(ValueError, match="a batch of at least 1 and 2 tokens"):
        Engine(model, **keys)


def test_any_width_of_the_query_latent_decodes():
    model = random_model(tiny_config(q_lora_rank=17))
    found = Engine(model).generate([[5, 6, 7]], GREEDY)[0][0].token_ids
    ids = [5, 6, 7]
    for token in found:
        assert int(model(torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids.append(token)


def test_no_number_for_top_k_is_too_large(model):
    params = SamplingParams(6, top_k=10**400, seed=3)
    assert tokens_of(Engine(model), [[1]], params) == tokens_of(Engine(model), [[1]], SamplingParams(6, seed=3))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"thinking": ThinkingBudget(3, 2, closing=(5000, 3))}, f"thinking: token 5000, expected 0 to {WORDS - 1}"),
        ({"thinking": ThinkingBudget(3, min_tokens=2, extending=(-1,))}, "thinking: token -1"),
        ({"thinking": ThinkingBudget(3, start_id=WORDS)}, f"thinking: token {WORDS}"),
    ],
)
def test_a_budget_of_tokens_that_are_none_is_refused_before_it_joins_others(model, params, message):
    engine = Engine(model)
    with pytest.raises(ValueError, match=message):
        engine.submit([1, 2], SamplingParams(6, **params))
    assert engine.load == (0, 0)


def test_experts_of_a_model_without_any_are_refused():
    dense = Engine(random_model(tiny_config(n_routed_experts=None)))
    with pytest.raises(ValueError, match="routed_experts: the model has no routed experts"):
        dense.generate([[1, 2]], SamplingParams(6, routed_experts=True))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"max_new_tokens": 2.5}, "max_new_tokens is an integer, not 2.5"),
        ({"max_new_tokens": 2, "n": "1"}, "n is an integer, not '1'"),
        ({"max_new_tokens": 2, "stop_ids": "12"}, "a token of stop_ids is an integer, not '1'"),
        ({"max_new_tokens": 2, "stop_ids": 5}, "stop_ids holds tokens, not 5"),
        ({"max_new_tokens": 2, "stop": "ab"}, "stop holds texts, and is none itself"),
        ({"max_new_tokens": 2, "stop": (3,)}, "stop holds texts, not"),
        ({"max_new_tokens": 2, "stop": 3}, "stop holds texts, and is none itself"),
        ({"max_new_tokens": 2, "stop": ("a", "")}, "an empty text cannot end a sample"),
    ],
)
def test_parameters_of_another_kind_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**params)


def test_lists_are_as_good_as_tuples(model):
    budget = ThinkingBudget(3, 2, closing=[4, 3], extending=[5])
    listed = SamplingParams(np.int64(6), stop_ids=iter([2, 7]), stop=iter(["a"]), thinking=budget)
    assert listed == SamplingParams(
        6, stop_ids=(2, 7), stop=("a",), thinking=ThinkingBudget(3, 2, (4, 3), extending=(5,))
    )
    assert hash(listed) and json.dumps(asdict(listed))
    assert len(Engine(model, Letters()).generate([[1, 2], [3]], listed)) == 2


def test_a_seed_of_numpys_is_a_seed(model):
    prompts, params = [[1, 2], [3]], SamplingParams(6, seed=5)
    numpys = SamplingParams(6, seed=np.int64(5))
    assert tokens_of(Engine(model), prompts, numpys) == tokens_of(Engine(model), prompts, params)


def test_a_budget_of_halves_of_tokens_is_refused():
    with pytest.raises(ValueError, match=r"a token of closing is an integer, not 4\.5"):
        ThinkingBudget(3, 2, closing=(3, 4.5))
    with pytest.raises(ValueError, match=r"a thought's max_tokens is an integer, not 2\.5"):
        ThinkingBudget(3, 2.5, closing=(3,))


def test_scores_do_not_depend_on_how_many_logits_exist_at_once(model, monkeypatch):
    engine, sequences = Engine(model), drawn_prompts(5, longest=40, seed=8)
    whole = engine.score(sequences, top=2)
    monkeypatch.setattr(engine_module, "CHUNK", 7)
    for found, expected in zip(engine.score(sequences, top=2), whole, strict=True):
        assert [own for own, _ in found] == pytest.approx([own for own, _ in expected], abs=1e-5)
        likeliest = [[[token for token, _ in best] for _, best in scores] for scores in (found, expected)]
        assert likeliest[0] == likeliest[1]
