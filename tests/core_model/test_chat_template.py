"""The chat template: golden renders, the loss mask, hostile messages, and taking a completion apart."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_model.tokenizer import (
    ASSISTANT,
    BOS,
    END_THINK,
    EOS,
    PAD,
    SPECIAL_TOKENS,
    THINK,
    USER,
    CompletionParts,
    decode_tokens,
    encode_text,
    render_prompt,
    render_training,
    split_completion,
    template_sha256,
    train_tokenizer,
)

SYSTEM = {"role": "system", "content": "Think step by step."}
QUESTION = {"role": "user", "content": "Compute 4 + 5."}
THOUGHT = {"role": "assistant", "reasoning_content": "4 + 5 = 9\nCheck: 9 - 5 = 4.", "content": "9"}
SHORT = {"role": "assistant", "content": "9"}
IDS = {token: index for index, token in enumerate(SPECIAL_TOKENS)}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Compute 4 + 5.\nCheck: 9 - 5 = 4.\nThink step by step.\n"] * 20, 330)


def jinja_ids(tokenizer, messages, **options):
    return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)["input_ids"])


@pytest.mark.parametrize(
    ("messages", "golden"),
    [
        ([QUESTION, SHORT], f"{BOS}{USER}Compute 4 + 5.{ASSISTANT}9{EOS}"),
        (
            [SYSTEM, QUESTION, THOUGHT],
            f"{BOS}Think step by step.{USER}Compute 4 + 5.{ASSISTANT}{THINK}4 + 5 = 9\n"
            f"Check: 9 - 5 = 4.{END_THINK}9{EOS}",
        ),
        # Thoughts of earlier turns are kept.
        (
            [QUESTION, THOUGHT, QUESTION, SHORT],
            f"{BOS}{USER}Compute 4 + 5.{ASSISTANT}{THINK}4 + 5 = 9\nCheck: 9 - 5 = 4.{END_THINK}9{EOS}"
            f"{USER}Compute 4 + 5.{ASSISTANT}9{EOS}",
        ),
        ([QUESTION, {**SHORT, "reasoning_content": None}], f"{BOS}{USER}Compute 4 + 5.{ASSISTANT}9{EOS}"),
        (
            [QUESTION, {**SHORT, "reasoning_content": ""}],
            f"{BOS}{USER}Compute 4 + 5.{ASSISTANT}{THINK}{END_THINK}9{EOS}",
        ),
    ],
)
def test_golden_renders(tokenizer, messages, golden):
    ids, _ = render_training(tokenizer, messages)
    assert decode_tokens(tokenizer, ids) == golden
    assert tokenizer.apply_chat_template(messages, tokenize=False) == golden
    assert jinja_ids(tokenizer, messages) == ids


def test_mask_is_exactly_what_the_assistant_says(tokenizer):
    messages = [SYSTEM, QUESTION, THOUGHT, QUESTION, SHORT]
    ids, mask = render_training(tokenizer, messages)
    assert len(ids) == len(mask)
    spoken = [token for token, inside in zip(ids, mask, strict=True) if inside]
    assert decode_tokens(tokenizer, spoken) == f"{THINK}{THOUGHT['reasoning_content']}{END_THINK}9{EOS}9{EOS}"
    for token, inside in zip(ids, mask, strict=True):
        if token in (IDS[BOS], IDS[USER], IDS[ASSISTANT]):
            assert not inside


def test_mask_equals_the_template_generation_marks(tokenizer):
    messages = [SYSTEM, QUESTION, THOUGHT, QUESTION, SHORT]
    marked = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert (list(marked["input_ids"]), list(marked["assistant_masks"])) == render_training(tokenizer, messages)


def test_generation_prompt_is_a_prefix_of_the_training_render(tokenizer):
    for answer in (THOUGHT, SHORT):
        prompt = render_prompt(tokenizer, [SYSTEM, QUESTION])
        ids, mask = render_training(tokenizer, [SYSTEM, QUESTION, answer])
        assert prompt[-1] == IDS[ASSISTANT]
        assert ids[: len(prompt)] == prompt
        assert mask == [0] * len(prompt) + [1] * (len(ids) - len(prompt))
        assert jinja_ids(tokenizer, [SYSTEM, QUESTION], add_generation_prompt=True) == prompt


HOSTILE = st.lists(st.sampled_from([*SPECIAL_TOKENS, "9", " ", "</", "think>"]), max_size=8).map("".join)


@given(system=HOSTILE, user=HOSTILE, reasoning=HOSTILE, answer=HOSTILE)
@settings(max_examples=100, deadline=None)
def test_special_strings_in_messages_stay_text(tokenizer, system, user, reasoning, answer):
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": user},
        {"role": "assistant", "reasoning_content": reasoning, "content": answer},
    ]
    ids, _ = render_training(tokenizer, messages)
    special = [token for token in ids if token < len(SPECIAL_TOKENS)]
    assert special == [IDS[token] for token in (BOS, USER, ASSISTANT, THINK, END_THINK, EOS)]
    assert (
        decode_tokens(tokenizer, ids)
        == f"{BOS}{system}{USER}{user}{ASSISTANT}{THINK}{reasoning}{END_THINK}{answer}{EOS}"
    )
    prompt = render_prompt(tokenizer, messages[:2])
    assert [token for token in prompt if token < len(SPECIAL_TOKENS)] == special[:3]
    parts = split_completion(tokenizer, ids[len(prompt) :])
    assert (parts.reasoning_text, parts.answer_text, parts.closed) == (reasoning, answer, True)


WORDS = st.text(alphabet=st.sampled_from("Compute 49+-.\nxé漢"), max_size=30)


@given(system=st.none() | WORDS, turns=st.lists(st.tuples(WORDS, st.none() | WORDS, WORDS), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_template_and_token_level_render_agree_on_ordinary_text(tokenizer, system, turns):
    messages = [] if system is None else [{"role": "system", "content": system}]
    for user, reasoning, answer in turns:
        messages.append({"role": "user", "content": user})
        messages.append({"role": "assistant", "content": answer, "reasoning_content": reasoning})
    assert jinja_ids(tokenizer, messages) == render_training(tokenizer, messages)[0]
    assert jinja_ids(tokenizer, messages[:-1], add_generation_prompt=True) == render_prompt(tokenizer, messages[:-1])


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "at least one message"),
        ([QUESTION, SYSTEM], "message 1: expected a system message only at the start"),
        ([{"role": "tool", "content": "x"}], "found 'tool'"),
    ],
)
def test_conversations_that_the_template_has_no_place_for(tokenizer, messages, reason):
    with pytest.raises(ValueError, match=reason):
        render_training(tokenizer, messages)
    with pytest.raises(ValueError, match=reason):
        render_prompt(tokenizer, messages)


def test_a_prompt_does_not_end_with_an_answer(tokenizer):
    with pytest.raises(ValueError, match="must end with a user's message"):
        render_prompt(tokenizer, [QUESTION, SHORT])


def completion(tokenizer, *pieces: str) -> list[int]:
    return [token for piece in pieces for token in ([IDS[piece]] if piece in IDS else encode_text(tokenizer, piece))]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ((THINK, "4+5", END_THINK, "9", EOS), CompletionParts("4+5", "9", 3, 1, closed=True, well_formed=True)),
        ((THINK, END_THINK, "9", EOS), CompletionParts("", "9", 0, 1, closed=True, well_formed=True)),
        (("9", EOS), CompletionParts(None, "9", 0, 1, closed=True, well_formed=True)),
        ((), CompletionParts(None, "", 0, 0, closed=True, well_formed=True)),
        ((EOS,), CompletionParts(None, "", 0, 0, closed=True, well_formed=True)),
        # Cut short inside the thought: no answer.
        ((THINK, "4+5"), CompletionParts("4+5", "", 3, 0, closed=False, well_formed=False)),
        ((THINK, "4", EOS), CompletionParts("4", "", 1, 0, closed=False, well_formed=False)),
        # The prompt had opened the thought.
        (("4+5", END_THINK, "9", EOS), CompletionParts("4+5", "9", 3, 1, closed=True, well_formed=False)),
        # Text before the thought, and tags after it.
        (("x", THINK, "4", END_THINK, "9", EOS), CompletionParts("4", "9", 1, 1, closed=True, well_formed=False)),
        (
            (THINK, "4", END_THINK, "9", THINK, "5"),
            CompletionParts("4", "9<think>5", 1, 3, closed=True, well_formed=False),
        ),
        (
            (END_THINK, "9", THINK, "5"),
            CompletionParts("", "9<think>5", 0, 3, closed=True, well_formed=False),
        ),
        # What follows the stop token, and padding without one, are nobody's words.
        (("9", EOS, PAD, PAD), CompletionParts(None, "9", 0, 1, closed=True, well_formed=True)),
        (("9", PAD, PAD), CompletionParts(None, "9", 0, 1, closed=True, well_formed=True)),
        (("9", EOS, "8", EOS), CompletionParts(None, "9", 0, 1, closed=True, well_formed=True)),
    ],
)
def test_split_completion(tokenizer, pieces, expected):
    parts = split_completion(tokenizer, completion(tokenizer, *pieces))
    assert parts == expected


def test_the_characters_of_a_tag_close_no_thought(tokenizer):
    typed = encode_text(tokenizer, "</think>")
    parts = split_completion(tokenizer, [IDS[THINK], *typed, IDS[END_THINK], *encode_text(tokenizer, "9")])
    assert parts == CompletionParts("</think>", "9", len(typed), 1, closed=True, well_formed=True)


def test_template_hash_follows_the_template(tokenizer):
    assert template_sha256(tokenizer) == hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()
    other = train_tokenizer([], 300)
    assert template_sha256(other) == template_sha256(tokenizer)
    other.chat_template += " "
    assert template_sha256(other) != template_sha256(tokenizer)
