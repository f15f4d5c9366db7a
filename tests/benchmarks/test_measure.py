"""The benchmarks' own machinery: waiting before the clock is read, peers that fail, one side after the other."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref

import pytest
import torch
import torch.nn.functional as F

from benchmarks import __main__ as command
from benchmarks import attention, train_step
from benchmarks.measure import BenchmarkRow, Comparison, alone, compare, interleaved, row_of, seconds_of
from benchmarks.train_step import Case, accelerator_cases, in_shares, one_by_one
from core_model import V3Config, attention_kernels
from core_model.accounting import flops_per_token, parameters
from core_model.accounting.memory import activation_bytes, state_bytes
from core_model.attention_kernels import FlashDocuments, GatheredDocuments, Offers

H200 = 139 * 2**30
TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "moe_intermediate_size": 16,
    "intermediate_size": 32,
    "num_nextn_predict_layers": 0,
}


def test_the_clock_is_read_when_everything_is_done():
    """A device that runs only when it is waited for."""
    done, queue = [], []

    def wait() -> None:
        done.extend(queue)
        queue.clear()

    queue.append("earlier")
    seconds_of(lambda: queue.append("run"), wait)
    assert done == ["earlier", "run"]
    done.clear()
    interleaved(lambda: queue.append("ours"), lambda: queue.append("peer"), 2, wait)
    assert done == ["ours", "peer", "ours", "peer", "ours", "peer"] and not queue


def test_a_program_alone_is_gone_before_the_memory_is_released():
    model = torch.nn.Linear(2, 2)
    gone, seen = weakref.ref(model), []
    programs = [lambda model=model: model(torch.ones(2))]
    del model
    seconds = alone(programs.pop, 3, lambda: None, lambda: seen.append(gone()))
    assert len(seconds) == 3 and seen == [None]


def test_a_peer_that_failed_leaves_our_figure(tmp_path, monkeypatch, capsys):
    row = row_of(Comparison("a case", "tokens/s", 100, "peer: OutOfMemoryError", limit=400.0), [0.5, 0.4, 0.6], [])
    assert (row.ours, row.peer, row.ratio, row.ratio_low) == (200.0, None, None, None)

    def rows():
        yield row
        raise KeyboardInterrupt

    monkeypatch.setattr(attention, "run", rows)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "attention", "--json", str(tmp_path / "out" / "a.json")])
    with pytest.raises(KeyboardInterrupt):
        command.main()
    written = json.loads((tmp_path / "out" / "a.json").read_text())
    assert written["name"] == "attention" and BenchmarkRow(**written["rows"][0]) == row
    assert "- (peer: OutOfMemoryError)" in capsys.readouterr().out


def test_a_peer_that_fails_in_turn_leaves_our_figure_and_ours_may_not_fail():
    def fails() -> None:
        raise NotImplementedError

    runs = Comparison("a case", "runs", 1, "peer")
    row = compare(runs, lambda: None, fails, repetitions=2, faults=(NotImplementedError,))
    assert row.ours > 0 and row.peer is None and row.peer_name == "peer: NotImplementedError"
    for ours, faults in ((lambda: None, ()), (fails, (NotImplementedError,))):
        with pytest.raises(NotImplementedError):
            compare(runs, ours, fails, faults=faults)


def test_shares_are_rates_times_work_over_the_peak():
    row = row_of(Comparison("a case", "tokens/s", 100, "peer", limit=800.0), [0.5] * 3, [1.0] * 3)
    shares = in_shares(row, flops=2e9, peak=1e12)
    assert (shares.ours, shares.peer, shares.limit) == (0.4, 0.2, 1.6)
    assert shares.unit == "share of 1 TFLOP/s" and shares.ratio == row.ratio == 2.0


def test_each_side_runs_alone_and_a_peer_out_of_memory_is_a_row(monkeypatch):
    case = Case("tiny", V3Config.preset("nano", **TINY), 2, 8, 2, ("bf16 autocast", "bf16"))
    monkeypatch.setattr(train_step, "gemm_rate", lambda dtype: 1e9)
    monkeypatch.setattr(train_step, "bf16_peak", lambda device: 2e9)
    build = train_step._peer

    def peer(config, ids, precision, attention="sdpa"):
        if precision == "bf16":
            raise torch.OutOfMemoryError("no room")
        return build(config, ids, precision, attention)

    monkeypatch.setattr(train_step, "_peer", peer)
    first, its_share, second, _ = one_by_one(case)
    assert first.unit == "tokens/s" and first.ratio == pytest.approx(first.ours / first.peer)
    flops = flops_per_token(case.config, 8)
    assert its_share.ours == pytest.approx(first.ours * flops / 2e9) and its_share.limit == pytest.approx(0.5)
    assert second.ours == first.ours > 0 and second.peer is None and second.peer_name.endswith("bf16: OutOfMemoryError")


@pytest.mark.parametrize(
    ("dtype", "peers"), [(torch.float32, ["fp32"]), (torch.bfloat16, ["fp32", "bf16 autocast"])], ids=["fp32", "bf16"]
)
def test_small_models_run_in_turn_on_a_cpu(dtype, peers, monkeypatch):
    """A peer in bf16 only where the processor multiplies that."""
    case = Case("tiny", V3Config.preset("nano", **TINY), 2, 8, 1, ("fp32", "bf16 autocast"))
    monkeypatch.setattr(train_step, "gemm_rate", lambda dtype: 1e9)
    monkeypatch.setattr(train_step, "cases", lambda: iter([case]))
    monkeypatch.setattr(train_step, "fastest_dtype", lambda device: dtype)
    monkeypatch.setattr(attention, "CASES", ((1, 8, 2, 12, 8),))
    rows = [*train_step.run(), *attention.run()]
    assert [row.case.partition("peer ")[2] for row in rows[:-1]] == peers and rows[-1].unit == "k tokens/s"
    assert all(row.ours > 0 and row.peer and row.ratio for row in rows)


def test_a_peer_in_bf16_is_in_bf16_and_learns():
    config = V3Config.preset("nano", **TINY)
    ids = torch.randint(0, 64, (2, 8), generator=torch.Generator().manual_seed(0))
    step = train_step._quickest_peer(config, ids, "bf16")
    model = next(cell.cell_contents for cell in step.__closure__ if isinstance(cell.cell_contents, torch.nn.Module))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert (model.config._attn_implementation, model.config._experts_implementation) == ("sdpa", "grouped_mm")
    before = model.lm_head.weight.clone()
    step()
    assert (model.lm_head.weight - before).abs().max() > 0


def test_the_slice_is_v3s_and_fits_beside_its_activations():
    slice_, v3 = list(accelerator_cases())[-1], V3Config.preset("671b")
    ours = slice_.config
    for name in ("hidden_size", "num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim"):
        assert getattr(ours, name) == getattr(v3, name)
    for name in ("moe_intermediate_size", "num_experts_per_tok", "n_group", "topk_group", "vocab_size"):
        assert getattr(ours, name) == getattr(v3, name)
    assert [ours.is_moe_layer(i) for i in range(4)] == [False, True, True, True]
    state, kept = state_bytes(ours), activation_bytes(ours, slice_.batch * slice_.length)
    peak = max(state.total, state.weights + state.moments + kept.kept)
    assert peak < 0.9 * H200  # the rest: workspaces, one gradient in two precisions, fragments
    assert 16 * parameters(V3Config.preset("671b", **{**train_step.SLICE, "n_routed_experts": 48})).total > H200


def test_attentions_cases_on_an_accelerator_run_in_every_kernel(monkeypatch):
    monkeypatch.setattr(attention, "LENGTH", 48)
    monkeypatch.setattr(attention, "DOCUMENTS", (24, 16, 8))
    monkeypatch.setattr(attention, "V3", {**attention.V3, "heads": 2})
    monkeypatch.setattr(attention, "REPETITIONS", 1)
    monkeypatch.setattr(attention, "gemm_rate", lambda dtype: 1e9)

    def varlen(q, k, v, bounds, _, longest, same, *, scale, window_size):
        assert (bounds.tolist(), longest, same, window_size) == ([0, 24, 40, 48], 24, 24, (-1, 0))
        parts = zip(*(x.transpose(0, 1).split((24, 16, 8), dim=1) for x in (q, k, v)), strict=True)
        outs = [F.scaled_dot_product_attention(*part, is_causal=True, scale=scale) for part in parts]
        return torch.cat(outs, dim=1).transpose(0, 1)

    monkeypatch.setattr(attention_kernels, "offers", lambda *args: Offers(unequal=True, varlen=varlen))
    rows = list(attention.accelerator_rows())
    assert all(row.ours and row.peer for row in rows)
    assert [row.unit for row in rows] == ["k tokens/s"] * 3
    assert FlashDocuments.name in rows[1].case and rows[2].peer_name == GatheredDocuments.name


def test_the_training_benchmarks_need_few_libraries():
    """They run where no more than torch, transformers and rich are installed."""
    code = "import sys, benchmarks.__main__, benchmarks.train_step, benchmarks.attention; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    ours = {"pydantic", "omegaconf", "typer", "trl", "datasets", "deepspeed", "wandb", "recipes", "reasoning_gym"}
    assert not ours & {name.partition(".")[0] for name in loaded}
