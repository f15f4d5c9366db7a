"""The program in an answer, by a named policy of a fixed version. What a row records is the policy's id ("strict-v1"):
a change of rule is a new version. An answer without a program is no wrong answer: it has verdicts of its own.

strict: the last complete fenced block of Python (or of no language) after the thought. Fences are CommonMark's: three
    or more backticks or tildes, indented by at most three spaces, closed by as many or more of the same; a line of
    three backticks inside a docstring therefore closes the block, unless the block was opened with four. Blocks inside
    list items and quotations are found only where their own indentation is at most three spaces.
    An answer that ends inside a block was cut off (`truncated`); its program is the last complete block before, if
    there is one: an unfinished block is never run. An answer that ends inside its thought has no program.
lcb-last-pair: LiveCodeBench's rule, byte for byte: of all lines that hold three backticks anywhere, what stands
    between the last two; thoughts are not dropped. Fewer than two such lines: nothing.
lcb-base: LiveCodeBench's rule for base models: the whole text, stripped.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from core_model.errors import InputError
from core_model.tokenizer.special import END_THINK, THINK
from recipes.rows import Verdict

PYTHON_LABELS = frozenset({"", "python", "python3", "py", "py3"})
_LINE_END = re.compile(r"\r\n|\n|\r")  # CommonMark's; str.splitlines knows more, which stand in string literals
_OPENING = re.compile(r"( {0,3})(?:(`{3,})([^`]*)|(~{3,})(.*))")
_CLOSING = re.compile(r" {0,3}(`{3,}|~{3,})[ \t]*")
_THOUGHT_OPENS = re.compile(
    rf"^[ \t]*{THINK}", re.MULTILINE
)  # elsewhere in a line it is text, as in a program's string


@dataclass(frozen=True)
class Extraction:
    """Args:
    code: the program; empty where there is none.
    policy: the id of the policy that found it.
    truncated: the text ends inside a block or a thought.
    """

    code: str
    policy: str
    truncated: bool

    @property
    def no_code(self) -> bool:
        """There is no program, or a blank one."""
        return not self.code.strip()

    @property
    def failure(self) -> Verdict | None:
        """The verdict on an answer without a program; None where there is one to judge."""
        if not self.no_code:
            return None
        return Verdict.TRUNCATED if self.truncated else Verdict.NO_ANSWER


@dataclass(frozen=True)
class Policy:
    """A rule: text -> (program, whether the text was cut off)."""

    name: str
    version: int
    rule: Callable[[str], tuple[str, bool]]

    @property
    def id(self) -> str:
        return f"{self.name}-v{self.version}"


def extract(text: str, policy: str = "strict") -> Extraction:
    """The program in an answer.

    A thought whose `<think>` stands in the prompt and which never ends cannot be told from an answer: give this
    function the answer alone where generation has kept the two apart.

    Args:
        policy: a name ("strict": its current version) or an id ("strict-v1").

    Raises:
        InputError: no policy of that name and version.
    """
    chosen = get_policy(policy)
    code, truncated = chosen.rule(text)
    return Extraction(code, chosen.id, truncated)


def get_policy(name: str) -> Policy:
    """The policy of that name or id.

    Raises:
        InputError: there is none.
    """
    for policy in POLICIES.values():
        if name in (policy.name, policy.id):
            return policy
    known = ", ".join(f"{policy.name} ({policy.id})" for policy in POLICIES.values())
    raise InputError("extraction policy", expected=f"one of {known}", found=repr(name))


def _strict(text: str) -> tuple[str, bool]:
    thought_end = text.find(END_THINK)
    if thought_end >= 0:
        text = text[thought_end + len(END_THINK) :]
    elif _THOUGHT_OPENS.search(text):
        return "", True
    code = ""
    opened: Fence | None = None
    for line in _LINE_END.split(text):
        if opened is None:
            opened = Fence.opened_by(line)
        elif not opened.is_closed_by(line):
            opened.lines.append(line)
        else:
            if opened.label in PYTHON_LABELS:
                code = "".join(f"{opened.unindented(line)}\n" for line in opened.lines)
            opened = None
    return code, opened is not None


class Fence:
    """An opened block: its mark (as many backticks or tildes as opened it), indentation, language, and lines so far."""

    def __init__(self, mark: str, indent: int, info: str) -> None:
        self.mark, self.indent = mark, indent
        self.label = (info.split() or [""])[0].lower()
        self.lines: list[str] = []

    @staticmethod
    def opened_by(line: str) -> Fence | None:
        match = _OPENING.fullmatch(line)
        if match is None:
            return None
        indent, ticks, tick_info, tildes, tilde_info = match.groups()
        return Fence(ticks or tildes, len(indent), tick_info if ticks else tilde_info)

    def is_closed_by(self, line: str) -> bool:
        match = _CLOSING.fullmatch(line)
        return match is not None and match[1].startswith(self.mark)

    def unindented(self, line: str) -> str:
        """A line of the block without the spaces that indent the opening fence; a tab is not cut into spaces."""
        spaces = len(line) - len(line.lstrip(" "))
        return line[min(spaces, self.indent) :]


def _last_pair(text: str) -> tuple[str, bool]:
    lines = text.split("\n")
    fences = [index for index, line in enumerate(lines) if "```" in line]
    if len(fences) < 2:
        return "", len(fences) == 1
    return "\n".join(lines[fences[-2] + 1 : fences[-1]]), False


def _whole(text: str) -> tuple[str, bool]:
    return text.strip(), False


POLICIES = {
    policy.name: policy
    for policy in (
        Policy("strict", 1, _strict),
        Policy("lcb-last-pair", 1, _last_pair),
        Policy("lcb-base", 1, _whole),
    )
}
