"""The engine among threads: one that drives it, others that ask; engines that share a model."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from small_engine import drawn_prompts, plain_greedy, small_model

import core_model.generation.engine as engine_module
from core_model import V3ForCausalLM
from core_model.generation import Delta, Engine, SamplingParams


@pytest.fixture(scope="module")
def model() -> V3ForCausalLM:
    return small_model()


@pytest.fixture
def driven(model):
    """An engine with a thread of its own; stopped at the end, if the test has not."""
    engine, stop = Engine(model, max_batch=4), threading.Event()
    driver = threading.Thread(target=engine.drive, args=(stop,))
    driver.start()

    def end():
        stop.set()
        engine.wake()
        driver.join(timeout=60)
        assert not driver.is_alive()

    yield engine, end
    end()


def test_threads_may_ask_while_another_drives(model, driven):
    engine, _ = driven
    prompts = drawn_prompts(16, seed=14)
    found: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        found[number] = engine.submit(prompts[number], SamplingParams(6, temperature=0.0)).result()[0].token_ids

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert [found[number] for number in range(len(prompts))] == [plain_greedy(model, p, 6) for p in prompts]
    assert engine.generate([[1, 2]], SamplingParams(3, temperature=0.0))[0][0].token_ids == plain_greedy(
        model, [1, 2], 3
    )
    assert engine.load == (0, 0)


def test_a_driver_that_ends_leaves_nobody_waiting(driven):
    engine, end = driven
    told: list[Delta] = []
    requests = [engine.submit([1, 2, 3], SamplingParams(250, n=3), told.append) for _ in range(4)]
    while not told:
        time.sleep(0.001)
    end()
    for request in requests:
        assert [one.finish_reason for one in request.result()] == ["abort"] * 3
    assert sum(delta.finish_reason == "abort" for delta in told) == 12
    assert engine.generate([[1]], SamplingParams(2))  # from here on whoever waits takes the steps


def test_threads_may_generate_at_once_and_the_model_is_as_before(model):
    model.train()
    model.compute_dtype = torch.bfloat16
    modes = set()
    engine = Engine(model, dtype=torch.float32)
    hook = model.model.layers[0].register_forward_hook(
        lambda layer, inputs, output: modes.add((layer.training, inputs[0].dtype))
    )
    prompts = drawn_prompts(4, seed=16)
    threads = [
        threading.Thread(target=lambda prompt=prompt: [engine.generate([prompt], SamplingParams(5)) for _ in range(8)])
        for prompt in prompts
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert modes == {(False, torch.float32)}
        assert model.training and model.compute_dtype == torch.bfloat16
    finally:
        hook.remove()
        model.eval()
        model.compute_dtype = None


def test_engines_that_share_a_model_do_not_undo_each_others_mode(model):
    """The first to come leaves while the second is still at it."""
    first, second = Engine(model), Engine(model)
    first_is_in, second_is_in, first_has_left = threading.Event(), threading.Event(), threading.Event()
    modes = set()

    def watch(layer, inputs, output):
        if threading.current_thread().name == "first":
            first_is_in.set()
            assert second_is_in.wait(30)
        else:
            second_is_in.set()
            assert first_has_left.wait(30)
            modes.add((layer.training, model.compute_dtype))

    def run_first():
        first.generate([[1, 2]], SamplingParams(3))
        first_has_left.set()

    model.train()
    hook = model.model.layers[0].register_forward_hook(watch)
    threads = [
        threading.Thread(target=run_first, name="first"),
        threading.Thread(target=lambda: second.generate([[3, 4]], SamplingParams(3)), name="second"),
    ]
    try:
        threads[0].start()
        assert first_is_in.wait(30)
        threads[1].start()
        for thread in threads:
            thread.join(timeout=60)
        assert modes == {(False, torch.float32)}
        assert model.training and model.compute_dtype is None
    finally:
        hook.remove()
        model.eval()


def test_steps_are_taken_between_the_batches_of_a_scoring(model, driven, monkeypatch):
    engine, _ = driven
    events = []
    step, score = engine.batch.step, engine._score

    def noted_step():
        events.append("step")
        return step()

    def slow_score(*arguments):
        events.append("score")
        time.sleep(0.01)  # the driver comes to wait for its turn
        return score(*arguments)

    monkeypatch.setattr(engine_module, "PREFILL_TOKENS", 1)  # a batch for every sequence
    monkeypatch.setattr(engine.batch, "step", noted_step)
    monkeypatch.setattr(engine, "_score", slow_score)
    running = engine.submit([1, 2, 3], SamplingParams(250, n=4))
    while not events:
        time.sleep(0.001)
    scores = engine.score([[1, 2, 3]] * 20)
    assert scores == [scores[0]] * 20
    running.abort()
    first, last = events.index("score"), len(events) - events[::-1].index("score")
    together = sum(
        pair == ("score", "score") for pair in zip(events[first:last], events[first + 1 : last], strict=False)
    )
    assert events.count("score") == 20 and together < 5


def test_a_scoring_that_is_given_up_does_no_more(model, monkeypatch):
    monkeypatch.setattr(engine_module, "PREFILL_TOKENS", 4)
    engine, sequences = Engine(model), [[1, 2, 3, 4], [5], [6, 7], [8, 9]]
    batches = engine.score_batches(sequences)
    assert set(next(batches)) == {1, 2} and set(next(batches)) == {3}
    batches.close()
    # The lock is free in between, for any thread.
    other = threading.Thread(target=engine.generate, args=([[1]], SamplingParams(2)), daemon=True)
    following = engine.score_batches(sequences)
    next(following)
    other.start()
    other.join(timeout=30)
    assert not other.is_alive()
    with pytest.raises(ValueError, match="sequence 2: 0 tokens"):
        next(engine.score_batches([[1], [2], []]))
