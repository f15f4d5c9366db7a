"""MLA: expanded against a plain reference, absorbed against expanded, packed against alone, the latent cache."""

from __future__ import annotations

import pytest
import torch
from reference import (
    YARN_TINY,
    random_model,
    random_tokens,
    reference_attention,
    relative_difference,
    shared_model,
    tiny_config,
)

from core_model.attention import ABSORBED_QUERIES
from core_model.attention_kernels import CPU_BF16_LENGTH, scaled_dot_product
from core_model.cache import LatentCache
from core_model.config import V3Config

CLOSE = 1e-5


def logits(model, tokens, **kwargs):
    with torch.no_grad():
        return model(tokens, **kwargs).logits


def decode(model, tokens: torch.Tensor, steps: list[int], cache: LatentCache) -> torch.Tensor:
    """Logits of a forward in pieces of the given lengths through a latent cache."""
    parts, start = [], 0
    for step in steps:
        positions = torch.arange(start, start + step).expand(len(tokens), -1)
        cache.begin(0, positions)
        piece = tokens[:, start : start + step]
        parts.append(logits(model, piece, position_ids=positions, past_key_values=cache))
        start += step
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("value_width", [4, 12, 20])
@pytest.mark.parametrize("masked", [False, True])
def test_the_kernel_seam_equals_plain_attention_whatever_the_value_width(value_width, masked):
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 2, 6, 3, 12, generator=generator)
    v = torch.randn(2, 6, 3, value_width, generator=generator)
    allowed = torch.ones(6, 6).tril().bool().expand(2, 6, 6).clone()
    if masked:
        allowed[0, :, 1] = False
        allowed[0, 1, 1] = True
    out = scaled_dot_product(q, k, v, 0.3, allowed[:, None] if masked else None)
    torch.testing.assert_close(out, reference_attention(q, k, v, 0.3, allowed), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [5, CPU_BF16_LENGTH])
def test_the_kernel_seam_keeps_bf16_in_and_out(length):
    q, k, v = torch.randn(3, 1, length, 1, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    out = scaled_dot_product(q, k, v, 0.3, None)
    allowed = torch.ones(1, length, length).tril().bool()
    expected = reference_attention(q.float(), k.float(), v.float(), 0.3, allowed)
    assert out.dtype == torch.bfloat16 and relative_difference(out.float(), expected) < 2e-2


@pytest.mark.parametrize("v_head_dim", [4, 24])
def test_a_model_runs_with_values_narrower_or_wider_than_keys(v_head_dim):
    model = shared_model(v_head_dim=v_head_dim)
    tokens = random_tokens(1, 6)
    whole = logits(model, tokens)
    cache = LatentCache(model.config, 1, 6, torch.float32)
    assert relative_difference(decode(model, tokens, [1] * 6, cache), whole) < CLOSE


@pytest.mark.parametrize("steps", [[1] * 11, [6] + [1] * 5, [4, 3, 1, 2, 1], [11]])
@pytest.mark.parametrize("q_lora_rank", [16, None])
def test_decoding_through_the_latent_cache_equals_one_forward(steps, q_lora_rank):
    model = random_model(tiny_config(q_lora_rank=q_lora_rank, rope_scaling=YARN_TINY))
    tokens = random_tokens(3, 11)
    cache = LatentCache(model.config, 3, 16, torch.float32)
    assert relative_difference(decode(model, tokens, steps, cache), logits(model, tokens)) < CLOSE


def test_rows_of_different_lengths_decode_together():
    model = shared_model()
    lengths, rows = [3, 7, 5], random_tokens(3, 8)
    cache = LatentCache(model.config, 3, 8, torch.float32)
    for row, length in enumerate(lengths):
        positions = torch.arange(length).unsqueeze(0)
        cache.begin(row, positions)
        logits(model, rows[row : row + 1, :length], position_ids=positions, past_key_values=cache)
    at = torch.tensor(lengths).unsqueeze(1)
    cache.begin(0, at)
    step = logits(model, rows.gather(1, at), position_ids=at, past_key_values=cache)
    for row, length in enumerate(lengths):
        alone = logits(model, rows[row : row + 1, : length + 1])[:, -1]
        assert relative_difference(step[row : row + 1, 0], alone) < CLOSE


def test_a_row_reused_sees_nothing_of_its_last_occupant_and_moves_keep_content():
    model = shared_model()
    old, new = random_tokens(1, 10, seed=1), random_tokens(1, 6, seed=2)
    cache = LatentCache(model.config, 2, 10, torch.float32)
    decode(model, old, [10], cache)
    again = decode(model, new, [2] + [1] * 3, cache)
    assert relative_difference(again, logits(model, new)[:, :5]) < CLOSE
    cache.move(0, 1)
    position = torch.tensor([[5]])
    cache.begin(1, position)
    last = logits(model, new[:, 5:], position_ids=position, past_key_values=cache)
    assert relative_difference(last[:, 0], logits(model, new)[:, 5]) < CLOSE


def test_the_cache_holds_576_numbers_a_token_and_layer_at_v3s_sizes():
    config = V3Config.preset("671b")
    cache = LatentCache(config, 1, 3, torch.bfloat16)
    assert cache.buffer_LBSC.shape == (61, 1, 3, 576)
    assert cache.nbytes == 3 * 70272


def test_the_cache_holds_the_normed_latent_and_the_roped_key():
    model = shared_model()
    seen = {}
    attention = model.model.layers[0].self_attn
    hooks = [
        attention.kv_a_layernorm.register_forward_hook(lambda m, i, out: seen.update(latent=out)),
        attention.kv_a_proj_with_mqa.register_forward_hook(lambda m, i, out: seen.update(raw=out)),
    ]
    cache = LatentCache(model.config, 1, 4, torch.float32)
    decode(model, random_tokens(1, 4), [4], cache)
    for hook in hooks:
        hook.remove()
    latent, key = cache.buffer_LBSC[0].split([12, 4], dim=-1)
    raw_key = seen["raw"][..., 12:]
    assert torch.equal(latent, seen["latent"])
    torch.testing.assert_close(key[:, 0], raw_key[:, 0])
    assert (key[:, 1:] - raw_key[:, 1:]).abs().max() > 1e-3
    torch.testing.assert_close(key.norm(dim=-1), raw_key.norm(dim=-1))


def test_packed_documents_equal_each_alone():
    model = shared_model()
    lengths = [[4, 1, 6], [11], [2, 9]]
    tokens = random_tokens(3, 11)
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    packed = logits(model, tokens, position_ids=positions)
    for row, parts in enumerate(lengths):
        start = 0
        for n in parts:
            alone = logits(model, tokens[row : row + 1, start : start + n])
            assert relative_difference(packed[row : row + 1, start : start + n], alone) < CLOSE
            start += n


def test_changing_one_document_leaves_the_others_alone():
    model = shared_model()
    tokens = random_tokens(1, 12)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 2]])
    changed = tokens.clone()
    changed[0, 4:9] = (changed[0, 4:9] + 1) % 48
    before, after = (logits(model, x, position_ids=positions) for x in (tokens, changed))
    # Other tokens go to other experts, and products of other sizes round otherwise: a unit in the last place.
    torch.testing.assert_close(before[:, :4], after[:, :4], rtol=0, atol=1e-5)
    torch.testing.assert_close(before[:, 9:], after[:, 9:], rtol=0, atol=1e-5)
    assert (before[:, 4:9] - after[:, 4:9]).abs().max() > 1e-2


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(side, cached):
    model = shared_model()
    lengths, tokens = [4, 9, 1], random_tokens(3, 9)
    mask = torch.zeros(3, 9, dtype=torch.long)
    for row, n in enumerate(lengths):
        mask[row, slice(9 - n, None) if side == "left" else slice(n)] = 1
    padded = logits(model, tokens, attention_mask=mask, use_cache=cached)
    assert padded.isfinite().all()
    for row in range(3):
        real = mask[row].bool()
        alone = logits(model, tokens[row : row + 1, real])
        assert relative_difference(padded[row : row + 1, real], alone) < CLOSE


def test_the_absorbed_path_makes_no_tensor_per_head_and_position(monkeypatch):
    """The point of absorbing: a decode step's largest activation grows with S * (C + R), not S * heads * width."""
    model = shared_model(num_attention_heads=8, num_key_value_heads=8, kv_lora_rank=8, v_head_dim=16)
    attention = model.model.layers[0].self_attn
    calls, expanded = [], attention.expanded
    monkeypatch.setattr(attention, "expanded", lambda *args: calls.append(1) or expanded(*args))
    cache = LatentCache(model.config, 1, 20, torch.float32)
    decode(model, random_tokens(1, 20), [ABSORBED_QUERIES + 1, 1, ABSORBED_QUERIES, 1, 1], cache)
    assert len(calls) == 1  # prefill alone writes keys and values out


def test_bf16_cache_under_fp32_weights_stays_near_fp32():
    model = shared_model()
    tokens = random_tokens(2, 8)
    cache = LatentCache(model.config, 2, 8, torch.bfloat16)
    assert relative_difference(decode(model, tokens, [1] * 8, cache), logits(model, tokens)) < 5e-2
