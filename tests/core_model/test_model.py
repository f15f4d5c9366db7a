"""The whole model: losses and their gradients, precision, identity towards transformers and TRL."""

from __future__ import annotations

import pytest
import torch
from reference import YARN_TINY, random_model, random_tokens, relative_difference, shared_model, tiny_config
from transformers import AutoConfig, AutoModelForCausalLM

from core_model.config import V3Config
from core_model.loss import IGNORE
from core_model.model import V3ForCausalLM
from core_model.moe.balance import gates, sequence_balance_loss

LOSSES_ON = {"mtp": 0.3, "balance": 0.01}


def trained_model(**overrides) -> V3ForCausalLM:
    model = random_model(tiny_config(**overrides)).train()
    model.loss_weights.mtp, model.loss_weights.balance = LOSSES_ON["mtp"], LOSSES_ON["balance"]
    return model


def gradients(model: V3ForCausalLM) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_initialisation_is_normal_with_the_given_deviation_and_the_same_for_a_seed():
    config = tiny_config(hidden_size=64)
    first, second, other = (V3ForCausalLM(config).initialize(0.006, seed) for seed in (3, 3, 4))
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        if a.dim() == 1:
            assert torch.equal(a, torch.ones_like(a)), name
        else:
            assert not torch.equal(a, c), name
            assert a.std().item() == pytest.approx(0.006, rel=0.25), name
    for _, gate in gates(first):
        assert gate.e_score_correction_bias.abs().max() == 0


def test_the_loss_is_the_sum_of_its_weighted_parts():
    model = trained_model(num_nextn_predict_layers=2)
    tokens = random_tokens(2, 9)
    out = model(tokens, labels=tokens)
    parts = out.lm_loss + 0.3 * torch.stack(out.mtp_losses).mean() + 0.01 * out.balance_loss
    torch.testing.assert_close(out.loss, parts)
    with torch.no_grad():
        logits = model(tokens).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(out.lm_loss, expected)


def test_the_balance_loss_adds_every_routers_mtp_included():
    model = trained_model()
    tokens = random_tokens(2, 9)
    with torch.no_grad():
        backbone = model.model(tokens)
        routings = [*backbone.routings, *(routing for _, routing in model.mtp_states(tokens, backbone))]
        expected = sum(sequence_balance_loss(r.scores_TE, 2, 2) for r in routings)
        out = model.losses(tokens, tokens, backbone)
    assert len(routings) == 3
    torch.testing.assert_close(out.balance_loss, expected)


def test_a_normaliser_from_outside_replaces_the_count_in_every_head():
    model = trained_model()
    model.loss_weights.balance = 0.0
    tokens = random_tokens(2, 9)
    own, given = model(tokens, labels=tokens), model(tokens, labels=tokens, num_items_in_batch=4)
    torch.testing.assert_close(given.lm_loss * 4, own.lm_loss * 16)
    torch.testing.assert_close(given.mtp_losses[0] * 4, own.mtp_losses[0] * 16)


def test_every_parameter_gets_a_gradient():
    model = trained_model(num_nextn_predict_layers=2)
    tokens = random_tokens(4, 16)
    model(tokens, labels=tokens).loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert silent == []


def test_labels_all_ignored_give_a_zero_loss_and_no_nan():
    model = trained_model()
    model.loss_weights.balance = 0.0
    tokens = random_tokens(2, 5)
    out = model(tokens, labels=torch.full_like(tokens, IGNORE))
    out.loss.backward()
    assert out.loss.item() == 0
    assert all(grad.isfinite().all() for grad in gradients(model).values())


def test_gradients_of_packed_documents_are_the_sum_of_each_alone():
    model = trained_model(rope_scaling=YARN_TINY)
    model.loss_weights.balance = 0.0  # a mean over rows: not additive over documents
    tokens, lengths = random_tokens(1, 14), [6, 1, 7]
    positions = torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0)
    model(tokens, position_ids=positions, labels=tokens, num_items_in_batch=1).loss.backward()
    packed = gradients(model)
    for part in tokens.split(lengths, dim=1):
        model(part, labels=part, num_items_in_batch=1).loss.backward()
    for name, grad in gradients(model).items():
        assert relative_difference(packed[name], grad) < 1e-4, name


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_neither_loss_nor_gradients(side):
    model = trained_model()
    model.loss_weights.balance = 0.0
    tokens = random_tokens(2, 9)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, slice(4) if side == "left" else slice(5, None)] = 0
    labels = tokens.masked_fill(mask == 0, IGNORE)
    padded = model(tokens, attention_mask=mask, labels=labels, num_items_in_batch=1)
    padded.loss.backward()
    with_padding = gradients(model)
    rows = [tokens[:1], tokens[1:, mask[1].bool()]]
    losses = []
    for row in rows:
        out = model(row, labels=row, num_items_in_batch=1)
        out.loss.backward()
        losses.append(out.loss.detach())
    torch.testing.assert_close(padded.loss.detach(), sum(losses))
    for name, grad in gradients(model).items():
        assert relative_difference(with_padding[name], grad) < 1e-4, name


def test_bf16_compute_over_fp32_masters_stays_near_fp32():
    model = trained_model()
    tokens = random_tokens(8, 32)
    exact = model(tokens, labels=tokens)
    exact.loss.backward()
    reference = gradients(model)
    model.compute_dtype = torch.bfloat16
    rounded = model(tokens, labels=tokens)
    rounded.loss.backward()
    assert rounded.loss.dtype == torch.float32
    for a, b in ((rounded.lm_loss, exact.lm_loss), (rounded.mtp_losses[0], exact.mtp_losses[0])):
        assert float(a) == pytest.approx(float(b), rel=1e-2)
    assert float(rounded.balance_loss) == pytest.approx(float(exact.balance_loss), rel=2e-2)
    found = gradients(model)
    assert {grad.dtype for grad in found.values()} == {torch.float32}
    flat = [torch.cat([g[name].flatten() for name in reference]) for g in (found, reference)]
    assert float(torch.nn.functional.cosine_similarity(*flat, dim=0)) > 0.99
    with torch.no_grad():
        assert model.model(tokens).last_hidden_state.dtype == torch.bfloat16
        assert model(tokens).logits.dtype == torch.float32


def test_autocast_trains_with_fp32_gradients():
    model = trained_model()
    tokens = random_tokens(4, 16)
    exact = model(tokens, labels=tokens).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(tokens, labels=tokens).loss
    loss.backward()
    assert loss.item() == pytest.approx(exact, rel=2e-2)
    assert {grad.dtype for grad in gradients(model).values()} == {torch.float32}


def test_a_cast_of_the_whole_model_keeps_frequencies_and_biases_exact():
    model = random_model(tiny_config())
    kept = {name: b.clone() for name, b in model.named_buffers() if name.endswith(("inv_freq", "correction_bias"))}
    model.to(torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16 and len(kept) == 4
    for name, buffer in model.named_buffers():
        if name in kept:
            assert torch.equal(buffer, kept[name]), name


def test_logits_to_keep_are_the_last_or_the_chosen():
    model, tokens = shared_model(), random_tokens(2, 6)
    with torch.no_grad():
        whole = model(tokens).logits
        torch.testing.assert_close(model(tokens, logits_to_keep=1).logits, whole[:, -1:])
        torch.testing.assert_close(model(tokens, logits_to_keep=torch.tensor([0, 4])).logits, whole[:, [0, 4]])


def test_embeddings_may_be_passed_instead_of_tokens():
    model, tokens = shared_model(), random_tokens(2, 6)
    with torch.no_grad():
        embedded = model(inputs_embeds=model.get_input_embeddings()(tokens)).logits
        assert torch.equal(embedded, model(tokens).logits)
    with pytest.raises(ValueError, match="one of them"):
        model(tokens, inputs_embeds=model.get_input_embeddings()(tokens))
    with pytest.raises(ValueError, match="one of them"):
        model()
    with pytest.raises(ValueError, match="input_ids"):
        model(inputs_embeds=model.get_input_embeddings()(tokens), labels=tokens)


def test_labels_switch_the_cache_off_so_that_packing_keeps_its_isolation():
    model, tokens = trained_model(), random_tokens(1, 8)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])
    plain = model(tokens, position_ids=positions, labels=tokens)
    cached = model(tokens, position_ids=positions, labels=tokens, use_cache=True)
    torch.testing.assert_close(plain.loss, cached.loss)
    assert cached.past_key_values is None


def test_a_dense_model_has_no_router():
    model = random_model(tiny_config(n_routed_experts=None)).train()
    model.loss_weights.mtp, model.loss_weights.balance = 0.3, 0.01
    tokens = random_tokens(1, 6)
    out = model(tokens, labels=tokens)
    out.loss.backward()
    assert out.balance_loss is None and list(gates(model)) == []


def test_transformers_and_trl_get_our_class_under_a_name_of_its_own():
    config = tiny_config()
    model = AutoModelForCausalLM.from_config(config)
    assert type(model) is V3ForCausalLM and model.config.model_type == "trivium_v3"
    assert type(AutoConfig.for_model("trivium_v3")) is V3Config


def test_the_interface_trl_needs():
    """trl/trainer/utils.py calls the backbone and the head directly."""
    model, tokens = shared_model(), random_tokens(2, 6)
    backbone = getattr(model, model.base_model_prefix)
    assert model.base_model is backbone and model.get_output_embeddings() is model.lm_head
    with torch.no_grad():
        out = backbone(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
        assert torch.equal(model.lm_head(out.last_hidden_state), model(tokens).logits)
    assert out.past_key_values is None and model.lm_head.bias is None
