"""What clients send to the server: OpenAI's requests, checked, and turned into prompts and sampling parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, field_validator, model_validator

from core_model.generation.sampling import SamplingParams, ThinkingBudget
from core_model.tokenizer import END_THINK, EOS, THINK, encode_text, render_prompt, special_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MOST_SAMPLES, MOST_STOPS, MOST_LIKELIEST, MOST_PROMPTS = 128, 16, 20, 256
LONGEST_STOP = 256  # characters of a stop text
# Fields that would change the answer, and the values at which they change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0, 0.0),
    "presence_penalty": (None, 0, 0.0),
    "logit_bias": (None, {}),
    "best_of": (None, 1),
    "suffix": (None, ""),
    "tools": (None, []),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "tool_choice": (None, "none", "auto"),
    # Of vLLM and SGLang.
    "min_p": (None, 0, 0.0),
    "repetition_penalty": (None, 1, 1.0),
    "min_tokens": (None, 0),
    "ignore_eos": (None, False),
    "stop_token_ids": (None, []),
}


class StreamOptions(BaseModel):
    """include_usage: a last piece of a stream that says how many tokens it took."""

    include_usage: bool = False


class SamplingRequest(BaseModel):
    """What completions and chats have in common.

    Fields that are not known are ignored, but for those of `NEUTRAL`. model: "" for the one that is served.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str = ""
    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, lt=2**31)
    n: int = Field(1, ge=1, le=MOST_SAMPLES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: list[str] = Field(default=[], max_length=MOST_STOPS)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        """null means the default, in every field."""
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data

    @field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: list[str]) -> list[str]:
        if "" in value:
            raise ValueError("an empty text cannot end a sample")
        if any(len(text) > LONGEST_STOP for text in value):
            raise ValueError(f"a stop text has at most {LONGEST_STOP} characters")
        return value

    @model_validator(mode="after")
    def _is_supported(self) -> SamplingRequest:
        if "stream_options" in self.model_fields_set and not self.stream:
            raise ValueError("stream_options needs stream")
        for name, neutral in NEUTRAL.items():
            if (value := (self.model_extra or {}).get(name)) not in neutral:
                raise ValueError(f"{name} is not supported, found {value!r}")
        return self

    def sampling(self, tokenizer: PreTrainedTokenizerFast, max_tokens: int, seed: int, **more: Any) -> SamplingParams:
        """Parameters of the engine; `seed` where the client names none."""
        return SamplingParams(
            max_new_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            n=self.n,
            seed=seed if self.seed is None else self.seed,
            stop_ids=(special_id(tokenizer, EOS),),
            stop=tuple(self.stop),
            raw_logprobs=True,  # as OpenAI's: the model's own, which the temperature does not change
            **more,
        )


class CompletionRequest(SamplingRequest):
    """`POST /v1/completions`."""

    prompt: str | list[StrictInt] | list[str] | list[list[StrictInt]]
    max_tokens: int = Field(16, ge=0)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MOST_LIKELIEST)

    @model_validator(mode="after")
    def _asks_for_something(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens of 0 needs echo")
        if self.echo and self.stream:
            raise ValueError("echo cannot be streamed")
        return self

    def prompts(self, tokenizer: PreTrainedTokenizerFast, vocabulary: int) -> list[list[int]]:
        """Token ids of every prompt.

        Raises:
            ValueError: no prompt, too many, or a token that is none.
        """
        given: list[Any] = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        if given and isinstance(given[0], int):
            given = [given]
        if not 1 <= len(given) <= MOST_PROMPTS:
            raise ValueError(f"1 to {MOST_PROMPTS} prompts, not {len(given)}")
        prompts = [encode_text(tokenizer, one) if isinstance(one, str) else one for one in given]
        if any(not 0 <= token < vocabulary for prompt in prompts for token in prompt):
            raise ValueError(f"tokens are 0 to {vocabulary - 1}")
        return prompts


class ChatMessage(BaseModel):
    """A turn of a chat. A thought of the assistant's is a field of its own."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str
    reasoning_content: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        """Parts of text may come as a list."""
        if not isinstance(value, list):
            return value
        texts: list[str] = []
        for part in value:
            text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
            if not isinstance(text, str):
                return value  # refused for being no text
            texts.append(text)
        return "".join(texts)


class ChatRequest(SamplingRequest):
    """`POST /v1/chat/completions`.

    The two limits on the thought are Trivium's own, in tokens, its tags not counted. They do nothing to a reply without
    a thought, but a maximum of 0 puts an empty thought at the beginning of the reply.
    """

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MOST_LIKELIEST)
    max_thinking_tokens: int | None = Field(None, ge=0)
    min_thinking_tokens: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _asks_for_likeliest(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs")
        return self

    @property
    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def rendered(self, tokenizer: PreTrainedTokenizerFast) -> list[int]:
        """Token ids of the prompt.

        Raises:
            ValueError: turns in an order that the template does not have.
        """
        turns = [message.model_dump(exclude_none=True) for message in self.messages]
        for turn in turns:
            turn["role"] = "system" if turn["role"] == "developer" else turn["role"]
        return render_prompt(tokenizer, turns)

    def thinking(self, tokenizer: PreTrainedTokenizerFast) -> ThinkingBudget | None:
        """The limits on the thought; None without any.

        Raises:
            ValueError: limits that contradict each other.
        """
        if self.max_thinking_tokens is None and not self.min_thinking_tokens:
            return None
        end, least = special_id(tokenizer, END_THINK), self.min_thinking_tokens
        return ThinkingBudget(
            end_id=end,
            max_tokens=self.max_thinking_tokens,
            closing=(end,),
            min_tokens=least,
            extending=tuple(encode_text(tokenizer, "Wait, ")) if least else (),
            start_id=special_id(tokenizer, THINK),
        )
