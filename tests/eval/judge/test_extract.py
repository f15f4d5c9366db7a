"""The policies that find the program in an answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from core_model.errors import InputError
from eval.judge.extract import POLICIES, PYTHON_LABELS, extract
from recipes.rows import Verdict

ORACLE = json.loads((Path(__file__).parents[2] / "oracles/lcb/text.json").read_text())
A, B = "```python\na = 1\n```\n", "```\nb = 2\n```\n"
LINES = st.sampled_from(
    [
        "",
        "x = 1",
        "  ```",
        "```",
        "```python",
        "````",
        "~~~",
        "~~~ py",
        "   ~~~~",
        "    ```",
        "``` `",
        "```sh",
        " y",
    ]
)


@pytest.mark.parametrize("case", ORACLE["extract_code"], ids=lambda case: case["name"])
def test_official_rules_are_reproduced(case: dict[str, str]) -> None:
    assert extract(case["output"], "lcb-last-pair").code == case["generic"]
    assert extract(case["output"], "lcb-base").code == case["base"]


@pytest.mark.parametrize(
    ("text", "code"),
    [  # what reference measurements of the official rule say, beyond the recorded cases
        ("```python\r\na\r\nb\r\n```\r\n", "a\r\nb\r"),
        ("````python\na\n````", "a"),
        ("~~~python\na\n~~~", ""),
        ("```python\na\n```\n```python\nb", ""),  # the pair is an end and a beginning
        ("<think>\n```\ndraft\n```\n", "draft"),
        ("```python\na```", ""),
    ],
)
def test_official_last_pair_beyond_the_recorded_cases(text: str, code: str) -> None:
    assert extract(text, "lcb-last-pair").code == code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (A, "a = 1\n"),
        (f"Draft:\n{B}Better:\n{A}Done.", "a = 1\n"),
        (f"{A}It prints\n```text\n3\n```\nRun it:\n```bash\npython a.py\n```\n", "a = 1\n"),
        (f"{A}as in ```print(1)``` done", "a = 1\n"),
        (A.replace("\n", "\r\n"), "a = 1\n"),
        (A.replace("python", "Python3 title=a.py"), "a = 1\n"),
        ("~~~py\na\n~~~", "a\n"),
        ("~~~py `x`\na\n~~~", "a\n"),  # backticks may stand after tildes
        ("~~~\n```\na\n```\n~~~", "```\na\n```\n"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("```python\na\n`````", "a\n"),  # closed by a longer one
        ("  ```python\n  if x:\n      y\n z\n  ```", "if x:\n    y\nz\n"),
        ("```python\na\n   ```  ", "a\n"),
        ("```python\ns = '\x0b\u2028'\n```", "s = '\x0b\u2028'\n"),  # line ends to Python's splitlines only
        ("```python\n\na\n\n```", "\na\n\n"),
        (f"<think>\n{B}</think>\n{A}", "a = 1\n"),
        (f"{B}so\n</think>\n{A}", "a = 1\n"),  # the prompt had opened the thought
        ("```python\nprint('<think>')\n```", "print('<think>')\n"),
        ("```python\ns='''\n```\n'''\nprint(s)\n```", "s='''\n"),  # as a reader of Markdown sees it
    ],
)
def test_strict(text: str, code: str) -> None:
    found = extract(text, "strict")
    assert found.code == code and found.policy == "strict-v1" and not found.no_code and found.failure is None


@pytest.mark.parametrize(
    ("text", "truncated"),
    [
        ("", False),
        ("print(1)", False),
        ("```cpp\nint main() {}\n```", False),
        ("```print(1)```", False),
        ("    ```python\n    a\n    ```", False),  # an indented block of text
        ("\t```python\na\n\t```", False),
        ("```python\n```", False),
        ("```python\n  \n```", False),
        (f"</think>{'I cannot.'}", False),
        (f"{A}</think>\nNo.", False),  # the draft is no answer
        ("```python\nprint(1)\n", True),
        ("```python\nprint(1)\n    ```", True),
        ("````python\nprint(1)\n```", True),
        ("```python\nprint(1)\n~~~", True),
        ("```python\nprint(1)\n``` x", True),
        (f"<think>\n{A}", True),
        (f"Well.\n <think>{A}", True),
    ],
)
def test_strict_finds_no_program(text: str, truncated: bool) -> None:
    found = extract(text, "strict")
    assert found.no_code and found.truncated is truncated
    assert found.failure is (Verdict.TRUNCATED if truncated else Verdict.NO_ANSWER)


def test_an_answer_cut_off_in_a_later_block_keeps_its_last_complete_one() -> None:
    found = extract(f"{A}Or:\n```python\nb = ", "strict")
    assert found.code == "a = 1\n" and found.truncated and found.failure is None


def test_policies_have_versions_and_are_found_by_name_or_id() -> None:
    assert {policy.id for policy in POLICIES.values()} == {"strict-v1", "lcb-last-pair-v1", "lcb-base-v1"}
    assert extract(A, "lcb-last-pair-v1") == extract(A, "lcb-last-pair")
    assert extract(A).policy == "strict-v1"
    for unknown in ("strict-v2", "lcb", ""):
        with pytest.raises(InputError, match="strict-v1"):
            extract(A, unknown)


@given(st.lists(LINES, max_size=14))
def test_strict_reads_fences_as_a_markdown_parser_does(lines: list[str]) -> None:
    text = "\n".join(lines)
    parser = MarkdownIt("commonmark")
    # A word added on lines of its own tells whether a block is still open at the end.
    blocks = [token for token in parser.parse(f"{text}\n\nEND\n") if token.type == "fence"]
    is_open = bool(blocks) and blocks[-1].content.endswith("\nEND\n")
    complete = blocks[:-1] if is_open else blocks
    programs = [token.content for token in complete if (token.info.split() or [""])[0].lower() in PYTHON_LABELS]
    found = extract(text, "strict")
    assert found.code == (programs[-1] if programs else "")
    assert found.truncated == is_open


@given(st.lists(st.sampled_from(["x = 1", "", "  y", "'''", "``", "# ~~"]), max_size=6))
def test_what_is_fenced_is_what_is_found(lines: list[str]) -> None:
    code = "".join(f"{line}\n" for line in lines)
    for opening, closing in (("```python", "```"), ("~~~", "~~~~"), ("`````py", "`````")):
        found = extract(f"Here:\n{opening}\n{code}{closing}\nThat is all.", "strict")
        assert found.code == code and not found.truncated
