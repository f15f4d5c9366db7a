"""Log-probabilities: of the rollouts, of the packed pass, of a plain forward, all the same; and their gradients."""

from __future__ import annotations

import pytest
import torch

from core_model.generation import Engine, SamplingParams
from rl.logprobs import completion_logprobs, draft_loss, pack_samples

PROMPTS = [[0, 40, 41, 42], [0, 50], [0, 60, 61, 62, 63, 64, 65]]


def padded(prompts, completions):
    """input_ids, attention_mask [B, T] as TRL pads them, prompts left, completions right; the completions' width."""
    left, right = max(map(len, prompts)), max(map(len, completions))
    ids, mask = [], []
    for prompt, completion in zip(prompts, completions, strict=True):
        before, after = left - len(prompt), right - len(completion)
        ids.append([2] * before + prompt + completion + [2] * after)
        mask.append([0] * before + [1] * (len(prompt) + len(completion)) + [0] * after)
    return torch.tensor(ids), torch.tensor(mask), right


def plain_logprobs(model, prompt, completion, temperature=1.0):
    """Log-probability of each completion token, from the logits of one unpadded forward."""
    logits = model(torch.tensor([prompt + completion])).logits[0] / temperature
    chosen = logits.log_softmax(-1)[torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1)]
    return chosen.gather(1, torch.tensor(completion)[:, None]).squeeze(1), chosen


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rollouts_and_trainer_agree(model, temperature):
    params = SamplingParams(
        max_new_tokens=30, temperature=temperature, n=4, seed=3, stop_ids=tuple(range(0, 300, 15)), logprobs=True
    )
    rolled = [one for group in Engine(model).generate(PROMPTS, params) for one in group]
    prompts = [prompt for prompt in PROMPTS for _ in range(4)]
    completions = [one.token_ids for one in rolled]
    assert len({len(ids) for ids in completions}) > 1
    ids, mask, width = padded(prompts, completions)
    with torch.no_grad():
        found, _, _, _ = completion_logprobs(model.train(), ids, mask, width, temperature)
    for row, one in zip(found, rolled, strict=True):
        count = len(one.token_ids)
        torch.testing.assert_close(row[:count], torch.tensor(one.logprobs), rtol=0, atol=1e-5)
        assert (row[count:] == 0).all()


def test_packed_equals_alone_gradients_too(model):
    completions = [[70, 71, 1], [80], [90, 91, 92, 93, 94]]
    weights = [0.7, -1.3, 0.4]
    ids, mask, width = padded(PROMPTS, completions)
    found, entropies, _, _ = completion_logprobs(model, ids, mask, width, 0.9)
    (found * torch.tensor(weights)[:, None]).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    total = torch.zeros(())
    for row, entropy, prompt, completion, weight in zip(found, entropies, PROMPTS, completions, weights, strict=True):
        alone, distribution = plain_logprobs(model, prompt, completion, 0.9)
        torch.testing.assert_close(row[: len(completion)], alone, rtol=0, atol=1e-5)
        expected = -(distribution.exp() * distribution).sum(-1)
        torch.testing.assert_close(entropy[: len(completion)], expected, rtol=0, atol=1e-5)
        total = total + weight * alone.sum()
    total.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            gradients[name], expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_sample_without_completion_tokens_adds_nothing(model):
    """A masked sample keeps its prompt and loses its completion."""
    ids, mask, width = padded(PROMPTS[:2], [[70, 71], [80, 81]])
    whole, _, _, _ = completion_logprobs(model, ids, mask, width, 1.0)
    mask[1, -width:] = 0
    found, _, _, _ = completion_logprobs(model, ids, mask, width, 1.0)
    torch.testing.assert_close(found[0], whole[0])
    assert found[1].tolist() == [0.0, 0.0]
    mask[:, -width:] = 0
    nothing, _, _, _ = completion_logprobs(model, ids, mask, width, 1.0)
    nothing.sum().backward()
    assert nothing.abs().sum() == 0


def test_samples_lie_end_to_end():
    ids, mask, width = padded([[0, 5], [0, 6, 7]], [[8], [9, 1]])
    packed = pack_samples(ids, mask, width)
    count = 2 + 1 + 3 + 2
    assert packed.input_ids.shape[1] % 256 == 0
    assert packed.input_ids[0, :count].tolist() == [0, 5, 8, 0, 6, 7, 9, 1]
    assert packed.position_ids[0, :count].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert packed.sampled[0].nonzero().squeeze(1).tolist() == [2, 6, 7]
    assert packed.real.sum() == count


def test_the_draft_loss_moves_the_drafts_alone(model):
    completions = [[70, 71, 72, 1], [80, 81], [90, 91, 92]]
    ids, mask, width = padded(PROMPTS, completions)
    _, _, packed, backbone = completion_logprobs(model, ids, mask, width, 1.0)
    loss = draft_loss(model, packed, backbone)
    loss.backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    draft_layer = f"model.layers.{model.config.num_hidden_layers}."
    assert moved
    assert all(name.startswith(draft_layer) for name in moved)
    # Depth 1 from position i predicts token i + 2: of each completion, all tokens whose i is inside the sample.
    model.loss_weights.mtp = 1.0
    total = torch.zeros(())
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        row = torch.tensor([prompt + completion])
        labels = row.clone()
        labels[0, : len(prompt)] = -100
        total = total + model(row, labels=labels, num_items_in_batch=1.0).mtp_losses[0]
    torch.testing.assert_close(loss.detach(), total / sum(map(len, completions)), rtol=1e-5, atol=1e-5)
