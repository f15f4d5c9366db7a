"""The child's side of `eval.judge.child`: compares expressions and asks reasoning-gym's scorers, on request.

Started as a file, never imported by the judge. Requests and replies are JSON, one a line:

    {"task": "gold", "gold", "units"}             -> {"parsed": bool}     can math-verify read it
    {"task": "pair", "gold", "answer", "units"}   -> {"parsed": bool, "equal": bool}
    {"task": "gym", "dataset", "answer", "entry"} -> {"score": float} or {"raised": "ValueError"}

The first line in gives the limits, the first line out says that it is ready. Every reply has `tired`: this process has
held so much memory that the next request deserves a fresh one.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
import math
import os
import resource
import signal
from typing import Any

GRACE_SECONDS = 2  # between the timer, which is exact, and the limit on CPU time, which counts whole seconds


def address_space() -> int:
    """Bytes of this process's address space now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def peak_memory() -> int:
    """Bytes of the largest resident set so far. Not `ru_maxrss`: that one is inherited from whoever started us."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM:"))


def limit(memory_bytes: int) -> None:
    """Limits for good. `memory_bytes` counts from here, so that what the libraries take is not the answer's."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    ceiling = address_space() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))


def allow_cpu(seconds: float) -> None:
    """The kernel ends this process after `seconds` more of CPU time: the timer first, the limit behind it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(usage.ru_utime + usage.ru_stime + seconds) + GRACE_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_PROF, seconds)


@functools.lru_cache(maxsize=64)
def parsed(latex: str, units: bool) -> list[Any]:
    """What math-verify reads in one expression: [] when it can read nothing (no string to fall back on).

    Args:
        units: whether a word or letter behind the last number is a unit and dropped ("5 m"), or a variable.
    """
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    rules = NormalizationConfig(units=units, malformed_operators=True, nits=True, boxed="all")
    config = LatexExtractionConfig(normalization_config=rules)
    return parse(f"${latex}$", [config], fallback_mode="no_fallback", parsing_timeout=None)


@functools.cache
def gym_scorer(dataset: str) -> Any:
    from reasoning_gym.factory import get_score_answer_fn

    return get_score_answer_fn(dataset)


def work(request: dict[str, Any]) -> dict[str, Any]:
    """The reply to one request."""
    if request["task"] == "gym":
        try:
            return {"score": float(gym_scorer(request["dataset"])(request["answer"], request["entry"]))}
        except MemoryError:
            raise
        except Exception as error:  # what its scorers do with an answer they cannot parse
            return {"raised": type(error).__name__}
    gold = parsed(request["gold"], request["units"])
    if request["task"] == "gold":
        return {"parsed": bool(gold)}
    from math_verify import verify

    answer = parsed(request["answer"], request["units"])
    return {"parsed": bool(answer), "equal": bool(answer) and verify(gold, answer, timeout_seconds=None)}


def main() -> None:
    channel_in, channel_out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    settings = json.loads(channel_in.readline())
    logging.disable(logging.CRITICAL)
    importlib.import_module(settings["library"])
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # a library that prints must not be taken for a reply
        os.dup2(nowhere, standard)

    def reply(row: dict[str, Any]) -> None:
        channel_out.write(json.dumps(row).encode() + b"\n")
        channel_out.flush()

    limit(settings["memory_bytes"])
    before = peak_memory()
    reply({"ready": True})
    for line in channel_in:
        allow_cpu(settings["seconds"])
        try:
            row = work(json.loads(line))
        except MemoryError:
            row = {"fault": "memory"}
        except RecursionError:
            row = {"fault": "recursion"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        reply({**row, "tired": "fault" in row or peak_memory() - before > settings["memory_bytes"] / 4})


if __name__ == "__main__":
    main()
