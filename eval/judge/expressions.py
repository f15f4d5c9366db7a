"""Final answers as text: found in a completion, written in one way, and read as exact numbers.

Everything here is linear in the length of its input and never evaluates it: an answer is data.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from fractions import Fraction
from typing import Literal

LONGEST_NUMBER = 300  # characters of a number, written out
LARGEST_EXPONENT = 400  # of ten: beyond doubles, and harmless to write out
TAIL = 4_000  # characters at the end of a text in which the last number is looked for

BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
IN_TEXT = re.compile(r"[-−]?\$?(?:\d[\d,]*\.?\d*|\.\d+)(?:/\d+)?%?")

SPACES = re.compile(r"\\[!,;: ]|~|\\quad|\\qquad")
COMMANDS = re.compile(r"\\(?:left|right|displaystyle|textstyle|limits)(?![A-Za-z])|\\[Bb]igg?[lr]?(?![A-Za-z])")
FRACTIONS = re.compile(r"\\[dtc]frac(?![A-Za-z])")
FONTS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox)\s*\{([^{}]*)\}")
DEGREES = re.compile(r"\^\s*\\circ|\^\s*\{\s*\\circ\s*\}|\\degree|°|(?<=\d)\s*degrees?$")
PERCENT = re.compile(r"\\%|\s*\bpercent\b|％")
THIN = re.compile(r"(?<=\d)\\[,!](?=\d{3}(?!\d))")  # spaces that set thousands off
THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:(?:,|\{,\})\d{3})+(?![\d,])")

NATURAL = r"(?:\d+)"
DECIMAL = r"(?:\d+\.?\d*|\.\d+)"
LATEX_RATIO = rf"\\frac\s*(?:\{{\s*(-?{DECIMAL})\s*\}}\s*\{{\s*({DECIMAL})\s*\}}|(\d)\s*(\d))"
SIGN = r"\s*([+-]?)\s*"
PLAIN = re.compile(rf"{SIGN}({DECIMAL})(?:[eE]([+-]?\d{{1,6}}))?")
SCIENTIFIC = re.compile(
    rf"{SIGN}({DECIMAL})\s*(?:\\times|\\cdot|×|\*)\s*10\s*(?:\^|\*\*)\s*(?:\{{\s*([+-]?\d{{1,6}})\s*\}}|(\d))"
)
SLASH = re.compile(rf"{SIGN}({DECIMAL})\s*/\s*({DECIMAL})")
RATIO = re.compile(rf"{SIGN}{LATEX_RATIO}")
MIXED = re.compile(rf"{SIGN}({NATURAL})\s+({NATURAL})\s*/\s*({NATURAL})")
LATEX_MIXED = re.compile(rf"{SIGN}({NATURAL})\s*{LATEX_RATIO}")
BASED = re.compile(r"(-?[0-9A-Z]+)_(?:\{\s*(\d{1,2})\s*\}|(\d{1,2}))", re.IGNORECASE | re.ASCII)


def final_answer(text: str, unboxed: Literal["whole", "last_number", "no_answer"], hashes: bool) -> str | None:
    """The final answer in a text: its last box whose braces balance, the inner one of nested boxes.

    Args:
        unboxed: what a text without a box counts as.
        hashes: whether the text behind the last "####" goes before that.

    Returns:
        The answer, or None where there is none in that form.
    """
    found = _last_boxed(text)
    if found is None and hashes and "####" in text:
        found = text.rsplit("####", 1)[1].strip().split("\n", 1)[0]
    if found is None and unboxed == "last_number":
        numbers = IN_TEXT.findall(text[-TAIL:])
        found = numbers[-1].rstrip(",.") if numbers else None
    if found is None and unboxed == "whole":
        found = text
    return found.strip() or None if found is not None else None


def _last_boxed(text: str) -> str | None:
    """What the box that begins last holds, among those that are closed. One pass: unclosed boxes cost nothing."""
    if "\\boxed" not in text and "\\fbox" not in text:
        return None
    opened: list[tuple[int, bool]] = []
    best: tuple[int, int] | None = None
    for token in BRACES.finditer(text):
        mark = token.group()
        if mark == "{" or (mark[0] == "\\" and mark[-1] == "{" and len(mark) > 2):
            opened.append((token.end(), mark != "{"))
        elif mark == "}" and opened:
            start, boxed = opened.pop()
            if boxed and (best is None or start > best[0]):
                best = start, token.start()
    return text[best[0] : best[1]] if best is not None else None


@functools.lru_cache(maxsize=1024)
def normalise(text: str) -> str:
    """An answer in one spelling: no dollar signs, size commands, fonts, degrees, thousands separators or final full
    stop; ASCII minus and fractions; `%` for every percent sign; leading plus and zeros dropped."""
    text = "".join(_plain_character(character) for character in text)
    text = SPACES.sub(" ", COMMANDS.sub("", THIN.sub("", text))).replace("\\$", "").replace("$", "").strip()
    for left, right in (("\\(", "\\)"), ("\\[", "\\]")):
        text = text.removeprefix(left).removesuffix(right).strip()
    text = FRACTIONS.sub(r"\\frac", text)
    text = FONTS.sub(r"\1", text)
    text = text.rstrip().rstrip(".").strip()
    text = PERCENT.sub("%", text)
    text = DEGREES.sub("", text)
    text = THOUSANDS.sub(lambda number: re.sub(r"[,{}]", "", number.group()), text)
    text = " ".join(text.split())
    text = re.sub(r"\A\+\s*(?=[\d.])", "", text)
    return re.sub(r"\A(-?)0+(?=\d)", r"\1", text)


def _plain_character(character: str) -> str:
    if character in "−–﹣－":
        return "-"
    if character.isascii():
        return character
    if unicodedata.decomposition(character).startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", character).replace("\N{FRACTION SLASH}", "/")
    return character


@functools.lru_cache(maxsize=1024)
def exact_number(text: str) -> Fraction | None:
    """The number an answer is: integer, decimal, fraction, mixed number or scientific notation; None for all else.

    A percent sign is read past. A number too long, or with an exponent too large, to be anybody's answer is None.
    """
    if len(text) > 4 * LONGEST_NUMBER:
        return None
    plain = normalise(text).removesuffix("%").strip()
    if len(plain) > LONGEST_NUMBER or not plain.isascii():
        return None
    try:
        return _read_number(plain)
    except ZeroDivisionError:
        return None


def _read_number(plain: str) -> Fraction | None:
    if match := PLAIN.fullmatch(plain):
        sign, digits, exponent = match.groups()
        return _signed(sign, _scaled(digits, exponent or "0"))
    if match := SCIENTIFIC.fullmatch(plain):
        sign, digits, *exponents = match.groups()
        return _signed(sign, _scaled(digits, exponents[0] or exponents[1]))
    if match := SLASH.fullmatch(plain):
        sign, above, below = match.groups()
        return _signed(sign, Fraction(above) / Fraction(below))
    if match := RATIO.fullmatch(plain):
        sign, *parts = match.groups()
        return _signed(sign, _ratio(parts))
    if match := MIXED.fullmatch(plain):
        sign, whole, above, below = match.groups()
        return _signed(sign, _mixed(whole, Fraction(int(above), int(below))))
    if match := LATEX_MIXED.fullmatch(plain):
        sign, whole, *parts = match.groups()
        return _signed(sign, _mixed(whole, _ratio(parts)))
    return None


def _scaled(digits: str, exponent: str) -> Fraction | None:
    power = int(exponent)
    return None if abs(power) > LARGEST_EXPONENT else Fraction(digits) * Fraction(10) ** power


def _ratio(parts: list[str]) -> Fraction:
    above, below = (parts[0], parts[1]) if parts[0] is not None else (parts[2], parts[3])
    return Fraction(above) / Fraction(below)


def _mixed(whole: str, part: Fraction) -> Fraction | None:
    """Only a proper fraction makes a mixed number; 2\\frac{3}{2} is a product to some and is left to nobody."""
    return int(whole) + part if 0 < part < 1 else None


def _signed(sign: str, number: Fraction | None) -> Fraction | None:
    return -number if number is not None and sign == "-" else number


def base_number(text: str) -> tuple[str, int] | None:
    """The digits and the base of 101_2; None for what is no such number (variables with subscripts among them)."""
    match = BASED.fullmatch(normalise(text)) if len(text) <= LONGEST_NUMBER else None
    if match is None:
        return None
    base = int(match[2] or match[3])
    digits = match[1].upper()
    if not 2 <= base <= 36 or not all(digit.isdigit() or ord(digit) - 55 < base for digit in digits.lstrip("-")):
        return None
    return (digits, base) if digits.lstrip("-")[:1].isdigit() else None
