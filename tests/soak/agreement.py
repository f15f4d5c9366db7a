"""How far the engine agrees with itself and with a training forward, on the reasoner of `make nano`.

    python tests/soak/agreement.py [RUN] [--count 25]

Held-out problems, answered one by one and in a batch: the tokens that differ. Long samples: the largest difference of
a log-probability from a training forward in fp32, and of both from one with its products in fp64. The tables go into
docs/generation.md.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch

from core_model import V3ForCausalLM
from core_model.generation import Engine, SamplingParams
from core_model.generation.chat import find_model
from core_model.tokenizer import EOS, load_tokenizer, render_prompt, special_id
from core_model.tokenizer.prompts import REFLECT_SYSTEM_PROMPT
from eval.tasks import problems

FAMILIES = ("chain_sum", "count_bits", "base_conversion", "code")
LENGTHS = (160, 500, 1500)  # tokens
CLOSE = 1e-5


def alone_and_together(
    model: V3ForCausalLM, prompts: list[list[int]], params: SamplingParams, dtype: torch.dtype
) -> str:
    together = Engine(model, max_batch=64, dtype=dtype).generate(prompts, params)
    alone = Engine(model, max_batch=1, dtype=dtype)
    tokens = differ = 0
    for prompt, [other] in zip(prompts, together, strict=True):
        [[one]] = alone.generate([prompt], params)
        tokens += len(one.token_ids)
        differ += one.token_ids != other.token_ids
    name = str(dtype).removeprefix("torch.")
    return f"| {name} | {params.temperature:g} | {len(prompts)} | {tokens:,} | {differ} |"


@torch.no_grad()
def logprob_differences(model: V3ForCausalLM, exact: V3ForCausalLM, prompt: list[int], count: int) -> str:
    """One sample of `count` tokens at temperature 1, its end ignored."""
    [[sample]] = Engine(model).generate([prompt], SamplingParams(count, seed=1, logprobs=True))
    ids = torch.tensor([prompt + sample.token_ids])
    made = torch.tensor(sample.token_ids)[:, None]

    def of(forward: V3ForCausalLM) -> torch.Tensor:
        hidden = forward.model(ids).last_hidden_state[0, len(prompt) - 1 : -1]
        return forward.lm_head(hidden).double().log_softmax(-1).gather(1, made).squeeze(1)

    ours, plain, true = torch.tensor(sample.logprobs, dtype=torch.float64), of(model), of(exact)
    worst = (ours - plain).abs()
    against = f"{(ours - true).abs().max():.1e} | {(plain - true).abs().max():.1e}"
    return f"| {count:,} | {worst.max():.1e} | {int((worst > CLOSE).sum())} | {against} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/nano/sft_reasoning"))
    parser.add_argument("--count", type=int, default=25, help="problems a family (default 25)")
    options = parser.parse_args()
    folder = find_model(options.run)
    model, tokenizer = V3ForCausalLM.from_pretrained(folder).eval(), load_tokenizer(folder)
    system = {"role": "system", "content": REFLECT_SYSTEM_PROMPT}
    prompts = [
        render_prompt(tokenizer, [system, *(message.model_dump(exclude_none=True) for message in problem.messages)])
        for family in FAMILIES
        for problem in problems(family, "test", options.count)
    ]
    print("| dtype | temperature | samples | tokens | samples that differ |\n| --- | --- | --- | --- | --- |")
    for dtype in (torch.float32, torch.bfloat16):
        for temperature in (0.0, 1.0):
            params = SamplingParams(256, temperature=temperature, stop_ids=(special_id(tokenizer, EOS),))
            print(alone_and_together(model, prompts, params, dtype), flush=True)
    exact = copy.deepcopy(model).double()
    columns = (
        "tokens",
        "from a training forward",
        "above 1e-5",
        "engine from fp64 products",
        "training forward from these",
    )
    print(f"\n| {' | '.join(columns)} |")
    print("| --- | --- | --- | --- | --- |")
    for count in LENGTHS:
        print(logprob_differences(model, exact, prompts[0], count), flush=True)


if __name__ == "__main__":
    main()
