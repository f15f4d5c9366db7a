"""Before an hour is spent: right answers must be paid in full, spoilt ones nothing, and everything must fit.

Most reports of "GRPO does not learn" are a reward that never fires: a verifier that does not understand the prompt's
answer form, a completion limit below the answer's length. Both show on the reference answers, without the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core_model.errors import InputError
from core_model.tokenizer import END_THINK, EOS, THINK, encode_text, render_prompt, special_id
from eval.tasks import get_family
from recipes.rows import Problem
from rl.problems import ProblemSequence
from rl.rewards import SampleRewards

if TYPE_CHECKING:
    from rl.trainer import Policy

THOUGHT = "So it is."


@dataclass(frozen=True)
class Attempt:
    """A completion of which it is known what it must earn: as token ids, stop token included where it stopped."""

    what: str
    problem: Problem
    token_ids: list[int]
    stopped: bool
    earns: float


def check_rewards(
    rewards: SampleRewards, problems: ProblemSequence, count: int, longest: int, recipe_path: Path
) -> None:
    """Score reference and corrupted answers of `count` problems of every family.

    Args:
        longest: tokens a completion may have.
        recipe_path: named in errors.

    Raises:
        InputError: a reference answer earns less than everything or is too long, or a corrupted one earns for accuracy.
    """
    full = rewards.recipe.accuracy + rewards.recipe.format
    for family in problems.weights:
        source = get_family(family, seed=problems.seed)
        asked = [source.problem(problems.start + index, "train") for index in range(count)]
        attempts = [attempt for problem in asked for attempt in _attempts(rewards, problem)]
        scored = rewards.score(
            [attempt.problem for attempt in attempts],
            [attempt.token_ids for attempt in attempts],
            ["stop" if attempt.stopped else "length" for attempt in attempts],
        )
        for attempt, sample in zip(attempts, scored, strict=True):
            where = f"problems.families.{family}"
            if sample.reward is None or abs(sample.reward - attempt.earns) > 1e-6:
                found = f"{sample.reward} ({sample.verdict}) for problem {attempt.problem.id}"
                expected = f"{attempt.what} to earn {attempt.earns:g}"
                raise InputError(recipe_path, where=where, expected=expected, found=found)
            if attempt.earns == full and len(attempt.token_ids) > longest:
                found = f"{len(attempt.token_ids)} for {attempt.what} of problem {attempt.problem.id}"
                raise InputError(
                    recipe_path,
                    where="trainer.max_completion_length",
                    expected=f"room for the answers; at most {longest} tokens",
                    found=found,
                )


def check_room(policy: Policy, prompts: list[list[dict[str, str]]], longest: int, recipe_path: Path) -> None:
    """Whether the longest prompt and the longest completion fit the model together.

    Args:
        longest: tokens a completion may have.
        recipe_path: named in errors.

    Raises:
        InputError: they do not.
    """
    room = policy.model.config.max_position_embeddings
    prompt = max(len(render_prompt(policy.rollouts.tokenizer, messages)) for messages in prompts)
    if prompt + longest > room:
        raise InputError(
            recipe_path,
            where="trainer.max_completion_length",
            expected=f"at most {room - prompt}: the model has {room} positions and a prompt takes {prompt}",
            found=str(longest),
        )


def _attempts(rewards: SampleRewards, problem: Problem) -> Iterator[Attempt]:
    tokenizer, pay = rewards.tokenizer, rewards.recipe
    think, end_think, eos = (special_id(tokenizer, token) for token in (THINK, END_THINK, EOS))
    gold = get_family(problem.source).reference_answer(problem)
    thought, answer = encode_text(tokenizer, THOUGHT), encode_text(tokenizer, gold)
    whole = [think, *thought, end_think, *answer, eos]
    yield Attempt("the reference answer", problem, whole, True, pay.accuracy + pay.format)
    spoilt = [think, *thought, end_think, *encode_text(tokenizer, f"{gold}1"), eos]
    yield Attempt("the reference answer with a 1 behind it", problem, spoilt, True, pay.format)
    yield Attempt("a thought that is never closed", problem, [think, *answer, eos], True, 0.0)
    yield Attempt("the reference answer without its stop token", problem, whole[:-1], False, 0.0)
    if pay.require_thought:
        yield Attempt("the reference answer without a thought", problem, [*answer, eos], True, 0.0)
        yield Attempt("an empty thought", problem, [think, end_think, *answer, eos], True, 0.0)
