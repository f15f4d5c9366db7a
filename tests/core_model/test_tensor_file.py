"""Files written and read a tensor at a time: those of the safetensors library, and memory bounded by one tensor."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import same, tiny_config
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from core_model.checkpoint import Storage
from core_model.checkpoint.config_file import write_config
from core_model.checkpoint.convert import plan_shards
from core_model.checkpoint.names import shapes_on_disk
from core_model.checkpoint.tensor_file import DTYPES, TensorWriter, read_header, read_tensor
from core_model.errors import InputError

BF16 = Storage(torch.bfloat16)


@given(st.lists(st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 5), max_size=3)), max_size=6))
@settings(max_examples=40, deadline=None)
def test_files_are_those_of_the_safetensors_library(tmp_path_factory, declared):
    folder = tmp_path_factory.mktemp("file")
    generator = torch.Generator().manual_seed(len(declared))
    tensors = {}
    for number, (code, shape) in enumerate(declared):
        dtype = DTYPES[code]
        count = torch.Size(shape).numel() * dtype.itemsize
        content = torch.randint(0, 2, (count,), dtype=torch.uint8, generator=generator)
        tensors[f"tensor.{number}"] = content.view(dtype).view(shape)
    with TensorWriter(folder / "ours", {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}) as writer:
        for name in reversed(list(tensors)):
            writer.write(name, tensors[name])
    save_file(tensors, folder / "theirs")
    theirs = load_file(folder / "ours")
    assert theirs.keys() == tensors.keys() and all(same(theirs[name], tensors[name]) for name in tensors)
    for file in ("ours", "theirs"):
        header = read_header(folder / file)
        assert header.keys() == tensors.keys()
        for name, tensor in tensors.items():
            read = read_tensor(folder / file, header[name])
            assert read.shape == tensor.shape and same(read, tensor)
    with safe_open(folder / "ours", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("offsets", "size", "where", "found"),
    [
        ([(0, 8), (4, 12)], 12, "b", "an overlap"),
        ([(0, 8), (0, 8)], 8, "b", "an overlap"),
        ([(0, 8), (12, 20)], 20, "b", "a hole"),
        ([(4, 12), (12, 20)], 20, "a", "a hole"),
        ([(12, 20), (0, 8)], 20, "a", "a hole"),
    ],
)
def test_tensors_that_overlap_or_leave_holes_are_refused(tmp_path, offsets, size, where, found):
    path = tmp_path / "file"
    header = {n: {"dtype": "F32", "shape": [2], "data_offsets": o} for n, o in zip("ab", offsets, strict=True)}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    with pytest.raises(SafetensorError):
        load_file(path)
    with pytest.raises(InputError) as caught:
        read_header(path)
    assert caught.value.path == path and caught.value.where == where and found in caught.value.found


def test_a_writer_holds_to_what_was_declared(tmp_path):
    declared = {"a": (torch.float32, (2, 2)), "b": (torch.bfloat16, (1,))}
    with TensorWriter(tmp_path / "file", declared) as writer:
        with pytest.raises(ValueError, match="declared"):
            writer.write("a", torch.zeros(2, 2, dtype=torch.bfloat16))
        with pytest.raises(ValueError, match="declared"):
            writer.write("a", torch.zeros(4))
        writer.write("a", torch.zeros(2, 2))
        writer.write("b", torch.zeros(1, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="never written"), TensorWriter(tmp_path / "file", declared) as writer:
        writer.write("b", torch.zeros(1, dtype=torch.bfloat16))


@given(st.lists(st.integers(1, 400), min_size=1, max_size=20), st.integers(1, 1000))
@settings(max_examples=50, deadline=None)
def test_shards_hold_everything_once_in_order_and_within_the_limit(rows, limit):
    shapes = {f"weight.{number}": (count, 1) for number, count in enumerate(rows)}
    shards = plan_shards(shapes, BF16, limit)
    assert [name for shard in shards for name in shard.names] == list(shapes)
    assert all(shard.nbytes <= limit or len(shard.names) == 1 for shard in shards)
    for one, following in pairwise(shards):
        assert one.nbytes + 2 * shapes[following.names[0]][0] > limit  # no shard ends without need


MEASURE = """
import sys
from pathlib import Path
import torch
from core_model.checkpoint import Storage, convert_folder
from core_model.model import V3ForCausalLM

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

def measure(work):
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is in use now
    before = peak()
    work()
    return peak() - before

small, large = map(Path, sys.argv[1:])
convert_folder(small, small.with_name("warm"), Storage(torch.float8_e4m3fn))
V3ForCausalLM.from_pretrained(small.with_name("warm"))
eight, back = large.with_name("eight"), large.with_name("back")
print(measure(lambda: convert_folder(large, eight, Storage(torch.float8_e4m3fn), shard_bytes=150_000_000)))
print(measure(lambda: convert_folder(eight, back, Storage(torch.bfloat16))))
models = []
print(measure(lambda: models.append(V3ForCausalLM.from_pretrained(back))))
print(sum(p.numel() * p.element_size() for p in models[0].parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
def test_memory_is_bounded_by_a_tensor_and_not_by_the_model(tmp_path, repository):
    sizes = {"hidden_size": 512, "moe_intermediate_size": 1024, "n_routed_experts": 64, "num_hidden_layers": 2}
    config = tiny_config(**sizes, vocab_size=1024, num_nextn_predict_layers=0)
    write_folder(config, tmp_path / "large")
    write_folder(tiny_config(), tmp_path / "small")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large")],
        capture_output=True,
        text=True,
        check=True,
        cwd=repository,
    )
    to_fp8, to_bf16, loading, in_memory = map(int, done.stdout.split())
    on_disk = sum(path.stat().st_size for path in (tmp_path / "large").glob("*.safetensors"))
    bound = 12 * 1024 * 512 + 24_000_000  # 12 bytes a number of the largest tensor; the allocator's slack
    assert on_disk > 200_000_000 > 6 * bound
    assert max(to_fp8, to_bf16) < bound
    assert loading < in_memory + bound


def write_folder(config, folder: Path) -> None:
    """A BF16 folder of a configuration, the same random numbers over and over."""
    noise = torch.randn(1024 * 512, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    shapes = shapes_on_disk(config)
    declared = {name: part for name, shape in shapes.items() for part in BF16.declare(name, shape).values()}
    folder.mkdir()
    with TensorWriter(folder / "model.safetensors", declared) as writer:
        for name, (dtype, shape) in declared.items():
            writer.write(name, noise[: torch.Size(shape).numel()].view(shape).to(dtype))
    write_config(config, BF16, folder)
