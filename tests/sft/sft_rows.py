"""Rows for the tests of the sft stage."""

from __future__ import annotations

from recipes.rows import Message, SFTRow


def make_row(left: int, right: int, problem_id: str | None = None) -> SFTRow:
    """A sum with a thought, or without one when its first number is even."""
    thought = f"{left} and {right}: " + " ".join(str(left + step) for step in range(right % 7 + 1))
    messages = [
        Message(role="system", content="Think."),
        Message(role="user", content=f"{left}+{right}=?"),
        Message(role="assistant", content=str(left + right), reasoning_content=thought if left % 2 else None),
    ]
    return SFTRow(problem_id=problem_id or f"sum-{left}-{right}", messages=messages, system_variant="reflect")
