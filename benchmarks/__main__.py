"""`python -m benchmarks [NAME ...] [--json PATH]`"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measure import BenchmarkRow
from core_model.errors import InputError

NAMES = ("attention", "experts", "train_step", "traffic", "decode", "prefill", "speculation", "judge")


def show(name: str, rows: list[BenchmarkRow]) -> None:
    table = Table(title=name)
    for column in ("case", "unit", "ours", "peer", "limit", "ratio", "95 %", "target"):
        table.add_column(column, justify="left" if column in ("case", "unit", "peer") else "right")
    for row in rows:
        table.add_row(
            row.case,
            row.unit,
            f"{row.ours:,.4g}",
            f"{'-' if row.peer is None else format(row.peer, ',.4g')} ({row.peer_name})",
            "-" if row.limit is None else f"{row.limit:,.4g}",
            "-" if row.ratio is None else f"{row.ratio:.2f}",
            "-" if row.ratio is None else f"{row.ratio_low:.2f} to {row.ratio_high:.2f}",
            "-" if row.target is None else f"{row.target:g}",
        )
    # As wide as it needs to be, in a file or a narrow window too: numbers that are cut say nothing.
    Console(width=Console(width=1000).measure(table).maximum).print(table)


def write(name: str, rows: list[BenchmarkRow], path: Path) -> None:
    record = {"name": name, "rows": [row.to_json() for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ours against a peer, in one process.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; none: all of them")
    parser.add_argument("--json", type=Path, help="also write the rows of the (last) benchmark here")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}")
    for name in options.names or NAMES:
        rows: list[BenchmarkRow] = []
        try:
            for row in importlib.import_module(f"benchmarks.{name}").run():
                rows.append(row)
                # Row by row: what is measured outlives what fails later, or a time limit.
                if options.json is not None:
                    write(name, rows, options.json)
        except InputError as error:  # a peer or a model that it needs is not there
            print(f"benchmarks {name}: {error}", file=sys.stderr)
            return 2
        finally:
            if rows:
                show(name, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
