"""`python -m eval export`: an eval run's answers and verdicts in the formats of other harnesses."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from core_model.errors import InputError, disk_fault
from eval.export import inspect_log, livecodebench, lm_eval_results
from eval.export.evaluation import Evaluation, read, refuse_gaps
from eval.export.livecodebench import is_record
from eval.judge.extract import POLICIES, get_policy
from eval.tasks.livecodebench.selection import WINDOWS, Window
from recipes.atomic import write_text

FORMATS = ("livecodebench", "lm-eval", "inspect")
EPILOG = f"""\
formats (docs/export.md says what each can hold):
  livecodebench  MODEL/Scenario.codegeneration_N_T.json, ..._eval.json, ..._eval_all.json; problems of LiveCodeBench's
                 schema alone; its compute_scores --eval_all_file reads the last
  lm-eval        MODEL/results_DATE.json, MODEL/samples_TASK_DATE.jsonl, as lm-eval 0.4.13 writes them
  inspect        DATE_TASK_MODEL_ID.json, a log for each task and model; inspect view --log-dir OUT shows them

windows: START..END in days (2024-08-01..2024-11-30, both included), or {", ".join(WINDOWS)}

examples:
  python -m eval export runs/lcb --format livecodebench --out exported --window deepseek-v3
  python -m eval export runs/nano/eval --format inspect --out logs --model rl --model sft_short

exit status: 0 written, 2 bad input (nothing is written), or a disk that cannot be written
"""


def main(arguments: Sequence[str]) -> int:
    """Export and say which files were written; the exit status.

    Raises:
        InputError: no eval run, gaps in it, nothing to export, or a place that cannot be written.
    """
    options = _parser().parse_args(list(arguments))
    get_policy(options.extraction)
    window = None if options.window is None else parse_window(options.window)
    evaluation = read(options.run, models=options.model, tasks=options.task, window=window)
    if not options.allow_incomplete:
        refuse_gaps(evaluation, options.run, verdicts=options.format != "inspect")
    files = make_files(evaluation, options.format, options.extraction)
    write_files(options.out, files)
    for line in (*left_out(evaluation, options.format), *(str(options.out / name) for name in files)):
        print(line)
    return 0


def make_files(evaluation: Evaluation, form: str, policy: str = "strict") -> dict[str, str]:
    """Text of every file by its name below the output folder.

    Args:
        form: one of FORMATS.
        policy: how programs are extracted, for livecodebench.

    Raises:
        InputError: nothing in the evaluation that the format can hold.
    """
    if form == "inspect":
        return inspect_log.files(evaluation)  # which keeps what does not count, as errors
    counted = evaluation.counted()
    if not counted.tasks:
        raise InputError("samples", expected="a sample with a judgement of the model", found="none")
    return livecodebench.files(counted, policy) if form == "livecodebench" else lm_eval_results.files(counted)


def write_files(folder: Path, files: dict[str, str]) -> None:
    """Write each file whole or not at all.

    Raises:
        InputError: a place that cannot be written.
    """
    try:
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError(folder, expected="a folder for the files", found=str(error)) from error
    except OSError as error:
        if (fault := disk_fault(error)) is not None:
            raise fault from error
        raise


def parse_window(text: str) -> Window:
    """A window by name, or from START..END.

    Raises:
        InputError: neither.
    """
    # START:END, as it was first written here, still means the same.
    return Window.of(text.replace(":", "..", 1))


def left_out(evaluation: Evaluation, form: str) -> list[str]:
    """Lines about what is not in the files as right or wrong."""
    where = "are errors in the log, without a score" if form == "inspect" else "left out"
    lines = [] if evaluation.complete else ["the run is not complete: what it has no rows of yet is not in the files"]
    for one in evaluation.tasks:
        other = 0 if form != "livecodebench" else sum(not is_record(answered.problem) for answered in one.answers)
        if other:
            lines.append(
                f"{one.model}, task {one.task}: {other} problems that are not of LiveCodeBench's schema left out"
            )
        lost = one.counted().left_out
        if lost:
            lines.append(f"{one.model}, task {one.task}: {lost} samples without a judgement of the model {where}")
        if one.unasked:
            lines.append(f"{one.model}, task {one.task}: {one.unasked} problems without answers left out")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval export",
        description="Write an eval run's answers and verdicts in the format of another harness.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of an eval run")
    parser.add_argument("--format", choices=FORMATS, required=True, help="whose format")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="where the files go; made when absent"
    )
    parser.add_argument(
        "--model", action="append", default=[], metavar="ID", help="this model alone (may be repeated; all)"
    )
    parser.add_argument(
        "--task", action="append", default=[], metavar="NAME", help="this task alone (may be repeated; all)"
    )
    parser.add_argument("--window", metavar="START..END", help="problems dated in these days alone (all)")
    parser.add_argument(
        "--extraction",
        default="strict",
        metavar="POLICY",
        help=f"how the task found programs in answers, for code_list: {', '.join(POLICIES)} (strict)",
    )
    parser.add_argument(
        "--allow-incomplete",
        action="store_true",
        help="leave out samples that were not judged (INFRA_ERROR, INVALID_PROBLEM) or are missing, and say how many",
    )
    return parser
