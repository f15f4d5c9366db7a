"""What a batch of rollouts shows, in numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from rl.rewards import ScoredSample

# What TRL measures and we do not; its other numbers are ours again under other names, or count masked samples.
TRL_METRICS = ("entropy", "kl", "clip_ratio/region_mean", "num_tokens", "policy_loss")
OWN_METRICS = ("accuracy", "format", "truncated", "masked", "tokens", "reward/", "groups", "mismatch", "seconds")


def is_kept(name: str) -> bool:
    """Whether a metric that the trainer collected is logged."""
    return name in (*TRL_METRICS, "loss", "mtp_loss") or name.startswith(OWN_METRICS)


def rollout_metrics(samples: Sequence[ScoredSample], rewards_PG: Tensor) -> dict[str, float]:
    """The numbers of one batch; samples whose verdict does not count enter `masked` and nothing else.

    Args:
        samples: of this process.
        rewards_PG: of all processes, lengths paid, NaN where the verdict does not count.

    Returns:
        accuracy, accuracy/<family>, format, truncated (shares); tokens/mean, tokens/p90, tokens/correct;
        masked (share of all samples); reward/mean, reward/std; groups/flat (share of groups that teach nothing).
    """
    counted = [sample for sample in samples if sample.verdict.counts]
    found = {"masked": 1.0 - len(counted) / len(samples)}
    found |= _group_metrics(rewards_PG)
    if not counted:
        return found
    tokens = np.array([sample.tokens for sample in counted])
    correct = np.array([sample.correct for sample in counted])
    found |= {
        "accuracy": float(correct.mean()),
        "format": float(np.mean([sample.well_formed for sample in counted])),
        "truncated": float(np.mean([sample.truncated for sample in counted])),
        "tokens/mean": float(tokens.mean()),
        "tokens/p90": float(np.percentile(tokens, 90)),
    }
    if correct.any():
        found["tokens/correct"] = float(tokens[correct].mean())
    families: dict[str, list[bool]] = defaultdict(list)
    for sample in counted:
        families[sample.family].append(sample.correct)
    return found | {f"accuracy/{family}": float(np.mean(right)) for family, right in sorted(families.items())}


def _group_metrics(rewards_PG: Tensor) -> dict[str, float]:
    known = ~rewards_PG.isnan()
    if not known.any():
        return {}
    rewards = rewards_PG[known].double()
    lowest = rewards_PG.masked_fill(~known, float("inf")).amin(dim=1)
    highest = rewards_PG.masked_fill(~known, float("-inf")).amax(dim=1)
    return {
        "reward/mean": float(rewards.mean()),
        "reward/std": float(rewards.std(correction=0)),
        # A group without two different rewards has no advantage; one that is masked whole counts as such.
        "groups/flat": float(((highest - lowest) <= 1e-6).float().mean()),
    }
