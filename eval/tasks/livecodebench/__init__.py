"""LiveCodeBench's data: its record, read and written (`records`), and which records are asked for (`selection`)."""

from eval.tasks.livecodebench.records import (
    MOST_BYTES,
    LiveCodeBenchRecord,
    decode_private_tests,
    from_problem,
    iter_records,
    read_records,
    to_cases,
    to_problem,
    write_records,
)
from eval.tasks.livecodebench.selection import (
    ERRATA,
    RELEASES,
    WINDOWS,
    Window,
    in_window,
    read_release,
    select_window,
    split_errata,
)

__all__ = [
    "ERRATA",
    "MOST_BYTES",
    "RELEASES",
    "WINDOWS",
    "LiveCodeBenchRecord",
    "Window",
    "decode_private_tests",
    "from_problem",
    "in_window",
    "iter_records",
    "read_records",
    "read_release",
    "select_window",
    "split_errata",
    "to_cases",
    "to_problem",
    "write_records",
]
