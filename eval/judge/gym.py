"""reasoning-gym's data sets with the traps of their scorers closed.

Its scorers grade, and pay for much that is wrong: for containing the answer (all that have no scorer of their own),
for a prefix (word_sorting takes "right answer, anything"), for near misses (time_intervals gives 0.99 for a day more,
game_of_life 0.9975 for a wrong cell in 400, number_sorting 1.0 for each number off by one), for the question handed
back (`Integral(...)` to the integrations), for other numbers than those given (puzzle24), for the first number in any
prose, without its sign (gsm_symbolic). Several `eval` the answer.

So here, an entry with one right answer is judged by an exact comparison with it, one for each kind of answer
(`gym_answers`); reasoning-gym's scorer is asked only where there are many right answers, about answers that have the
exact form of one, in a child process, and must give full marks. Data sets that cannot be closed are refused by name.
"""

from __future__ import annotations

import functools
import json
from typing import Any

from core_model.errors import InputError
from eval.judge import gym_answers as kinds
from eval.judge.child import ChildLimits, Children
from eval.judge.gym_answers import Check, Compare, Entry
from eval.tasks.family import Judgement
from recipes.rows import Verdict

FULL_SCORE = 0.99
LONGEST = 20_000  # characters; the longest right answers (partitions, grids) have a few thousand

REFUSED = {
    "composite": "it is no data set of its own: judge an entry by its source_dataset",
    "game_of_life_halting": "its scorer compares the truth of two strings, so every answer but none is right",
    "propositional_logic": "a premise said again is a valid conclusion and earns full marks",
    "boxnet": "its entries carry no right answer to check the scorer with, and a malformed plan makes it raise",
}

# One right answer, and how answers are compared with it; those not named are compared by `lines`.
COMPARED: dict[str, Compare] = {
    **dict.fromkeys(
        [
            "aiw",
            "basic_arithmetic",
            "binary_alternation",
            "chain_sum",
            "circuit_logic",
            "count_bits",
            "count_primes",
            "decimal_arithmetic",
            "decimal_chain_sum",
            "gcd",
            "gsm_symbolic",
            "largest_island",
            "lcm",
            "leg_counting",
            "letter_counting",
            "maze",
            "number_sequence",
            "products",
            "rectangle_count",
            "rotten_oranges",
            "self_reference",
            "simple_equations",
            "simple_geometry",
        ],
        kinds.number,
    ),
    **dict.fromkeys(
        [
            "color_cube_rotation",
            "family_relationships",
            "figlet_font",
            "letter_jumble",
            "needle_haystack",
            "spell_backward",
            "tsumego",
            "zebra_puzzles",
        ],
        kinds.letters,
    ),
    **dict.fromkeys(["number_sorting", "number_filtering"], kinds.number_list),
    **dict.fromkeys(["codeio", "game_of_life", "list_functions"], kinds.same_json),
    **dict.fromkeys(["word_sorting", "word_sequence_reversal"], kinds.listed),
    **dict.fromkeys(["advanced_geometry", "pool_matrix"], kinds.rounded),
    "bitwise_arithmetic": kinds.hexadecimal,
    "calendar_arithmetic": kinds.number_or_letters,
    "coin_flip": kinds.probability,
    "complex_arithmetic": kinds.complex_number,
    "fraction_simplification": kinds.fraction,
    "group_anagrams": kinds.groups,
    "knights_knaves": kinds.roles,
    "number_format": kinds.largest_rounded,
    "palindrome_partitioning": kinds.partitions,
    "polynomial_equations": kinds.roots,
    "power_function": kinds.three_digits,
    "prime_factorization": kinds.factors,
    "time_intervals": kinds.duration,
}

# Many right answers, all of them told by a check of ours.
CHECKED: dict[str, Check] = {
    "countdown": kinds.reaches(lambda entry: entry["metadata"]["target"]),
    "n_queens": lambda answer, entry: any(kinds.lines(answer, one) for one in entry["metadata"]["valid_answers"]),
    "puzzle24": kinds.reaches(lambda entry: 24),
}

MOVES = kinds.json_form(list, lambda move: isinstance(move, str))

# Many right answers, told by reasoning-gym's scorer; an answer must have this form before it is asked.
SCORED: dict[str, Check] = {
    "cryptarithm": kinds.form(r"(?!.*\b([A-Z])=.*\b\1=)[A-Z]=\d(, ?[A-Z]=\d)*"),
    "graph_color": kinds.json_form(dict, lambda color: type(color) is int),
    "intermediate_integration": kinds.expression(*kinds.FUNCTIONS),
    "jugs": MOVES,
    "kakurasu": kinds.form(r"[01]( [01])*(\s*\n[01]( [01])*)*"),
    "knight_swap": lambda answer, entry: answer.lower() == "no" or MOVES(answer, entry),
    "palindrome_generation": kinds.form(r"[A-Za-z]+"),
    "polynomial_multiplication": kinds.expression(),
    "quantum_lock": kinds.form(r"[A-C]( ?(→|->|,) ?[A-C])*"),
    "rubiks_cube": kinds.form(r"[UDLRFB]'?( [UDLRFB]'?)*"),
    "rush_hour": kinds.form(r"[A-Z][+-]\d( [A-Z][+-]\d)*"),
    "shortest_path": kinds.form(r"infeasible|(up|down|left|right)( (up|down|left|right))*"),
    "simple_integration": kinds.expression(*kinds.FUNCTIONS),
    "sokoban": kinds.form(r"[UDLR]+"),
    "tower_of_hanoi": kinds.form(r"Move disk \d+ from Peg \d+ to Peg \d+(\s*\nMove disk \d+ from Peg \d+ to Peg \d+)*"),
    "word_ladder": kinds.form(r"[A-Za-z]+(, ?[A-Za-z]+)+"),
}


class GymScorer:
    """Judges answers to one data set's entries; a context manager, safe to share among threads.

    Args:
        dataset: reasoning-gym's name of it.
        children: where its scorer runs when it must be asked; None: one child of this object's own.

    Raises:
        InputError: no such data set, or one that is refused (the message says why).
    """

    def __init__(self, dataset: str, children: Children | None = None) -> None:
        if dataset in REFUSED:
            raise InputError(
                f"reasoning-gym data set {dataset}",
                expected="one whose scorer can be trusted",
                found=f"a refused one: {REFUSED[dataset]}",
            )
        if dataset not in data_sets():
            raise InputError("reasoning-gym data set", expected="a name that reasoning-gym has", found=dataset)
        self.dataset = dataset
        self._owned = children is None
        self.children = children or Children(1, ChildLimits("reasoning_gym"))

    def __enter__(self) -> GymScorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child process, where it is this object's own."""
        if self._owned:
            self.children.close()

    def judge(self, entry: Entry, answer: str) -> Judgement:
        """The judgement on one answer; never raises for anything an answer contains.

        Args:
            entry: reasoning-gym's, as it is or as JSON gives it back: `{"question", "answer", "metadata"}`.
        """
        if not isinstance(entry.get("metadata"), dict):
            return Judgement(Verdict.INVALID_PROBLEM, "the entry has no metadata")
        right, answer = entry.get("answer"), answer.strip()
        if (right is None and self.dataset not in SCORED) or not isinstance(right, str | None):
            return Judgement(Verdict.INVALID_PROBLEM, "the entry has no answer to compare with")
        if not answer and right != "":
            return Judgement(Verdict.NO_ANSWER)
        if len(answer) > LONGEST:
            return Judgement(Verdict.WRONG_ANSWER, f"more than {LONGEST} characters")
        if self.dataset in SCORED:
            return self._scored(entry, answer)
        try:
            correct = self._compared(entry, answer)
        except (KeyError, TypeError) as error:  # of the entry's metadata: comparisons take any answer
            return Judgement(Verdict.INVALID_PROBLEM, f"the entry's metadata: {type(error).__name__} {error}")
        return Judgement(Verdict.CORRECT if correct else Verdict.WRONG_ANSWER)

    def _compared(self, entry: Entry, answer: str) -> bool:
        if self.dataset in CHECKED:
            return CHECKED[self.dataset](answer, entry)
        return COMPARED.get(self.dataset, kinds.lines)(answer, entry["answer"].strip())

    def _scored(self, entry: Entry, answer: str) -> Judgement:
        if not SCORED[self.dataset](answer, entry):
            return Judgement(Verdict.WRONG_ANSWER, "not in the form of an answer")
        try:
            sent = json.loads(json.dumps(entry))
        except (TypeError, ValueError) as error:
            return Judgement(Verdict.INVALID_PROBLEM, f"the entry is not JSON: {error}")
        outcome = self.children.ask({"task": "gym", "dataset": self.dataset, "answer": answer, "entry": sent})
        if outcome.fault == "lost":
            return Judgement(Verdict.INFRA_ERROR, outcome.detail)
        if outcome.fault is not None:
            return Judgement(Verdict.WRONG_ANSWER, f"the answer took the scorer down: {outcome.detail}")
        if "raised" in outcome.reply:
            return self._blame(sent, outcome.reply["raised"])
        correct = outcome.reply["score"] >= FULL_SCORE
        return Judgement(Verdict.CORRECT if correct else Verdict.WRONG_ANSWER)

    def _blame(self, entry: dict[str, Any], error: str) -> Judgement:
        """The scorer raised: on this answer, or on the entry, as the right answer tells."""
        if entry.get("answer") is not None:
            request = {"task": "gym", "dataset": self.dataset, "answer": entry["answer"], "entry": entry}
            outcome = self.children.ask(request)
            if outcome.fault == "lost":
                return Judgement(Verdict.INFRA_ERROR, outcome.detail)
            if outcome.reply.get("score", 0.0) < FULL_SCORE:
                return Judgement(Verdict.INVALID_PROBLEM, f"the scorer raised {error}, and refuses the right answer")
        return Judgement(Verdict.WRONG_ANSWER, f"the scorer raised {error}")


@functools.cache
def data_sets() -> tuple[str, ...]:
    """The names of all data sets reasoning-gym has, refused ones among them."""
    from reasoning_gym.factory import DATASETS

    return tuple(sorted(DATASETS))
