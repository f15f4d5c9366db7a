"""Functions that accelerators run as one kernel: the same numbers compiled and as single operations, and when which."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from compiled import gradients
from reference import random_model, random_tokens, relative_difference, tiny_config
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

from core_model import fused, loss, norm, rope, swiglu
from core_model.fused import fused as as_one_kernel
from core_model.moe import experts
from core_model.native import training
from core_model.parallel.device import compiles_kernels

ROWS, WIDTH = 67, 24
CASES: dict[str, tuple[Callable[..., object], Callable[[Callable[..., Tensor]], tuple]]] = {
    "rms_norm": (norm.rms_norm, lambda x: (x(ROWS, WIDTH), x(WIDTH).float(), 1e-6)),
    "rms_norm_backward": (
        norm.rms_norm_backward,
        lambda x: (x(ROWS, WIDTH), x(ROWS, WIDTH), x(ROWS, 1).float().abs(), x(WIDTH).float()),
    ),
    "swiglu": (swiglu.activation, lambda x: (x(ROWS, WIDTH), x(ROWS, WIDTH))),
    "swiglu backward": (swiglu.gradients, lambda x: (x(ROWS, WIDTH), x(ROWS, WIDTH), x(ROWS, WIDTH))),
    "experts' swiglu": (swiglu.weighted_activation, lambda x: (x(ROWS, 2 * WIDTH), x(ROWS))),
    "experts' swiglu backward": (
        swiglu.weighted_gradients,
        lambda x: (x(ROWS, WIDTH), x(ROWS, 2 * WIDTH), x(ROWS)),
    ),
    "sums of rows": (
        experts.gathered_sum,
        lambda x: (x(ROWS, WIDTH), torch.randint(0, ROWS, (20, 3)), torch.randint(0, 2, (20, 3)) > 0),
    ),
    "rotated heads": (
        rope.rotated_tail,
        lambda x: (x(2, 30, 3, WIDTH), torch.randn(1, 30, 4, 2)),
    ),
    "loss": (
        loss.loss_and_dlogits,
        lambda x: (x(ROWS, 100) * 3, torch.randint(0, 100, (ROWS, 1)), x(1).dtype),
    ),
}


@pytest.fixture
def may_compile(monkeypatch):
    """As on a device that kernels are compiled for; nothing may fall back to operations unseen."""
    monkeypatch.setattr(fused, "compiles_on", lambda device: True)
    monkeypatch.setattr(fused, "faults", {})
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    assert not fused.faults


@pytest.fixture
def compiling(may_compile):
    """And something must be compiled."""
    before = counters["stats"]["unique_graphs"]
    yield
    assert counters["stats"]["unique_graphs"] > before


def outputs(result: object) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_one_kernel_gives_the_numbers_of_the_operations(case, dtype, compiling):
    """In bf16 nearer to fp32 than the operations are, since it rounds less often."""
    run, draw = CASES[case]
    torch.manual_seed(0)
    args = draw(lambda *shape: torch.randn(shape).to(dtype))
    exact = [a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
    exact = [torch.float32 if a is dtype else a for a in exact]
    as_written = inspect.unwrap(run)
    found, single, expected = (outputs(one) for one in (run(*args), as_written(*args), as_written(*exact)))
    for one, other, want in zip(found, single, expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        most = want.abs().max()
        if dtype == torch.float32:
            assert (one - want).abs().max() <= 1e-5 * most
        else:
            assert (one.float() - want).abs().max() <= max((other.float() - want).abs().max() * 1.2, 0.005 * most)


def test_a_model_whose_kernels_are_compiled_has_the_same_gradients(monkeypatch, compiling):
    """Widths, vocabularies and numbers of tokens that change from call to call, under every recompute policy."""
    monkeypatch.setattr(training, "compiled", lambda dtype: False)
    monkeypatch.setattr(experts, "looped_experts", experts.grouped_experts)
    model = random_model(tiny_config()).train()
    model.loss_weights.mtp, model.loss_weights.balance = 0.3, 0.01
    for tokens, model.recompute in (
        (random_tokens(2, 12), "none"),
        (random_tokens(3, 20), "v3"),
        (random_tokens(1, 7), "layer"),
    ):
        found = gradients(model, tokens)
        with monkeypatch.context() as patch:
            patch.setattr(fused, "compiles_on", lambda device: False)
            expected = gradients(model, tokens)
        assert all(relative_difference(found[name], expected[name]) < 1e-5 for name in expected)


def test_more_widths_than_torch_compiles_of_one_function_are_compiled(monkeypatch, compiling):
    """Each once for the first number of rows and once for all others, the width a constant in both."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    double = as_one_kernel(lambda x, y: (x * 2 + y).sum(-1))
    widths = range(3, 3 + 2 * torch._dynamo.config.recompile_limit)
    for width in widths:
        for rows in (5, 6, 7, 8):
            x = torch.ones(rows, width)
            assert torch.equal(double(x, x), torch.full((rows,), 3.0 * width))
    assert len(compiled) == 2 * len(widths)
    shapes = [
        node.meta["example_value"].shape for graph in compiled for node in graph.graph.nodes if node.name == "l_x_"
    ]
    assert [shape[1] for shape in shapes] == [width for width in widths for _ in range(2)]
    assert all(isinstance(shape[1], int) for shape in shapes)


def test_lengths_and_modes_that_change_are_all_compiled(monkeypatch, compiling):
    """Training, evaluation and generation in one process, with rows of one token and batches of one row among them."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(training, "compiled", lambda dtype: False)
    for module, name in ((norm, "rms_norm"), (norm, "rms_norm_backward"), (swiglu, "activation"),
                         (swiglu, "gradients"), (rope, "rotated_tail")):  # fmt: skip
        monkeypatch.setattr(module, name, as_one_kernel(inspect.unwrap(getattr(module, name))))
    model = random_model(tiny_config())
    for rows, length in ((2, 12), (2, 9), (3, 9), (1, 10), (2, 1), (1, 1)):
        tokens = random_tokens(rows, length)
        packed = torch.arange(length).expand(rows, -1) % 5
        for dtype in (torch.float32, torch.bfloat16):
            model.compute_dtype = dtype
            model.train()
            model.model(tokens).last_hidden_state.sum().backward()
            model.model(tokens, position_ids=packed).last_hidden_state.sum().backward()
            model.eval()
            with torch.no_grad():
                model(tokens)
            with torch.inference_mode():
                model(tokens)
    model.requires_grad_(False)
    model(random_tokens(2, 5))
    assert not fused.faults


def broken_compiler(function):
    def run(*args):
        raise BackendCompilerFailed(lambda: None, RuntimeError("no C compiler"), None)

    return run


def test_a_fault_in_compiling_is_said_once_and_operations_take_over(monkeypatch, caplog, may_compile):
    monkeypatch.setattr(torch, "compile", broken_compiler)
    double = as_one_kernel(lambda x: x * 2)
    for _ in range(2):
        assert torch.equal(double(torch.ones(2)), torch.full((2,), 2.0))
    assert caplog.text.count("more slowly") == 1 and "no C compiler" in caplog.text
    ((_, device),) = fused.faults
    assert device.type == "cpu" and double(torch.ones(2, device="meta")).shape == (2,)
    assert len(fused.faults) == 2  # each device has its own
    fused.faults.clear()


def test_arguments_by_name_are_arguments(compiling):
    x = torch.randn(3, 4)
    torch.testing.assert_close(swiglu.activation(gate_PF=x, up_PF=x), inspect.unwrap(swiglu.activation)(x, x))


def test_arguments_at_fault_turn_nothing_off(may_compile):
    with pytest.raises(RuntimeError, match="23"):
        norm.rms_norm(torch.ones(4, 24), torch.ones(23), 1e-6)
    assert not fused.faults


def test_no_kernels_are_compiled_for_the_meta_device(monkeypatch):
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    assert not compiles_kernels(torch.device("meta")) and not compiles_kernels(torch.device("cpu"))


@pytest.mark.parametrize("seen_by", ["a CPU", "TRIVIUM_NATIVE", "a counter of operations"])
def test_operations_run_as_they_are_written(seen_by, monkeypatch):
    def unwanted(function):
        return lambda x: pytest.fail("compiled")

    monkeypatch.setattr(torch, "compile", unwanted)
    double = as_one_kernel(lambda x: x @ x)
    if seen_by == "TRIVIUM_NATIVE":
        monkeypatch.setenv("TRIVIUM_NATIVE", "0")
    if seen_by != "a CPU":
        monkeypatch.setattr(fused, "compiles_kernels", lambda device: True)
    fused.compiles_on.cache_clear()
    try:
        with FlopCounterMode(display=False) if seen_by == "a counter of operations" else nullcontext() as counter:
            assert torch.equal(double(torch.eye(2)), torch.eye(2))
        assert counter is None or counter.get_total_flops() == 16
    finally:
        fused.compiles_on.cache_clear()
