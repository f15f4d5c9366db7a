"""`python -m eval judge`: verdicts on generated programs, a row each. Killed anywhere, the same command goes on."""

from __future__ import annotations

import argparse
import functools
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from core_model.errors import InputError, disk_fault
from eval.judge.case import Case, CaseVerdict, Limits, Mode
from eval.judge.extract import POLICIES
from eval.judge.inputs import Answer, Problems, read_answers, read_problems, rows_once
from eval.judge.judge import Judge
from eval.judge.layers import NAMESPACES
from eval.judge.verdict_file import (
    IsolationRow,
    ProgramRow,
    ReferenceRow,
    RowFile,
    VerdictRow,
    sha256_of_tests,
    verdict_key,
)
from eval.tasks.livecodebench import WINDOWS, Window
from recipes.progress import progress_bar
from recipes.rows import Verdict
from recipes.stage_main import EXIT_BAD_INPUT, EXIT_INTERRUPTED

EXIT_INFRA = 3
DEFAULT_POLICY: Mapping[Mode, str] = {"strict": "strict", "lcb-compat": "lcb-last-pair"}
NO_PROGRAM = (Verdict.NO_ANSWER, Verdict.TRUNCATED)

# evalplus: a program may take four times what the reference takes, and never less than four seconds.
REFERENCE_TIMES, LEAST_SECONDS = 4.0, 4.0
REFERENCE_SECONDS = 60.0  # a reference that takes longer on one test is taken for one that does not end

_WINDOWS = "\n".join(f"  {name:<20} {window.start}..{window.end}" for name, window in WINDOWS.items())
EPILOG = f"""\
example:
  python -m eval judge --problems test6.jsonl --generations answers.jsonl --mode strict --out verdicts.jsonl

A row of --generations:
  {{"question_id": "abc387_a", "sample": 0, "text": "... ```python ... ``` ...", "finish_reason": "stop"}}
  {{"question_id": "abc387_a", "sample": 1, "code": "print(sum(map(int, input().split())) ** 2)"}}
`code` is judged as it is (and is what counts where a row has both); out of `text` the program is extracted, by a named
policy. finish_reason may be left out; "length" makes an answer without a program TRUNCATED. "language" may name another
one than python (cpp, c, rust) for a `code`. Other keys are passed over.

A row of --out, one for each of --generations and in the same order once all are judged:
  question_id, sample      as given
  verdict, detail, passed  CORRECT, WRONG_ANSWER, TIME_LIMIT, MEMORY_LIMIT, OUTPUT_LIMIT, RUNTIME_ERROR, COMPILE_ERROR,
                           NO_ANSWER and TRUNCATED (no program), INVALID_PROBLEM and INFRA_ERROR (neither is wrong)
  lcb_results, error_code  in LiveCodeBench's codes, up to the first test that failed
  isolation                level, layers, missing: what kept the program in
  extraction, no_code      the policy's id (null where the program was given), and whether there was no program
  seconds, memory_mb       CPU time of all tests, largest resident set
  mode, key                key: sha256 of program, tests, entry, language, version of the judge, mode, limits

Modes: strict runs a program as a process of its own; lcb-compat gives the verdicts of LiveCodeBench's own judge.

Killed at any moment, or out of disk, the same command goes on: rows whose key still holds are kept, others are judged.
With --references, what the references took is kept in OUT.references.

exit status: 0 all judged, whatever the verdicts; 2 bad input (one message says which file, line and key; nothing was
written) or a full disk; 3 some rows are INFRA_ERROR (the machine's fault: run the same command again, it judges only
those); 130 interrupted.

windows:
{_WINDOWS}
"""


@dataclass(frozen=True)
class Asked:
    """An answer with what its verdict depends on.

    Args:
        settled: the verdict, where the problem and not the program decides it.
    """

    answer: Answer
    case: Case
    key: str
    settled: CaseVerdict | None = None

    def is_answered_by(self, row: VerdictRow) -> bool:
        """Whether a row of an earlier run holds still; a verdict that the machine is to blame for never does."""
        same = row.key == self.key and row.extraction == self.answer.extraction
        if not same or row.no_code != (self.answer.failure is not None) or row.verdict is Verdict.INFRA_ERROR:
            return False
        return row.verdict not in NO_PROGRAM or row.verdict is self.answer.failure

    def row(self, found: CaseVerdict, mode: Mode) -> VerdictRow:
        """The row of a verdict."""
        verdict, failure = found.verdict, self.answer.failure
        # lcb-compat runs an empty program, as its model does: what it came to is in lcb_results.
        if failure is not None and verdict.counts and verdict is not Verdict.CORRECT:
            verdict = failure
        return VerdictRow(
            question_id=self.answer.question_id,
            sample=self.answer.sample,
            verdict=verdict,
            # A program can make its error message out of anything, half a surrogate pair included.
            detail=found.detail.encode(errors="backslashreplace").decode(),
            passed=found.passed,
            lcb_results=list(found.results),
            error_code=found.error_code,
            isolation=IsolationRow.model_validate(found.isolation.to_json()),
            extraction=self.answer.extraction,
            no_code=failure is not None,
            seconds=round(found.seconds, 6),
            memory_mb=found.memory_mb,
            mode=mode,
            key=self.key,
        )


# -- references ----------------------------------------------------------------------------------------------------


def measure_references(
    path: Path, out: Path, problems: Problems, options: argparse.Namespace, start: Callable[[], Judge]
) -> dict[str, tuple[Limits | None, CaseVerdict | None]]:
    """What the references' own times say of their problems: limits, or the verdict on all answers where a reference
    fails.

    Args:
        out: a file for what they took, so that a second run has the same limits.

    Raises:
        InputError: a missing file, a line that is no row, a problem that is there twice or not at all.
    """
    rows = rows_once(path, ProgramRow, lambda row: row.question_id, "question_id")
    programs = {row.question_id: row.code for row in rows}
    problems.require(programs, path)
    base = limits_of(options)
    slow = replace(base, cpu_seconds=max(REFERENCE_SECONDS, base.cpu_seconds))
    ids = [question_id for question_id in problems.tests if question_id in programs]
    cases = [Case(programs[id], *problems.tests[id], limits=slow, trusted=True) for id in ids]
    keys = [verdict_key(case.source, sha256_of_tests(case.tests), case.entry, options.mode, slow) for case in cases]
    places = {(id, key): index for index, (id, key) in enumerate(zip(ids, keys, strict=True))}
    failures: dict[str, str] = {}
    with RowFile(out, ReferenceRow) as file:
        file.read(len(ids), lambda row: places.get((row.question_id, row.key)))
        waiting = [index for index in range(len(ids)) if index not in file.rows]
        if waiting:
            with progress_bar(len(ids), "references", done=len(file.rows), unit="references") as bar:

                def keep(number: int, found: CaseVerdict) -> None:
                    index = waiting[number]
                    bar.advance()
                    if found.verdict is Verdict.INFRA_ERROR:
                        failures[ids[index]] = found.detail
                        return
                    slowest = round(max(found.test_seconds, default=0.0), 6)
                    row = ReferenceRow(
                        question_id=ids[index],
                        verdict=found.verdict,
                        detail=found.detail.encode(errors="backslashreplace").decode(),
                        slowest_seconds=slowest,
                        key=keys[index],
                    )
                    file.append(index, row)

                start().judge_many([cases[index] for index in waiting], keep)
        measured = {row.question_id: row for row in file.rows.values()}
    return {id: _of_reference(measured.get(id), base, failures.get(id, "")) for id in ids}


def _of_reference(row: ReferenceRow | None, base: Limits, failure: str) -> tuple[Limits | None, CaseVerdict | None]:
    if row is None:
        return None, CaseVerdict(Verdict.INFRA_ERROR, f"the reference could not be judged: {failure}", (-2,), -5)
    if row.verdict is not Verdict.CORRECT:
        return None, CaseVerdict(Verdict.INVALID_PROBLEM, f"the reference fails: {row.verdict} {row.detail}".strip())
    seconds = max(LEAST_SECONDS, REFERENCE_TIMES * row.slowest_seconds)
    return replace(base, cpu_seconds=seconds), None


# -- judging -------------------------------------------------------------------------------------------------------


def limits_of(options: argparse.Namespace) -> Limits:
    """The limits that the options name."""
    chosen = Limits()
    if options.cpu_seconds is not None:
        chosen = replace(chosen, cpu_seconds=options.cpu_seconds)
    if options.memory_mb is not None:
        chosen = replace(chosen, memory_bytes=options.memory_mb << 20)
    return chosen


def judge_answers(options: argparse.Namespace) -> int:
    """Judge what --out does not hold yet; the exit status.

    Raises:
        InputError: bad input; nothing was written.
        OSError: the disk is full, say; the rows so far are kept.
    """
    mode: Mode = options.mode
    answers = read_answers(options.generations, options.extraction or DEFAULT_POLICY[mode])
    wanted = {answer.question_id for answer in answers}
    window = None if options.window is None else Window.of(options.window)
    problems = read_problems(options.problems, wanted, release=options.release, window=window, errata=options.errata)
    problems.require(wanted, options.generations)
    refuse_inputs(options.out, [options.generations, *problems.files, options.references])
    answers, total = [answer for answer in answers if answer.question_id not in problems.left_out], len(answers)
    for note in problems.notes:
        print(note)
    if not answers:
        raise InputError(options.generations, expected="answers to problems of the selection", found=f"none of {total}")
    if len(answers) < total:
        print(f"{total - len(answers)} of {total} generations are of problems that are left out")
    base = limits_of(options)
    with ExitStack() as stack, RowFile(options.out, VerdictRow) as file:

        @functools.cache
        def start() -> Judge:
            return stack.enter_context(Judge(mode, options.workers, base, allow_unsandboxed=options.allow_unsandboxed))

        references: Mapping[str, tuple[Limits | None, CaseVerdict | None]] = {}
        if options.references is not None:
            took = options.out.with_name(options.out.name + ".references")
            references = measure_references(options.references, took, problems, options, start)
        asked = ask(answers, problems, references, mode, base)
        places = {(one.answer.question_id, one.answer.sample): index for index, one in enumerate(asked)}

        def place(row: VerdictRow) -> int | None:
            index = places.get((row.question_id, row.sample))
            return index if index is not None and asked[index].is_answered_by(row) else None

        file.read(len(asked), place)
        judge_rest(file, asked, mode, start)
        rows = file.finish()
    return report(rows, options)


def refuse_inputs(out: Path, inputs: Iterable[Path | None]) -> None:
    """Raises:
    InputError: --out is one of the files to be read.
    """
    if any(path is not None and path.resolve() == out.resolve() for path in inputs):
        raise InputError(out, where="--out", expected="a file of its own", found="one of the inputs")


def ask(
    answers: Sequence[Answer],
    problems: Problems,
    references: Mapping[str, tuple[Limits | None, CaseVerdict | None]],
    mode: Mode,
    base: Limits,
) -> list[Asked]:
    """What is to be judged, with the keys of its verdicts."""
    sums = {id: sha256_of_tests(tests) for id, (tests, _) in problems.tests.items()}
    asked = []
    for answer in answers:
        tests, entry = problems.tests[answer.question_id]
        limits, settled = references.get(answer.question_id, (base, None))
        key = verdict_key(answer.code, sums[answer.question_id], entry, mode, limits, answer.language)
        asked.append(Asked(answer, Case(answer.code, tests, entry, answer.language, limits), key, settled))
    return asked


def judge_rest(file: RowFile[VerdictRow], asked: Sequence[Asked], mode: Mode, start: Callable[[], Judge]) -> None:
    """Append the rows that the file has not got."""
    missing = [index for index in range(len(asked)) if index not in file.rows]
    waiting = []
    right = sum(row.passed for row in file.rows.values())
    if not missing:
        return
    with progress_bar(len(asked), "judge", done=len(file.rows), unit="verdicts") as bar:

        def keep(index: int, found: CaseVerdict) -> None:
            nonlocal right
            file.append(index, asked[index].row(found, mode))
            right += found.passed
            bar.advance(right=right / len(file.rows))

        for index in missing:
            settled = asked[index].settled
            if settled is None:
                waiting.append(index)
            else:
                keep(index, settled)
        if waiting:
            cases = [asked[index].case for index in waiting]
            start().judge_many(cases, lambda number, found: keep(waiting[number], found))


def report(rows: Sequence[VerdictRow], options: argparse.Namespace) -> int:
    """Print what came out; the exit status."""
    verdicts = Counter(row.verdict for row in rows)
    levels = Counter(row.isolation.level for row in rows if row.isolation.level)
    apart = ", ".join(f"{level} ({count} rows)" for level, count in sorted(levels.items())) or "none (no program ran)"
    print(f"{options.out}: {len(rows)} verdicts, mode {options.mode}, isolation level {apart}")
    for verdict in Verdict:
        if verdict in verdicts:
            print(f"  {verdict:<16}{verdicts[verdict]:>8}  {verdicts[verdict] / len(rows):6.1%}")
    counted = [row for row in rows if row.verdict.counts]
    if counted:
        right = sum(row.passed for row in counted)
        print(f"right: {right} of {len(counted)} that count ({right / len(counted):.1%})")
    for policy in sorted({row.extraction for row in rows if row.extraction is not None}):
        extracted = [row for row in rows if row.extraction == policy]
        without = sum(row.no_code for row in extracted)
        cut = sum(row.verdict is Verdict.TRUNCATED for row in extracted)
        share = without / len(extracted)
        print(f"extraction {policy}: no program in {without} of {len(extracted)} answers ({share:.1%}), {cut} cut off")
    if unsafe := sum(count for level, count in levels.items() if level < NAMESPACES):
        print(f"{unsafe} programs ran below isolation level {NAMESPACES} (--allow-unsandboxed)")
    if lost := verdicts[Verdict.INFRA_ERROR]:
        print(f"{lost} rows are INFRA_ERROR: this machine's fault. Run the same command again; it judges only those.")
        return EXIT_INFRA
    return 0


# -- the command line ----------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return judge_answers(options)
    except InputError as error:
        print(f"eval judge: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except OSError as error:
        if (fault := disk_fault(error)) is None:
            raise
        print(f"eval judge: {fault}; the same command goes on", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("eval judge: interrupted; the same command goes on", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval judge",
        description="Judge programs on LiveCodeBench's problems (or others in its schema), each in a sandbox.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    policies = f"{', '.join(POLICIES)} (default: strict; lcb-last-pair with lcb-compat)"
    references = (
        "solutions (rows with question_id, code): their problems' limit becomes four times the CPU time of the "
        "solution's slowest test, 4 s at least; where a solution fails, every answer is INVALID_PROBLEM"
    )
    errata = (
        "problems known to be wrong: keep (default), drop, or the kinds to drop (several-answers, interactive, "
        "wrong-tests; commas between)"
    )
    seconds = f"CPU time on one test (default: {Limits().cpu_seconds:g}); also of problems without a reference"
    memory = f"memory of a program (default: {Limits().memory_bytes >> 20})"
    unsafe = f"judge also where the sandbox is below level {NAMESPACES}; `trivium doctor` shows it"
    add("--problems", type=Path, required=True, metavar="PATH", help="a JSONL file, or a folder of the published ones")
    add("--release", metavar="TAG", help="with a folder: release_v6 (all files up to it), v6 (that alone), v4_v5")
    add("--window", metavar="WINDOW", help="only contests of these days: START..END, both included, or a name (below)")
    add("--errata", type=_errata, default="keep", metavar="WHICH", help=errata)
    add("--generations", type=Path, required=True, metavar="G.jsonl", help="what is to be judged (below)")
    add("--out", type=Path, required=True, metavar="V.jsonl", help="the verdicts (below)")
    add("--mode", choices=sorted(DEFAULT_POLICY, reverse=True), default="strict", help="default: strict")
    add("--extraction", metavar="POLICY", help=f"how programs are found in texts: {policies}")
    add("--references", type=Path, metavar="R.jsonl", help=references)
    add("--cpu-seconds", type=_positive(float), metavar="S", help=seconds)
    add("--memory-mb", type=_positive(int), metavar="MIB", help=memory)
    add("--workers", type=_positive(int), metavar="N", help="programs judged at a time (default: one for each core)")
    add("--allow-unsandboxed", action="store_true", help=unsafe)
    return parser


Number = TypeVar("Number", int, float)


def _positive(kind: type[Number]) -> Callable[[str], Number]:
    def parse(text: str) -> Number:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"more than 0 is expected, not {text}")
        return value

    parse.__name__ = "number" if kind is float else "whole number"  # what argparse calls a text that is none
    return parse


def _errata(text: str) -> str | list[str]:
    return text if text in ("keep", "drop") else text.split(",")
