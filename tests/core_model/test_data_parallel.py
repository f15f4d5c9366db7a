"""Data-parallel generation: two real processes over gloo against one, shares, and errors that must not hang anybody."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from core_model.generation import Completion, DataParallelGenerator, Engine, Generator, SamplingParams
from core_model.generation.data_parallel import divide
from tests.core_model.reference import random_model, tiny_config

RANKS = 2


@dataclass(frozen=True)
class Processes:
    """As accelerate's PartialState says it."""

    num_processes: int
    process_index: int


class Watched(Engine):
    """An engine that notes what it is given, and fails when told to."""

    def __init__(self) -> None:
        super().__init__(random_model(tiny_config()))
        self.seen: list[list[int]] = []
        self.refreshed = 0
        self.fault: str | None = None

    def generate(self, prompts: list[list[int]], params: Any) -> list[list[Completion]]:
        self.seen += prompts
        if self.fault is not None:
            raise ValueError(self.fault)
        return super().generate(prompts, params)

    def refresh_weights(self) -> None:
        self.refreshed += 1
        super().refresh_weights()


def drawn_prompts(count: int) -> list[list[int]]:
    draw = random.Random(count)
    return [[draw.randrange(48) for _ in range(draw.randint(1, 12))] for _ in range(count)]


PROMPTS = drawn_prompts(7)
PARAMS = [
    SamplingParams(4 + i, temperature=0.3 * i, n=1 + i % 3, seed=i, logprobs=True, routed_experts=i == 3)
    for i in range(7)
]


def token_ids(generated: list[list[Completion]]) -> list[list[list[int]]]:
    return [[one.token_ids for one in samples] for samples in generated]


def outcome(work: Any) -> str:
    """How a call failed."""
    try:
        work()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def one_of_two(rank: int, folder: Path) -> dict[str, Any]:
    """What process `rank` sees; every case, in one start of the processes."""
    # By way of a file: no port that somebody else could take.
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    engine = Watched()
    generator = DataParallelGenerator(engine, Processes(RANKS, rank), patience=timedelta(seconds=60))
    saw: dict[str, Any] = {"taken for one": outcome(lambda: DataParallelGenerator(engine, Processes(1, 0)))}
    saw["generated"] = generator.generate(PROMPTS, PARAMS)
    saw["share"] = list(engine.seen)
    engine.seen.clear()
    saw["one request"] = generator.generate(PROMPTS[:1], SamplingParams(3, n=2))
    saw["share of one"] = len(engine.seen)
    saw["none"] = generator.generate([], []), generator.score([])
    saw["scores"] = generator.score(PROMPTS, 2)
    saw["too long"] = outcome(lambda: generator.generate(PROMPTS, SamplingParams(60)))
    saw["a sequence too long"] = outcome(lambda: generator.score([[1], [1] * 65]))
    saw["different prompts"] = outcome(lambda: generator.generate([[1, rank]], SamplingParams(3)))
    saw["different seeds"] = outcome(lambda: generator.generate([[1]], SamplingParams(3, seed=rank)))
    saw["one bad for one"] = outcome(lambda: generator.generate([[1] * (1 + 70 * rank)], SamplingParams(3)))
    engine.fault = "no memory" if rank == 1 else None
    saw["one failed"] = outcome(lambda: generator.generate(PROMPTS, PARAMS))
    engine.fault = None
    generator.refresh_weights()
    saw["refreshed"] = engine.refreshed
    saw["afterwards"] = token_ids(generator.generate(PROMPTS, PARAMS))
    dist.destroy_process_group()
    return saw


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.core_model.test_data_parallel", str(folder)]
    started = [subprocess.Popen([*command, str(rank)], cwd=repository, stderr=subprocess.PIPE) for rank in range(RANKS)]
    try:
        for process in started:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors.decode()[-4000:]
    finally:
        for process in started:
            process.kill()
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(RANKS)]  # noqa: S301  our own


@pytest.fixture(scope="module")
def alone() -> Engine:
    return Engine(random_model(tiny_config()))


def test_every_process_gets_what_one_alone_generates(both, alone):
    expected = alone.generate(PROMPTS, PARAMS)
    for saw in both:
        for one, other in zip(chain(*saw["generated"]), chain(*expected), strict=True):
            assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason)
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        assert saw["generated"][3][0].routed_experts.tolist() == expected[3][0].routed_experts.tolist()
        assert saw["afterwards"] == token_ids(expected) and saw["refreshed"] == 1


def test_each_prompt_is_read_by_one_process(both):
    assert all(saw["share"] for saw in both)
    assert sorted(both[0]["share"] + both[1]["share"]) == sorted(PROMPTS)


def test_fewer_requests_than_processes_and_none(both, alone):
    expected = token_ids(alone.generate(PROMPTS[:1], SamplingParams(3, n=2)))
    for saw in both:
        assert token_ids(saw["one request"]) == expected
        assert saw["none"] == ([], [])
    assert sorted(saw["share of one"] for saw in both) == [0, 1]


def test_scores(both, alone):
    expected = alone.score(PROMPTS, 2)
    for saw in both:
        for one, other in zip(saw["scores"], expected, strict=True):
            assert [own for own, _ in one] == pytest.approx([own for own, _ in other], abs=1e-5)
            assert [[token for token, _ in best] for _, best in one] == [
                [token for token, _ in best] for _, best in other
            ]


def test_an_error_is_raised_on_every_process(both):
    long = next(number for number, prompt in enumerate(PROMPTS) if len(prompt) > 4)
    for saw in both:
        # Numbered as the caller numbers them, not within a share.
        assert saw["too long"] == f"ValueError: prompt {long}: {len(PROMPTS[long])} tokens and 60 new ones exceed 64"
        assert saw["a sequence too long"] == "ValueError: sequence 1: 65 tokens, expected 1 to 64"
        assert saw["different prompts"] == saw["different seeds"]
        assert saw["different seeds"] == "ValueError: the processes were given different requests"
    assert both[1]["one bad for one"] == "ValueError: prompt 0: 71 tokens and 3 new ones exceed 64"
    assert both[0]["one bad for one"] == f"RuntimeError: process 1 of 2 failed: {both[1]['one bad for one']}"
    assert both[1]["one failed"] == "ValueError: no memory"
    assert both[0]["one failed"] == "RuntimeError: process 1 of 2 failed: ValueError: no memory"


def test_one_process_passes_everything_through(alone):
    generator = DataParallelGenerator(alone, Processes(1, 0))
    assert isinstance(generator, Generator)
    assert generator.max_tokens == 64 and generator.tokenizer is None
    assert token_ids(generator.generate(PROMPTS, PARAMS)) == token_ids(alone.generate(PROMPTS, PARAMS))
    assert generator.score(PROMPTS) == alone.score(PROMPTS)
    with pytest.raises(ValueError, match="prompt is empty"):
        generator.check([], SamplingParams(3))


def test_processes_that_do_not_know_each_other_are_refused(both, alone):
    for saw in both:
        assert saw["taken for one"] == "ValueError: 1 processes, but a torch.distributed process group of 2"
    with pytest.raises(ValueError, match=r"2 processes, but a torch\.distributed process group of 1"):
        DataParallelGenerator(alone, Processes(2, 0))


def test_shares_cost_about_the_same():
    draw = random.Random(0)
    for count, shares in ((0, 3), (2, 5), (7, 2), (100, 8)):
        costs = [draw.randint(1, 1000) for _ in range(count)]
        divided = divide(costs, shares)
        assert sorted(chain(*divided)) == list(range(count)) and len(divided) == shares
        burdens = [sum(costs[item] for item in share) for share in divided]
        assert max(burdens) - min(burdens) <= max(costs, default=0)
    assert divide([5, 5, 5, 5], 2) == [[0, 2], [1, 3]]


if __name__ == "__main__":
    target, number = Path(sys.argv[1]), int(sys.argv[2])
    (target / f"{number}.pickle").write_bytes(pickle.dumps(one_of_two(number, target)))
