"""Reading prompts, up to their first token, against transformers' `generate`, on the same weights."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.decode import Case, row
from benchmarks.measure import BenchmarkRow
from benchmarks.train_step import WIDER
from core_model import V3Config


def cases() -> Iterator[Case]:
    nano = V3Config.preset("nano", num_nextn_predict_layers=0, max_position_embeddings=8192)
    wider = V3Config(**{**WIDER, "max_position_embeddings": 4096})
    yield Case("nano", nano, 32, 128, 1, 7, None)
    yield Case("nano", nano, 4, 2048, 1, 5, None)
    yield Case("nano", nano, 1, 8000, 1, 5, None)
    yield Case("d 512, 64 experts", wider, 1, 2048, 1, 3, None)


def run() -> Iterator[BenchmarkRow]:
    """Tokens of the prompts a second."""
    for case in cases():
        yield row(case, case.batch * case.prompt)
