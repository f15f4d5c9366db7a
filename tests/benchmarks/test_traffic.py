"""What counts as a pass over memory, and how many a training step makes on an accelerator."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.traffic import META, Traffic, as_one_kernel, ours, peer, rows_of, traffic_of
from benchmarks.train_step import Case
from core_model import V3Config
from core_model.fused import fused
from core_model.swiglu import activation, weighted_gradients

WIDE = torch.empty(3, 40, dtype=torch.bfloat16, device=META)
PICKED = torch.zeros(2, dtype=torch.int64, device=META)


def counted(run, *shapes, dtype=torch.bfloat16) -> tuple[int, int]:
    """Passes, and numbers of 2 bytes that they read and write."""
    given = [torch.empty(shape, dtype=dtype, device=META) for shape in shapes]
    with Traffic() as traffic:
        run(*given)
    return traffic.passes, traffic.bytes // 2


@pytest.mark.parametrize(
    ("run", "passes", "numbers"),
    [
        (lambda x, y: x + y, 1, 3 * 60),
        (lambda x, y: x.add_(y), 1, 3 * 60),
        (lambda x, y: x * 2 + y, 2, 5 * 60),
        (lambda x, y: x.float(), 1, 60 + 2 * 60),
        (lambda x, y: x.view(60).unflatten(0, (6, 10))[:3].transpose(0, 1), 0, 0),
        (lambda x, y: x.new_empty(5), 0, 0),
        (lambda x, y: x @ y.T, 0, 0),
        (lambda x, y: x.index_select(0, PICKED), 1, 2 * 2 * 20),
        (lambda x, y: x[:1].expand(3, 20) + y, 1, 20 + 2 * 60),
        (lambda x, y: fused(lambda a, b: (a * 2 + b).relu())(x, y), 1, 3 * 60),
        (lambda x, y: fused(lambda a, b: [a * b, a + b])(x, y), 1, 4 * 60),
        (lambda x, y: activation(x, y), 1, 3 * 60),
        (lambda x, y: weighted_gradients(x, WIDE, x[:, 0]), 2, 2 * (3 * 60 + 3) + 3 * 60 + 2 * 3),  # of two kernels
    ],
)
def test_operands_are_read_once_and_results_written_once(run, passes, numbers):
    assert counted(run, (3, 20), (3, 20)) == (passes, numbers)


def test_attention_is_a_kernel_of_its_own_and_the_mode_ends():
    q = torch.empty(1, 2, 8, 4, device=META, requires_grad=True)
    plain = F.scaled_dot_product_attention
    found = traffic_of(lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True).mean())
    with as_one_kernel():
        assert F.scaled_dot_product_attention is not plain
    assert F.scaled_dot_product_attention is plain and found.passes < 10


def test_a_step_of_mini_makes_no_more_passes_than_it_did():
    """Per token, of two of its layers; transformers' step takes some four times as many bytes."""
    config = V3Config.preset("mini", num_nextn_predict_layers=0, num_hidden_layers=2)
    ids = torch.empty(2, 4096, dtype=torch.int64, device=META)
    mine, theirs = traffic_of(ours(config, ids)), traffic_of(peer(config, ids))
    assert mine.bytes / ids.numel() < 670e3
    assert theirs.bytes > 2.5 * mine.bytes and theirs.passes > 1.5 * mine.passes


def test_rows_have_both_measures_against_both_peers():
    config = V3Config.preset("nano", num_nextn_predict_layers=0, num_hidden_layers=2)
    rows = list(rows_of(Case("nano", config, 2, 64, 1)))
    assert [row.unit for row in rows] == ["tokens/GB", "tokens/pass"] * 2
    assert all(row.ratio == pytest.approx(row.ours / row.peer) for row in rows)
    assert rows[2].peer_name == "ours as single operations" and rows[2].ratio > 1.5 and rows[3].ratio > 1.5
