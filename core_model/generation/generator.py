"""What a stage asks of whatever generates for it: our own `Engine`, a Hugging Face model, or many of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from core_model.generation.request import Completion, Scores
from core_model.generation.sampling import SamplingParams


@runtime_checkable
class Generator(Protocol):
    """Continues prompts and scores sequences, both given as token ids."""

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer; None where there is none, and then no stop texts."""

    @property
    def max_tokens(self) -> int:
        """Longest sequence, prompt included."""

    def generate(
        self, prompts: list[list[int]], params: SamplingParams | list[SamplingParams]
    ) -> list[list[Completion]]:
        """Continue every prompt; result[i] holds the `n` samples of prompt i.

        Raises:
            ValueError: as `check`, or lists of unequal length.
        """

    def score(self, sequences: list[list[int]], top: int = 0) -> list[Scores]:
        """The log-probability of every token but the first given those before it, and the `top` likeliest there.

        Raises:
            ValueError: an empty sequence, or one longer than `max_tokens`.
        """

    def check(self, prompt: list[int], params: SamplingParams, which: str = "") -> None:
        """Whether `generate` would take this.

        Raises:
            ValueError: an empty prompt, one that leaves no room below `max_tokens`, or a field of `params` that this
                generator cannot serve, by its name; `which` begins the message.
        """

    def refresh_weights(self) -> None:
        """Take over the model's weights after an update."""


def check_length(sequence: list[int], max_tokens: int, which: str = "") -> None:
    """Whether a sequence can be scored.

    Raises:
        ValueError: it is empty, or longer than `max_tokens`; `which` begins the message.
    """
    if not 0 < len(sequence) <= max_tokens:
        raise ValueError(f"{which}{len(sequence)} tokens, expected 1 to {max_tokens}")


def check_tokens(sequence: Sequence[int], vocabulary: int, which: str = "") -> None:
    """Whether these are tokens of the model: others fail in the middle of a forward, and with them their neighbours.

    Raises:
        ValueError: one is none; `which` begins the message.
    """
    if min(sequence) < 0 or max(sequence) >= vocabulary:
        wrong = next(token for token in sequence if not 0 <= token < vocabulary)
        raise ValueError(f"{which}token {wrong}, expected 0 to {vocabulary - 1}")


def check_prompt(generator: Generator, prompt: list[int], params: SamplingParams, vocabulary: int, which: str) -> None:
    """What every generator checks of a prompt, and of the parameters that all can serve.

    Raises:
        ValueError: as `Generator.check`, or a token that is none; `which` begins the message.
    """
    if not prompt:
        raise ValueError(f"{which}the prompt is empty")
    check_tokens(prompt, vocabulary, which)
    if params.thinking is not None:
        check_tokens(params.thinking.tokens, vocabulary, f"{which}thinking: ")
    if len(prompt) + params.max_new_tokens > generator.max_tokens:
        raise ValueError(
            f"{which}{len(prompt)} tokens and {params.max_new_tokens} new ones exceed {generator.max_tokens}"
        )
    if params.stop and generator.tokenizer is None:
        raise ValueError(f"{which}stop texts need a generator with a tokenizer")


def check_lengths(sequences: list[list[int]], max_tokens: int) -> None:
    """`check_length` of each; the message names the one at fault by its number."""
    for number, sequence in enumerate(sequences):
        check_length(sequence, max_tokens, f"sequence {number}: ")


def checked_settings(
    generator: Generator, prompts: list[list[int]], params: SamplingParams | list[SamplingParams]
) -> list[SamplingParams]:
    """The parameters of each prompt, after `generator.check` has passed them all.

    Raises:
        ValueError: as `Generator.generate`; the message names the prompt by its number.
    """
    settings = params if isinstance(params, list) else [params] * len(prompts)
    if len(prompts) != len(settings):
        raise ValueError(f"{len(prompts)} prompts but {len(settings)} sampling parameters")
    for number, (prompt, one) in enumerate(zip(prompts, settings, strict=True)):
        generator.check(prompt, one, f"prompt {number}: ")
    return settings
