"""Multi-token prediction: what each depth is fed, what it must predict, and that nothing leaks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from reference import random_model, random_tokens, shared_model, tiny_config

import core_model.model as model_module
from core_model.loss import IGNORE
from core_model.model import V3ForCausalLM
from core_model.mtp import shift_left, targets

X = IGNORE


def test_shift_left():
    x = torch.tensor([[1, 2, 3]])
    assert shift_left(x, 1, 0).tolist() == [[2, 3, 0]]
    assert shift_left(x, 3, 9).tolist() == [[9, 9, 9]]
    assert shift_left(x, 5, 9).tolist() == [[9, 9, 9]]


def test_depth_k_predicts_the_token_k_plus_1_to_the_right():
    labels = torch.tensor([[10, 11, 12, 13]])
    assert targets(labels, 0, None, X).tolist() == [[11, 12, 13, X]]
    assert targets(labels, 1, None, X).tolist() == [[12, 13, X, X]]
    assert targets(labels, 2, None, X).tolist() == [[13, X, X, X]]


def test_targets_stop_at_document_boundaries_and_padding():
    labels = torch.tensor([[10, 11, 12, 20, 21, 99], [30, 31, 32, 33, X, 35]])
    documents = torch.tensor([[0, 0, 0, 1, 1, -1], [2, 2, 2, 2, 2, 2]])
    assert targets(labels, 0, documents, X).tolist() == [[11, 12, X, 21, X, X], [31, 32, 33, X, 35, X]]
    assert targets(labels, 1, documents, X).tolist() == [[12, X, X, X, X, X], [32, 33, X, 35, X, X]]
    assert targets(labels, 2, documents, X).tolist() == [[X, X, X, X, X, X], [33, X, 35, X, X, X]]


def capture_inputs(model: V3ForCausalLM) -> list[dict[str, torch.Tensor]]:
    """What each MTP layer's enorm, hnorm and eh_proj receive and its shared_head.norm gives, at the next forward."""
    seen: list[dict[str, torch.Tensor]] = [{} for _ in model.model.mtp_layers()]
    for depth, layer in enumerate(model.model.mtp_layers()):
        for name in ("enorm", "hnorm", "eh_proj"):
            getattr(layer, name).register_forward_pre_hook(
                lambda m, args, depth=depth, name=name: seen[depth].__setitem__(name, args[0])
            )
        layer.shared_head.norm.register_forward_hook(
            lambda m, args, out, depth=depth: seen[depth].__setitem__("out", out)
        )
    return seen


def test_each_depth_is_fed_the_normed_state_before_it_and_the_embedding_of_the_next_token():
    model = random_model(tiny_config(num_nextn_predict_layers=2))
    seen = capture_inputs(model)
    tokens = random_tokens(2, 7)
    with torch.no_grad():
        backbone = model.model(tokens)
        states = [state for state, _ in model.mtp_states(tokens, backbone)]
    torch.testing.assert_close(seen[0]["hnorm"], backbone.last_hidden_state)  # after the model's final norm
    torch.testing.assert_close(seen[1]["hnorm"], seen[0]["out"])  # after shared_head.norm of the depth before
    for depth in (1, 2):
        embedding = model.model.embed_tokens(tokens[:, depth:])
        torch.testing.assert_close(seen[depth - 1]["enorm"][:, :-depth], embedding)
        torch.testing.assert_close(states[depth - 1], seen[depth - 1]["out"])


def test_the_projection_takes_the_embedding_first_then_the_hidden_state():
    """The released weights' order, the reverse of Eq. 21."""
    model = random_model(tiny_config())
    (layer,) = model.model.mtp_layers()
    (seen,) = capture_inputs(model)
    tokens = random_tokens(1, 5)
    with torch.no_grad():
        list(model.mtp_states(tokens, model.model(tokens)))
        torch.testing.assert_close(seen["eh_proj"][..., :32], layer.enorm(seen["enorm"]))
        torch.testing.assert_close(seen["eh_proj"][..., 32:], layer.hnorm(seen["hnorm"]))


def test_losses_are_the_cross_entropies_of_each_depth_over_the_main_heads_count():
    """Eq. 24 divides by T at every depth, not by the T - k targets there are; Eq. 25 averages over depths."""
    model = random_model(tiny_config(num_nextn_predict_layers=2))
    model.loss_weights.mtp = 0.3
    tokens, labels = random_tokens(2, 8), random_tokens(2, 8)
    labels[0, 3] = IGNORE
    with torch.no_grad():
        backbone = model.model(tokens)
        out = model.losses(tokens, labels, backbone)
        states = [backbone.last_hidden_state, *(state for state, _ in model.mtp_states(tokens, backbone))]
        sums = [
            F.cross_entropy(
                model.lm_head(state[:, : 7 - depth]).flatten(0, 1),
                labels[:, depth + 1 :].flatten(),
                ignore_index=IGNORE,
                reduction="sum",
            )
            for depth, state in enumerate(states)
        ]
    count = 13  # of 2 x 7 shifted labels one is ignored
    torch.testing.assert_close(out.lm_loss, sums[0] / count)
    torch.testing.assert_close(torch.stack(out.mtp_losses), torch.stack(sums[1:]) / count)
    torch.testing.assert_close(out.loss, out.lm_loss + 0.3 * torch.stack(out.mtp_losses).mean())


def test_mtp_costs_nothing_until_a_recipe_turns_it_on():
    model = shared_model()
    tokens = random_tokens(1, 6)
    with torch.no_grad():
        out = model(tokens, labels=tokens)
    assert out.mtp_losses == () and torch.equal(out.loss, out.lm_loss)


def test_a_row_shorter_than_the_depth_has_a_loss_of_zero_there():
    model = random_model(tiny_config(num_nextn_predict_layers=2))
    model.loss_weights.mtp = 1.0
    tokens = random_tokens(3, 2)
    with torch.no_grad():
        out = model(tokens, labels=tokens)
    assert out.lm_loss > 0 and [float(loss) for loss in out.mtp_losses] == [0.0, 0.0]


def test_packed_documents_have_the_summed_losses_of_each_alone():
    model = random_model(tiny_config(num_nextn_predict_layers=2))
    model.loss_weights.mtp = 1.0
    tokens, lengths = random_tokens(1, 12), [5, 1, 6]
    positions = torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0)
    with torch.no_grad():
        packed = model(tokens, position_ids=positions, labels=tokens, num_items_in_batch=1)
        alone = [model(part, labels=part, num_items_in_batch=1) for part in tokens.split(lengths, dim=1)]
    torch.testing.assert_close(packed.lm_loss, sum(out.lm_loss for out in alone))
    for depth in range(2):
        torch.testing.assert_close(packed.mtp_losses[depth], sum(out.mtp_losses[depth] for out in alone))


VOCABULARY = 16


def train_on_noise(steps: int, packed: bool) -> list[float]:
    """Mean losses (main, depth 1, depth 2) of the last steps of training on independent random tokens."""
    sizes = {"vocab_size": VOCABULARY, "num_hidden_layers": 1, "first_k_dense_replace": 1}
    model = V3ForCausalLM(tiny_config(**sizes, num_nextn_predict_layers=2)).initialize(0.05, 0).train()
    model.loss_weights.mtp = 1.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    positions = torch.arange(24).remainder(8).expand(8, -1) if packed else None
    last = []
    for step in range(steps):
        tokens = random_tokens(8, 24, vocabulary=VOCABULARY, seed=1000 + step)
        out = model(tokens, labels=tokens, position_ids=positions)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        if step >= steps - 20:
            last.append([float(out.lm_loss), *(float(loss) for loss in out.mtp_losses)])
    return [sum(column) / len(column) for column in zip(*last, strict=True)]


@pytest.mark.parametrize("packed", [False, True])
def test_on_random_tokens_every_head_stays_at_ln_v(packed):
    # Each depth divides its sum by the main head's count: with n tokens a document, (n - 1 - k) / (n - 1) of ln V.
    n = 8 if packed else 24
    expected = [math.log(VOCABULARY) * (n - 1 - depth) / (n - 1) for depth in range(3)]
    for loss, floor in zip(train_on_noise(100, packed), expected, strict=True):
        assert floor * 0.98 < loss < floor * 1.08


def test_a_head_fed_the_token_it_must_predict_falls_below_ln_v(monkeypatch):
    """The classic leak, put in on purpose: the test above would catch it."""
    monkeypatch.setattr(model_module, "shift_left", lambda x, by, fill: shift_left(x, by + 1, fill))
    main, first, _ = train_on_noise(100, packed=False)
    assert main > math.log(VOCABULARY) * 0.98
    assert first < math.log(VOCABULARY) * 0.5
