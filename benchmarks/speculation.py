"""MTP drafts on the reasoner that `make nano` trained: what they save, by number of drafts and size of batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import BenchmarkRow, Comparison, compare
from core_model import V3ForCausalLM
from core_model.errors import InputError
from core_model.generation import Engine, SamplingParams
from core_model.parallel.device import training_device
from core_model.parallel.host_memory import keep_freed_memory
from core_model.tokenizer import EOS, load_tokenizer, render_prompt, special_id
from core_model.tokenizer.prompts import REFLECT_SYSTEM_PROMPT
from eval.tasks import problems

MODEL = Path("runs/nano/sft_reasoning/model")
FAMILIES = ("chain_sum", "count_bits", "base_conversion", "code")
NEW_TOKENS = 256


def run() -> Iterator[BenchmarkRow]:
    """Answered held-out problems, tokens a second; the peer is the same engine without drafts.

    Raises:
        InputError: there is no such model yet.
    """
    if not MODEL.is_dir():
        raise InputError(MODEL, expected="a model trained by make nano", found="none")
    keep_freed_memory()
    model = V3ForCausalLM.from_pretrained(MODEL).to(training_device())  # type: ignore[arg-type]
    tokenizer = load_tokenizer(MODEL)
    for batch in (1, 8, 64):
        asked = [problem for family in FAMILIES for problem in problems(family, "test", max(1, batch // 4))][:batch]
        system = {"role": "system", "content": REFLECT_SYSTEM_PROMPT}
        prompts = [
            render_prompt(tokenizer, [system, *(message.model_dump(exclude_none=True) for message in problem.messages)])
            for problem in asked
        ]
        for temperature in (0.0, 1.0):
            for drafts in (1, 2, 3):
                yield _case(model, prompts, temperature, drafts, special_id(tokenizer, EOS))


def _case(model: V3ForCausalLM, prompts: list[list[int]], temperature: float, drafts: int, eos: int) -> BenchmarkRow:
    plain = Engine(model, max_batch=len(prompts))
    drafting = Engine(model, max_batch=len(prompts), speculate_always=True)

    def params(speculative: int) -> SamplingParams:
        return SamplingParams(NEW_TOKENS, temperature=temperature, stop_ids=(eos,), speculative=speculative)

    tokens = sum(len(one.token_ids) for samples in plain.generate(prompts, params(0)) for one in samples)
    drafting.generate(prompts, params(drafts))
    report = drafting.speculation
    accepted = ", ".join(f"{100 * share:.0f} %" for share in report.acceptance)
    return compare(
        Comparison(
            f"batch {len(prompts)}, temperature {temperature:g}, {drafts} drafts: accepted {accepted};"
            f" {report.tokens_per_pass:.2f} tokens a pass",
            "tokens/s",
            tokens,
            "without drafts",
        ),
        lambda: drafting.generate(prompts, params(drafts)),
        lambda: plain.generate(prompts, params(0)),
        repetitions=5,
    )
