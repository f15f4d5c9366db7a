"""What vLLM makes of an exported folder; run by exported_folders.py in vLLM's own environment.

    python vllm_side.py JOB ANSWERS

JOB is a JSON file: `folder`, `prompts` (token ids) or `conversations` (messages, for vLLM's own rendering of the
folder's chat template), `new_tokens`, `stop` (token ids), `draft` (by the folder's MTP module, one token at a time).
ANSWERS becomes one: of each the `prompt`'s ids, the greedy `tokens` and their `logprobs`; `drafted` and `accepted`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# vLLM knows MLA for V3's own latent (512 and 64 numbers); nano's goes through plain attention.
SIZES_OF_MLA = (512, 64)
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


def load(job: dict[str, Any]) -> Any:
    config = json.loads((Path(job["folder"]) / "config.json").read_text())
    os.environ |= SETTINGS
    os.environ["VLLM_MLA_DISABLE"] = str(int((config["kv_lora_rank"], config["qk_rope_head_dim"]) != SIZES_OF_MLA))
    from vllm import LLM  # reads the environment

    return LLM(
        job["folder"],
        dtype="float32",
        max_model_len=job["context"],
        enforce_eager=True,
        skip_tokenizer_init="prompts" in job,
        # vllm-cpu 0.32's own operations, which it takes uncompiled, give other tokens for some sizes.
        compilation_config={"custom_ops": ["none"]},
        disable_log_stats=False,  # which count the drafts
        speculative_config={"method": "mtp", "num_speculative_tokens": 1} if job["draft"] else None,
    )


def main(job_file: str, answers_file: str) -> None:
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    model = load(job)
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=0,
        max_tokens=job["new_tokens"],
        stop_token_ids=job["stop"],
        ignore_eos=True,
        logprobs=1,
        detokenize="conversations" in job,
    )
    if "conversations" in job:
        found = model.chat(job["conversations"], params)
    else:
        found = model.generate([{"prompt_token_ids": prompt} for prompt in job["prompts"]], params)
    counted = {metric.name: metric.value for metric in model.get_metrics() if hasattr(metric, "value")}
    answers = [
        {
            "prompt": list(one.prompt_token_ids),
            "tokens": list(one.outputs[0].token_ids),
            "logprobs": [
                at[token].logprob for token, at in zip(one.outputs[0].token_ids, one.outputs[0].logprobs, strict=True)
            ],
        }
        for one in found
    ]
    drafts = [counted.get(f"vllm:spec_decode_num_{kind}_tokens", 0) for kind in ("draft", "accepted")]
    Path(answers_file).write_text(json.dumps({"answers": answers, "drafted": drafts[0], "accepted": drafts[1]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
