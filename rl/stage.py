"""The rl stage: sample, verify, pay, update; a model folder at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eval.judge.shared import use_judge
from recipes.run import Run
from rl.preflight import check_rewards, check_room
from rl.recipe import Recipe

if TYPE_CHECKING:
    from rl.trainer import Policy

LAST_STEPS = 10  # the summary's means are taken over the last so many log lines
SUMMARY = ("accuracy", "format", "truncated", "tokens/mean", "reward/mean", "masked")


def run_stage(recipe: Recipe, run: Run) -> dict[str, Any]:
    """Reinforce as the recipe says; continues from the newest checkpoint where a killed run stopped, to the same model.

    Writes `model/` (DeepSeek's format, tokenizer included) and, every `trainer.save_steps`, `checkpoints/`.

    Returns:
        The summary: steps, and the means of the last steps' rollouts.

    Raises:
        InputError: the model's folder or the recipe does not fit, or the pre-flight found that rewards do not fire.
    """
    from recipes.checkpoints import latest_checkpoint
    from rl.problems import ProblemSequence
    from rl.trainer import V3GRPOTrainer
    from rl.trainer_config import build_config, prompts_needed
    from sft.stage import save_model

    use_judge(recipe.judge, needed="code" in recipe.problems.families)
    policy = load_policy(recipe)
    config = build_config(recipe.trainer, seed=recipe.seed, folder=run.path)
    problems = ProblemSequence(recipe.problems.families, recipe.problems.start, recipe.seed)
    count, reflect = prompts_needed(config), recipe.problems.reflect
    if latest_checkpoint(run.checkpoints) is None:
        where, longest = run.path / "recipe.yaml", int(config.max_completion_length or 0)
        check_rewards(policy.rewards, problems, recipe.preflight.problems, longest, where)
        check_room(policy, [problems.prompt(i, reflect) for i in range(count)], longest, where)
    trainer = V3GRPOTrainer(policy, config, run, problems, prompts=count, reflect=reflect, bias_speed=recipe.bias_speed)
    trainer.train_or_resume()
    save_model(policy.model, policy.rollouts.tokenizer, run.path / "model")
    return {"steps": config.max_steps} | _summary(run)


def load_policy(recipe: Recipe) -> Policy:
    """The model, the engine that samples from it, and what its samples are paid."""
    import torch

    from core_model import V3ForCausalLM
    from core_model.generation import Engine
    from core_model.tokenizer import load_tokenizer
    from rl.rewards import SampleRewards
    from rl.rollouts import Rollouts
    from rl.trainer import Policy

    tokenizer = load_tokenizer(recipe.init_from)
    model, reference = V3ForCausalLM.from_pretrained(recipe.init_from), None
    if recipe.trainer.get("beta"):
        reference = V3ForCausalLM.from_pretrained(recipe.init_from)
    for one in (model, reference):
        if one is not None:
            one.compute_dtype = getattr(torch, recipe.compute_dtype)
            one.recompute = recipe.recompute
    dtype = getattr(torch, recipe.rollout.dtype or recipe.compute_dtype)
    engine = Engine(model, tokenizer, max_batch=recipe.rollout.max_batch, dtype=dtype)
    return Policy(
        model=model,
        rollouts=Rollouts(engine, tokenizer, recipe.seed),
        rewards=SampleRewards(tokenizer, recipe.rewards),
        length=recipe.length,
        reference=reference,
        mtp_weight=recipe.mtp_weight,
    )


def _summary(run: Run) -> dict[str, float]:
    """Means over the last log lines; a batch without the number is left out."""
    lines = run.metrics()[-LAST_STEPS:]
    found = {}
    for name in SUMMARY:
        values = [line[name] for line in lines if line.get(name) is not None]
        if values:
            found[name] = round(sum(values) / len(values), 6)
    return found
