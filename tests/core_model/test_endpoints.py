"""What the endpoints answer to OpenAI's own client, against an engine alone; text from tokens."""

from __future__ import annotations

import openai
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import QUESTION, alone, text_of

from core_model.generation.text import LONGEST_WAIT, ReplyStream, TextStream
from core_model.tokenizer import END_THINK, EOS, THINK, decode_tokens, encode_text, render_prompt, special_id


def test_openais_client_completes(server, model, tokenizer):
    prompt = encode_text(tokenizer, "Compute 12")
    done = server.openai.completions.create(model="nano", prompt="Compute 12", max_tokens=20, n=3, seed=7)
    expected = alone(model, tokenizer, prompt, max_new_tokens=20, n=3, seed=7)
    assert [c.text for c in done.choices] == [text_of(tokenizer, ids) for ids in expected]
    assert [c.index for c in done.choices] == [0, 1, 2]
    assert done.usage.completion_tokens == sum(map(len, expected))
    assert done.usage.prompt_tokens == len(prompt)
    many = server.openai.completions.create(model="nano", prompt=[prompt, prompt[:2]], max_tokens=5, temperature=0)
    for choice, ids in zip(many.choices, (prompt, prompt[:2]), strict=True):
        [best] = alone(model, tokenizer, ids, max_new_tokens=5, temperature=0.0)
        assert choice.text == text_of(tokenizer, best)


def test_openais_client_streams_the_same(server):
    settings = {"model": "nano", "prompt": "Think", "max_tokens": 40, "n": 2, "seed": 3}
    whole = server.openai.completions.create(**settings)
    texts, ends = {0: "", 1: ""}, {}
    usage = None
    for event in server.openai.completions.create(**settings, stream=True, stream_options={"include_usage": True}):
        usage = event.usage or usage
        for choice in event.choices:
            texts[choice.index] += choice.text
            ends[choice.index] = choice.finish_reason or ends.get(choice.index)
    assert [texts[0], texts[1]] == [choice.text for choice in whole.choices]
    assert [ends[0], ends[1]] == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage


def test_openais_client_chats(server, model, tokenizer):
    settings = {"model": "nano", "messages": QUESTION, "max_tokens": 30, "seed": 5, "logprobs": True, "top_logprobs": 2}
    done = server.openai.chat.completions.create(**settings)
    [ids] = alone(model, tokenizer, render_prompt(tokenizer, QUESTION), max_new_tokens=30, seed=5)
    stream = ReplyStream(tokenizer)
    parts = [stream.push(ids), stream.finish()]
    assert done.choices[0].message.content == "".join(part.content for part in parts)
    content = done.choices[0].logprobs.content
    assert [entry.token for entry in content] == [decode_tokens(tokenizer, [token]) for token in ids]
    assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in content)
    events = list(server.openai.chat.completions.create(**settings, stream=True))
    assert events[0].choices[0].delta.role == "assistant"
    text = "".join(event.choices[0].delta.content or "" for event in events)
    assert text == done.choices[0].message.content
    assert events[-1].choices[0].finish_reason == done.choices[0].finish_reason


def test_a_thought_is_apart_and_can_be_limited(server, tokenizer):
    def ask(**extra):
        return server.openai.chat.completions.create(
            model="nano", messages=QUESTION, max_tokens=40, seed=1, extra_body=extra
        )

    none = ask(max_thinking_tokens=0)
    assert none.choices[0].message.reasoning_content is None
    assert none.usage.completion_tokens_details.reasoning_tokens == 0
    assert THINK not in none.choices[0].message.content and END_THINK not in none.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="at least 6 and at most 3"):
        ask(max_thinking_tokens=3, min_thinking_tokens=6)


def find_thought(model, tokenizer) -> tuple[int, list[int], list[int]]:
    """The number of a sample of QUESTION's that opens a thought and goes on, its thought, and what stands before."""
    think, end, eos = (special_id(tokenizer, token) for token in (THINK, END_THINK, EOS))
    samples = alone(model, tokenizer, render_prompt(tokenizer, QUESTION), max_new_tokens=40, n=128, seed=0)
    for number, ids in enumerate(samples):
        if think in ids[:25] and not {end, eos, think} & set(ids[ids.index(think) + 1 :][:12]):
            return number, ids[ids.index(think) + 1 :], ids[: ids.index(think)]
    raise AssertionError("no sample has a thought; draw others")


def test_a_thought_ends_at_its_limit_and_a_reply_without_one_is_left_alone(server, model, tokenizer):
    number, thought, before = find_thought(model, tokenizer)
    asked = {"model": "nano", "messages": QUESTION, "max_tokens": 40, "seed": 0, "n": number + 1}
    done = server.openai.chat.completions.create(**asked, extra_body={"max_thinking_tokens": 5})
    message = done.choices[number].message
    assert message.reasoning_content == text_of(tokenizer, thought[:5])
    assert message.content.startswith(text_of(tokenizer, before)) and len(message.content) > len(before)
    free = server.openai.chat.completions.create(**asked)
    assert len(free.choices[number].message.reasoning_content) > len(message.reasoning_content)
    thoughtless = 0
    for one, limited in zip(free.choices, done.choices, strict=True):
        if one.message.reasoning_content is None:
            thoughtless += 1
            assert limited.message == one.message and limited.finish_reason == one.finish_reason
    assert thoughtless
    reasoning, usage = "", None
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    for event in server.openai.chat.completions.create(**asked, **stream, extra_body={"max_thinking_tokens": 5}):
        assert bool(event.choices) == (event.usage is None) and usage is None  # the last one has the usage alone
        usage = event.usage
        for choice in event.choices:
            if choice.index == number:
                reasoning += getattr(choice.delta, "reasoning_content", None) or ""
    assert reasoning == message.reasoning_content and usage == done.usage
    assert usage.completion_tokens_details.reasoning_tokens >= 5


def test_a_prompt_is_echoed_with_its_scores(server, model, tokenizer):
    prompt = encode_text(tokenizer, "the answer is 46")
    done = server.openai.completions.create(model="nano", prompt=prompt, max_tokens=1, echo=True, logprobs=2, seed=0)
    logprobs = done.choices[0].logprobs
    with torch.no_grad():
        exact = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    assert logprobs.token_logprobs[0] is None and len(logprobs.tokens) == len(prompt) + 1
    for place, token in enumerate(prompt[1:]):
        assert logprobs.token_logprobs[place + 1] == pytest.approx(float(exact[place, token]), abs=1e-4)
        assert max(logprobs.top_logprobs[place + 1].values()) == pytest.approx(float(exact[place].max()), abs=1e-4)
    assert done.choices[0].text.startswith("the answer is 46")
    assert [done.choices[0].text[offset:].startswith(word) for word, offset in
            zip(logprobs.tokens, logprobs.text_offset, strict=True)] == [True] * (len(prompt) + 1)  # fmt: skip
    only = server.openai.completions.create(
        model="nano", prompt=[prompt, prompt[:3]], max_tokens=0, echo=True, logprobs=0
    )
    assert only.choices[0].text == "the answer is 46" and only.usage.completion_tokens == 0
    assert only.choices[1].logprobs.token_logprobs[1:] == pytest.approx(only.choices[0].logprobs.token_logprobs[1:3])


def test_log_probabilities_mean_the_same_before_and_after_the_prompts_end(server, model, tokenizer):
    prompt = encode_text(tokenizer, "Think step")
    asked = {"model": "nano", "prompt": prompt, "temperature": 0.4, "seed": 3, "max_tokens": 8, "logprobs": 1}
    done = server.openai.completions.create(**asked, echo=True)
    [ids] = alone(model, tokenizer, prompt, max_new_tokens=8, temperature=0.4, seed=3)
    with torch.no_grad():
        exact = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
    expected = [float(exact[place, token]) for place, token in enumerate([*prompt, *ids][1:])]
    logprobs = done.choices[0].logprobs
    assert logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
    # The token that stands there is named even where others are likelier.
    for token, own, named in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert own is None or named[token] > own - 1e-4
    assert any(len(named) == 2 for named in logprobs.top_logprobs if named)
    chat = {"model": "nano", "messages": QUESTION, "temperature": 0.4, "seed": 3, "max_tokens": 8, "logprobs": True}
    content = server.openai.chat.completions.create(**chat).choices[0].logprobs.content
    question = render_prompt(tokenizer, QUESTION)
    [ids] = alone(model, tokenizer, question, max_new_tokens=8, temperature=0.4, seed=3)
    with torch.no_grad():
        exact = model(torch.tensor([question + ids])).logits[0].log_softmax(-1)
    places = range(len(question) - 1, len(question) - 1 + len(ids))
    expected = [float(exact[place, token]) for place, token in zip(places, ids, strict=True)]
    assert [entry.logprob for entry in content] == pytest.approx(expected, abs=1e-4)


def test_places_in_the_text_go_on_from_piece_to_piece(server):
    settings = {"model": "nano", "prompt": "Think", "max_tokens": 40, "n": 2, "seed": 3, "logprobs": 0}
    whole = server.openai.completions.create(**settings)
    found: dict[int, list[int]] = {0: [], 1: []}
    for event in server.openai.completions.create(**settings, stream=True):
        for choice in event.choices:
            found[choice.index] += choice.logprobs.text_offset
    for choice in whole.choices:
        offsets = choice.logprobs.text_offset
        assert found[choice.index] == offsets == sorted(offsets) and len(offsets) == len(choice.logprobs.tokens)
        for offset, word in zip(offsets, choice.logprobs.tokens, strict=True):
            # After a broken character, which a random model writes, a token is placed a little too early.
            found_at = choice.text.find(word, offset)
            assert "\N{REPLACEMENT CHARACTER}" in word or word == EOS or 0 <= found_at - offset < LONGEST_WAIT
        assert offsets[-1] > 5


def test_places_after_a_character_of_many_tokens_are_right(server, tokenizer):
    prompt = encode_text(tokenizer, "a ₿ b")  # the sign is not in the tokenizer's text: a token for each of its bytes
    asked = {"model": "nano", "prompt": prompt, "max_tokens": 0, "logprobs": 0}
    choice = server.openai.completions.create(**asked, echo=True).choices[0]
    places = dict(zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True))
    assert choice.text == "a ₿ b" and len(prompt) > 5
    assert choice.text[max(places.values()) :].strip() == "b"


@pytest.mark.parametrize("tag", [THINK, END_THINK])
def test_no_stop_text_reaches_across_a_tag_that_is_dropped(tokenizer, tag):
    think, end, dropped = (special_id(tokenizer, one) for one in (THINK, END_THINK, tag))
    [first], [second] = encode_text(tokenizer, "1"), encode_text(tokenizer, "2")
    stream = ReplyStream(tokenizer, ["12"])
    parts = [stream.push([token]) for token in (think, first, end, first, dropped, second)]
    assert "".join(part.content for part in parts) + stream.finish().content == "12"  # the engine has not stopped


def test_the_coldest_temperatures_are_greedy(server):
    settings = {"model": "nano", "prompt": "Think", "max_tokens": 6, "logprobs": 2}
    greedy, coldest = (
        server.openai.completions.create(**settings, temperature=temperature).choices[0] for temperature in (0, 1e-40)
    )
    assert (coldest.text, coldest.logprobs.tokens) == (greedy.text, greedy.logprobs.tokens)
    # Not bit by bit: whether drafts pay, and with them the width of a pass, is a matter of time.
    assert coldest.logprobs.token_logprobs == pytest.approx(greedy.logprobs.token_logprobs, abs=1e-5)


def test_a_stop_text_ends_the_answer_and_is_not_in_it(server):
    settings = {"model": "nano", "prompt": "Think", "max_tokens": 60, "seed": 11}
    free = server.openai.completions.create(**settings).choices[0].text
    stop = free[7:9]
    for stream in (False, True):
        done = server.openai.completions.create(**settings, stop=[stop, "never there"], stream=stream)
        choices = [event.choices[0] for event in done] if stream else done.choices
        assert "".join(choice.text for choice in choices) == free[: free.index(stop)]
        assert choices[-1].finish_reason == "stop"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_text_comes_out_whole_however_it_is_cut(tokenizer, data):
    text = data.draw(st.text(alphabet="ab 水🐙é\n", max_size=30))
    ids = encode_text(tokenizer, text)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=8)))
    stops = data.draw(st.lists(st.text(alphabet="ab水🐙", min_size=1, max_size=3), max_size=2))
    stream, pieces = TextStream(tokenizer, stops), []
    for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        pieces.append(stream.push(ids[start:end]))
    pieces.append(stream.finish())
    places = [text.find(stop) for stop in stops if stop in text]
    # Of two stop texts, the one that is spelt out first may begin later.
    if len(places) <= 1 or not stream.stopped:
        assert "".join(pieces) == (text[: min(places)] if places else text)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_a_reply_is_split_at_its_tags(tokenizer):
    think, end, eos = (special_id(tokenizer, token) for token in (THINK, END_THINK, EOS))
    words = encode_text(tokenizer, "step 🐙")
    for ids, reasoning, content, thought in (
        ([think, *words, end, *words, eos], "step 🐙", "step 🐙", len(words)),
        ([*words, eos], "", "step 🐙", 0),
        ([think, *words], "step 🐙", "", len(words)),
        ([think, end, *words], "", "step 🐙", 0),
        ([think, *words, end, *words, think, *words], "step 🐙", "step 🐙step 🐙", len(words)),
        ([think, *words, think, *words, end, *words], "step 🐙step 🐙", "step 🐙", 2 * len(words) + 1),
    ):
        stream = ReplyStream(tokenizer)
        parts = [*(stream.push([token]) for token in ids), stream.finish()]
        assert "".join(part.reasoning for part in parts) == reasoning
        assert "".join(part.content for part in parts) == content
        assert stream.reasoning_tokens == thought
