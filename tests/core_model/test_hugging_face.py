"""Models of transformers behind the engine's protocol: against transformers' own `generate`, plain forwards, ours."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from core_model.errors import InputError
from core_model.generation import Engine, Generator, HuggingFaceGenerator, SamplingParams, ThinkingBudget
from tests.core_model.reference import random_model, tiny_config

WORDS = 48
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
LLAMA = LlamaConfig(
    **SMALL,
    vocab_size=WORDS,
    intermediate_size=48,
    num_key_value_heads=2,
    max_position_embeddings=64,
    eos_token_id=None,
)
MAKERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LLAMA),
    # Positions learnt and absolute: wrong ones would show.
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=WORDS, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3, eos_token_id=None
        )
    ),
    "sliding window": lambda: MistralForCausalLM(
        MistralConfig(
            **SMALL, vocab_size=WORDS, intermediate_size=48, num_key_value_heads=2, sliding_window=5, eos_token_id=None
        )
    ),
    "alibi": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=WORDS, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3, eos_token_id=None)
    ),
    "v3": lambda: random_model(tiny_config()),
}


@cache
def made(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return MAKERS[name]().eval()


def generator_of(name: str, **keys: Any) -> HuggingFaceGenerator:
    return HuggingFaceGenerator(made(name), **{"max_tokens": 64, "max_batch": 4, **keys})


def drawn_prompts(count: int, longest: int = 11, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(WORDS) for _ in range(draw.randint(1, longest))] for _ in range(count)]


def letters(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Token i is one character, "a" and those after it."""
    vocabulary = {chr(ord("a") + i): i for i in range(WORDS)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=chat_template, eos_token="c")


def tokens_of(generator: Generator, prompts: list[list[int]], params: Any) -> list[list[list[int]]]:
    return [[one.token_ids for one in samples] for samples in generator.generate(prompts, params)]


@torch.no_grad()
def plain_logprobs(model: PreTrainedModel, prompt: list[int], tokens: list[int], temperature: float) -> torch.Tensor:
    logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1)


def transformers_greedy(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    # The mask is given: else transformers takes every 0 in the prompt for padding.
    keys = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "eos_token_id": None}
    return model.generate(ids, do_sample=False, max_new_tokens=count, **keys)[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", MAKERS)
def test_greedy_is_what_transformers_generates(name):
    prompts = drawn_prompts(7)
    expected = [transformers_greedy(made(name), prompt, 12) for prompt in prompts]
    generator = generator_of(name)
    assert isinstance(generator, Generator)
    assert [samples for [samples] in tokens_of(generator, prompts, SamplingParams(12, temperature=0))] == expected


@pytest.mark.parametrize("setting", [{"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.8, "top_k": 20, "n": 3}])
def test_ours_generates_and_scores_as_in_the_engine(setting):
    prompts, params = drawn_prompts(6), SamplingParams(12, seed=3, logprobs=True, top_logprobs=2, **setting)
    engine, generator = Engine(made("v3")), generator_of("v3")
    assert isinstance(engine, Generator)
    ours, theirs = engine.generate(prompts, params), generator.generate(prompts, params)
    for one, other in zip(chain(*ours), chain(*theirs), strict=True):
        assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert [[token for token, _ in place] for place in one.top_logprobs or []] == [
            [token for token, _ in place] for place in other.top_logprobs or []
        ]
    for one, other in zip(engine.score(prompts, 2), generator.score(prompts, 2), strict=True):
        assert [own for own, _ in one] == pytest.approx([own for own, _ in other], abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_sample_does_not_depend_on_its_batch(name):
    prompts = drawn_prompts(8)
    params = [
        SamplingParams(5 + i, temperature=0.5 + 0.1 * i, top_p=0.9, top_k=i * 5, n=1 + i % 3, seed=i)
        for i in range(len(prompts))
    ]
    together = tokens_of(generator_of(name, max_batch=64), prompts, params)
    for prompt, one, expected in zip(prompts, params, together, strict=True):
        assert tokens_of(generator_of(name, max_batch=1), [prompt], one) == [expected]
    assert tokens_of(generator_of(name, max_batch=3), prompts, params) == together


def test_seeds_and_samples_differ():
    generator, [prompt] = generator_of("llama"), drawn_prompts(1)
    [four] = tokens_of(generator, [prompt], SamplingParams(10, n=4, seed=1))
    assert len({tuple(sample) for sample in four}) == 4
    assert tokens_of(generator, [prompt], SamplingParams(10, n=2, seed=1)) == [four[:2]]
    assert tokens_of(generator, [prompt], SamplingParams(10, n=4, seed=2)) != [four]
    [narrow] = tokens_of(generator, [prompt], SamplingParams(10, n=4, seed=1, top_k=1))
    assert narrow == tokens_of(generator, [prompt], SamplingParams(10, temperature=0))[0] * 4


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(("raw", "divisor"), [(False, 0.7), (True, 1.0)])
def test_logprobs_are_those_of_a_plain_forward(name, raw, divisor):
    prompts = drawn_prompts(5)
    params = SamplingParams(9, temperature=0.7, n=2, logprobs=True, raw_logprobs=raw, top_logprobs=3)
    for prompt, samples in zip(prompts, generator_of(name).generate(prompts, params), strict=True):
        for sample in samples:
            expected = plain_logprobs(made(name), prompt, sample.token_ids, divisor)
            own = expected.gather(1, torch.tensor(sample.token_ids)[:, None]).squeeze(1).tolist()
            assert sample.logprobs == pytest.approx(own, abs=1e-5)
            values, tokens = expected.topk(3)
            assert [[token for token, _ in place] for place in sample.top_logprobs or []] == tokens.tolist()
            assert [value for place in sample.top_logprobs or [] for _, value in place] == pytest.approx(
                values.flatten().tolist(), abs=1e-5
            )
    [[silent]] = generator_of(name).generate(prompts[:1], SamplingParams(2))
    assert silent.logprobs is None and silent.top_logprobs is None


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_scores_are_those_of_a_plain_forward(name, monkeypatch):
    monkeypatch.setattr("core_model.generation.hugging_face.PREFILL_TOKENS", 30)  # several forwards
    sequences = [*drawn_prompts(9, longest=20, seed=4), [7]]
    generator = generator_of(name)
    for sequence, scores in zip(sequences, generator.score(sequences, top=2), strict=True):
        expected = plain_logprobs(made(name), sequence[:1], sequence[1:], 1.0)
        assert [own for own, _ in scores] == pytest.approx(
            [float(expected[place, token]) for place, token in enumerate(sequence[1:])], abs=1e-5
        )
        assert [[token for token, _ in best] for _, best in scores] == expected.topk(2).indices.tolist()
    assert generator.score([]) == []
    for bad in ([], [1] * 65):
        with pytest.raises(ValueError, match=r"sequence 1: .* expected 1 to 64"):
            generator.score([[1, 2], bad])


def test_stop_ids_and_stop_texts():
    tokenizer, prompts = letters(), drawn_prompts(6)
    generator = generator_of("llama", tokenizer=tokenizer)
    free = [tokens for [tokens] in tokens_of(generator, prompts, SamplingParams(20, temperature=0))]
    ids = [SamplingParams(20, temperature=0, stop_ids=(tokens[5],)) for tokens in free]
    texts = [SamplingParams(20, temperature=0, stop=("no such", tokenizer.decode(tokens[4:6]))) for tokens in free]
    for tokens, [by_id], [by_text] in zip(
        free, generator.generate(prompts, ids), generator.generate(prompts, texts), strict=True
    ):
        assert by_id.token_ids == tokens[: tokens.index(tokens[5]) + 1]
        assert by_text.token_ids == tokens[: _place(tokens, tokens[4:6])]
        assert by_id.finish_reason == by_text.finish_reason == "stop"
    [[cut]] = generator.generate(prompts[:1], SamplingParams(3, temperature=0))
    assert (cut.token_ids, cut.finish_reason) == (free[0][:3], "length")


def _place(tokens: list[int], part: list[int]) -> int:
    """Where `part` first ends in `tokens`."""
    return next(end for end in range(len(part), len(tokens) + 1) if tokens[end - len(part) : end] == part)


def test_a_thinking_budget_is_kept():
    [prompt], end = drawn_prompts(1), 47
    generator = generator_of("llama")
    budget = ThinkingBudget(end, max_tokens=4, closing=(1, end))
    params = SamplingParams(12, temperature=0, thinking=budget, logprobs=True)
    [[free]] = tokens_of(generator, [prompt], SamplingParams(4, temperature=0))
    [[sample]] = generator.generate([prompt], params)
    assert sample.token_ids[:6] == [*free, 1, end] and len(sample.token_ids) == 12
    # What was put there is what later tokens follow, and has its own log-probability.
    expected = plain_logprobs(made("llama"), prompt, sample.token_ids, 1.0)
    assert expected[6:].argmax(-1).tolist() == sample.token_ids[6:]
    assert (sample.logprobs or [])[4] == pytest.approx(float(expected[4, 1]), abs=1e-5)


def test_what_it_cannot_serve_is_refused_by_name():
    generator = generator_of("llama")
    for params, named in (
        (SamplingParams(2, speculative=1), "prompt 1: speculative=1"),
        (SamplingParams(2, routed_experts=True), "prompt 1: routed_experts"),
        (SamplingParams(2, stop=("x",)), "prompt 1: stop texts"),
        (SamplingParams(64), "prompt 1: 1 tokens and 64 new ones exceed 64"),
    ):
        with pytest.raises(ValueError, match=named):
            generator.generate([[1], [2]], [SamplingParams(2), params])
    with pytest.raises(ValueError, match="prompt 0: the prompt is empty"):
        generator.generate([[]], SamplingParams(2))
    with pytest.raises(ValueError, match="2 prompts but 1 sampling"):
        generator.generate([[1], [2]], [SamplingParams(2)])
    assert generator.generate([], SamplingParams(2)) == []


def test_models_that_it_cannot_run_are_refused():
    with pytest.raises(ValueError, match="BloomForCausalLM names no longest sequence: pass max_tokens"):
        HuggingFaceGenerator(made("alibi"))
    mamba = MambaForCausalLM(MambaConfig(vocab_size=WORDS, hidden_size=16, state_size=4, num_hidden_layers=1))
    with pytest.raises(ValueError, match="MambaForCausalLM keeps its past elsewhere"):
        HuggingFaceGenerator(mamba, max_tokens=64)


def test_the_model_is_left_as_it_was_found():
    model = LlamaForCausalLM(LLAMA).train()
    HuggingFaceGenerator(model).generate([[1, 2]], SamplingParams(2))
    assert model.training and not any(parameter.is_inference() for parameter in model.parameters())


def test_another_dtype_is_a_copy_that_takes_the_weights_over():
    torch.manual_seed(1)
    model, prompts, params = LlamaForCausalLM(LLAMA).eval(), drawn_prompts(3), SamplingParams(8, temperature=0)
    copied, shared = HuggingFaceGenerator(model, dtype=torch.float64), HuggingFaceGenerator(model)
    assert copied.model.dtype == torch.float64 and model.dtype == torch.float32
    assert {buffer.dtype for buffer in copied.model.buffers()} == {torch.float32}
    before = tokens_of(shared, prompts, params)
    assert tokens_of(copied, prompts, params) == before
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    after = tokens_of(shared, prompts, params)
    assert after != before and tokens_of(copied, prompts, params) == before
    copied.refresh_weights()
    assert tokens_of(copied, prompts, params) == after
    assert copied.model.dtype == torch.float64


TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ m.content }}{% endfor %}{% if add_generation_prompt %}z{% endif %}"
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A model folder."""
    made("llama").save_pretrained(tmp_path / "model")
    letters(TEMPLATE).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_generates_as_the_model_it_was_saved_from(saved):
    generator = HuggingFaceGenerator.from_pretrained(saved, max_batch=2)
    prompts, params = drawn_prompts(3), SamplingParams(8, temperature=0)
    assert tokens_of(generator, prompts, params) == tokens_of(generator_of("llama"), prompts, params)
    assert generator.max_tokens == 64 and generator.model is generator.source and not generator.model.training
    assert generator.stop_ids == (2,)  # the tokenizer's: the model names none
    generator.model.generation_config.eos_token_id = [4, 5]
    assert generator.stop_ids == (4, 5)
    half = HuggingFaceGenerator.from_pretrained(saved, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}


def test_prompts_by_the_models_own_template(saved):
    generator = HuggingFaceGenerator.from_pretrained(saved)
    assert generator.render([{"role": "user", "content": "abc"}]) == [0, 1, 2, 25]
    with pytest.raises(InputError, match="no system role"):
        generator.render([{"role": "system", "content": "abc"}])
    for tokenizer in (None, letters()):
        with pytest.raises(InputError, match="chat_template: expected a chat template; found none"):
            generator_of("llama", tokenizer=tokenizer).render([{"role": "user", "content": "abc"}])


def test_folders_that_are_no_model(saved, tmp_path):
    with pytest.raises(InputError, match=r"nowhere: expected .*; found no such folder"):
        HuggingFaceGenerator.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"found no config\.json"):
        HuggingFaceGenerator.from_pretrained(tmp_path)
    weights, config = saved / "model.safetensors", saved / "config.json"
    kept, settings = weights.read_bytes(), json.loads(config.read_text())
    weights.write_bytes(kept[: len(kept) // 2])
    _refused(saved)
    weights.unlink()
    _refused(saved)
    weights.write_bytes(kept)
    for wrong, found in (
        ({"num_hidden_layers": 3}, r"found no model\.layers\.2\..* \(9 such weights\)"),
        ({"intermediate_size": 64}, r"found model\.layers\.0\.mlp\.\w+\.weight of \[\d+, \d+\], not "),
        ({"model_type": "unheard of"}, "unheard of"),
        ({"model_type": "t5"}, "T5Config"),
        ({"auto_map": {"AutoConfig": "code.Config"}, "model_type": "own"}, "custom code"),
    ):
        config.write_text(json.dumps(settings | wrong))
        _refused(saved, found)
    config.write_text("{")
    _refused(saved)
    config.write_text(json.dumps(settings))
    HuggingFaceGenerator.from_pretrained(saved)
    for path in saved.glob("tokenizer*"):
        path.unlink()
    _refused(saved)


def _refused(folder: Path, found: str | None = None) -> None:
    with pytest.raises(InputError, match=found) as error:
        HuggingFaceGenerator.from_pretrained(folder)
    assert error.value.path == folder and "\n" not in str(error.value)
