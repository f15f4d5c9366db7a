"""The micro-batches of a step, a function of the step's number alone.

Shape suffixes: B sequences, T tokens.
"""

from __future__ import annotations

import torch

from core_model.parallel.engine import MicroBatch
from pretrain.data.packing import PackedDataset, RowDataset, SampleDataset
from pretrain.data.prepare import PreparedCorpus
from pretrain.recipe import Recipe


class StepBatches:
    """Training data of one stage; `of(step)` gives the micro-batches, `tokens` how many tokens they train on."""

    def __init__(self, recipe: Recipe, corpus: PreparedCorpus, device: torch.device) -> None:
        data = recipe.data
        self.seed, self.device, self.data = recipe.seed, device, data
        self.main: SampleDataset = (
            RowDataset(corpus.long(data.sequence_length, "train"), data.sequence_length)
            if data.rows == "long"
            else PackedDataset(corpus.train, data.sequence_length)
        )
        self.replay = PackedDataset(corpus.train, data.base_length) if data.replay_sequences else None
        self.tokens = data.sequences_per_step * data.sequence_length + data.replay_sequences * data.base_length

    def of(self, step: int) -> list[MicroBatch]:
        data = self.data
        first = step * data.sequences_per_step
        batches = [
            self._take(self.main, start, data.micro_batch)
            for start in range(first, first + data.sequences_per_step, data.micro_batch)
        ]
        if self.replay is not None:
            batches.append(self._take(self.replay, step * data.replay_sequences, data.replay_sequences))
        return batches

    def _take(self, dataset: SampleDataset, first: int, count: int) -> MicroBatch:
        """Samples first .. first + count of the seeded order, [B, T + 1] cut into inputs and labels.

        Labels are given as tokens at their own positions, so the sample's last token only serves as a target and is
        appended as an input whose own target is none.
        """
        samples_BT1 = torch.stack([dataset.sample(number, self.seed) for number in range(first, first + count)])
        samples_BT1 = samples_BT1.to(self.device)
        return MicroBatch(input_ids=samples_BT1, labels=samples_BT1)
