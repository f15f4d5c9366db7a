"""Sample rewards: what one completion earns for itself, whatever else its group holds.

The first of two tiers (the second is `rl.length`). Two rules, as in R1 (section 2.2): accuracy, by the exact verifier
of the problem's family, and format, a closed thought followed by an answer. A sample whose verdict does not count (the
judge failed, the problem is broken) earns nothing that could be mistaken for a wrong answer: it has no reward at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from core_model.tokenizer import CompletionParts, split_completion
from eval.tasks import judge_answers
from eval.tasks.family import Judgement
from recipes.rows import Problem, Verdict
from recipes.schema import StrictModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Judge = Callable[[Sequence[Problem], Sequence[str]], list[Judgement]]


class RewardRecipe(StrictModel):
    """The two sample rewards; a sample earns between 0 and their sum."""

    accuracy: float = Field(default=1.0, ge=0, description="reward of a right answer in the right form")
    format: float = Field(default=0.1, ge=0, description="reward of the right form, whatever the answer")
    require_thought: bool = Field(
        default=True,
        description="whether the right form is <think> thought </think> answer with a thought that is not empty; "
        "false: a bare answer is one too",
    )

    @model_validator(mode="after")
    def _pays(self) -> RewardRecipe:
        if self.accuracy + self.format == 0:
            raise ValueError("accuracy and format are both 0: nothing would be learnt")
        return self


@dataclass(frozen=True)
class ScoredSample:
    """What became of one completion. `reward` is None where the verdict does not count."""

    family: str
    verdict: Verdict
    well_formed: bool
    tokens: int  # stop token included
    reward: float | None

    @property
    def correct(self) -> bool:
        return self.verdict is Verdict.CORRECT

    @property
    def truncated(self) -> bool:
        return self.verdict is Verdict.TRUNCATED


class SampleRewards:
    """Scores completions from their token ids.

    Args:
        tokenizer: takes completions apart by the ids of their think tokens.
        recipe: what is paid.
        judge: verdicts on (problem, answer) pairs; `eval.tasks.judge_answers` unless a test says otherwise.
    """

    __name__ = "reward"  # TRL names its metrics by it

    def __init__(self, tokenizer: PreTrainedTokenizerFast, recipe: RewardRecipe, judge: Judge = judge_answers) -> None:
        self.tokenizer, self.recipe, self.judge = tokenizer, recipe, judge
        self.latest: list[ScoredSample] = []

    def __call__(
        self,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]],
        *,
        problem: list[Problem],
        finish_reason: list[str],
        **_: Any,
    ) -> list[float | None]:
        """TRL's reward protocol; None makes TRL leave the row out of its group's mean and deviation.

        (TRL reads None as 0 wherever another reward function gives a number, hence one function for both rewards.)
        """
        self.latest = self.score(problem, completion_ids, finish_reason)
        return [sample.reward for sample in self.latest]

    def score(
        self, problems: Sequence[Problem], completion_ids: Sequence[Sequence[int]], finish_reasons: Sequence[str]
    ) -> list[ScoredSample]:
        """One scored sample per completion, in order; equal answers to a problem are judged once."""
        parts = [split_completion(self.tokenizer, ids) for ids in completion_ids]
        verdicts: list[Verdict | None] = [
            _unjudged(one, reason) for one, reason in zip(parts, finish_reasons, strict=True)
        ]
        waiting: dict[tuple[str, str], list[int]] = {}
        for index, (problem, one) in enumerate(zip(problems, parts, strict=True)):
            if verdicts[index] is None:
                waiting.setdefault((problem.id, one.answer_text), []).append(index)
        first = [indices[0] for indices in waiting.values()]
        judged = self.judge([problems[index] for index in first], [parts[index].answer_text for index in first])
        for indices, judgement in zip(waiting.values(), judged, strict=True):
            for index in indices:
                verdicts[index] = judgement.verdict
        return [
            self._pay(problem.source, verdict, one, len(ids))
            for problem, verdict, one, ids in zip(problems, verdicts, parts, completion_ids, strict=True)
            if verdict is not None
        ]

    def _pay(self, family: str, verdict: Verdict, parts: CompletionParts, tokens: int) -> ScoredSample:
        formed = verdict is not Verdict.TRUNCATED and well_formed(parts, self.recipe.require_thought)
        reward = None
        if verdict.counts:
            # A right answer in the wrong form earns nothing, else the form would be worth its own price only.
            right = verdict is Verdict.CORRECT and formed
            reward = self.recipe.format * formed + self.recipe.accuracy * right
        return ScoredSample(family, verdict, formed, tokens, reward)


def well_formed(parts: CompletionParts, require_thought: bool) -> bool:
    """Whether a finished completion is a thought that says something, closed, and an answer after it."""
    if not parts.answer_text.strip() or not parts.well_formed:
        return False
    if parts.reasoning_text is None:
        return not require_thought
    return bool(parts.reasoning_text.strip())


def _unjudged(parts: CompletionParts, finish_reason: str) -> Verdict | None:
    """The verdict on a completion whose answer need not be looked at; None when it must be."""
    if finish_reason != "stop":
        return Verdict.TRUNCATED
    return None if parts.answer_text.strip() else Verdict.NO_ANSWER
