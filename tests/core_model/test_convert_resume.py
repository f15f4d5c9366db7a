"""Conversions that are killed, run twice at once, or meet a full disk."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from folders import BF16, FP8, FP32, SHARD, assert_same_tensors, tensors_of
from hypothesis import given, settings
from hypothesis import strategies as st

from core_model.checkpoint import convert_folder
from core_model.checkpoint.tensor_file import TensorWriter
from core_model.errors import InputError


class Killed(BaseException):
    """Stands for SIGKILL: nothing that tidies up after errors catches it."""


def stop(done: int = 0, total: int = 0) -> None:
    raise Killed(done)


def kill_at(number: int, how=None):
    def reached(done: int, total: int) -> None:
        if done == number:
            if how is not None:
                os.kill(os.getpid(), how)
            stop(done)

    return reached


@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_killed_anywhere_it_goes_on_and_ends_with_the_same_bytes(wide, converted, tmp_path_factory, data):
    whole, out = converted(FP8), tmp_path_factory.mktemp("killed") / "out"
    total, kept = len(tensors_of(converted(FP32))), 0
    at = 0
    for _ in range(data.draw(st.integers(1, 3), "kills")):
        at = data.draw(st.integers(at, total), "at")
        with pytest.raises(Killed):
            convert_folder(wide, out, FP8, shard_bytes=SHARD, on_tensors=kill_at(at))
        assert not out.exists()
        done = {path: path.stat().st_mtime_ns for path in out.parent.glob(".partial-out/*.safetensors")}
        assert len(done) >= kept
        kept = len(done)
        if at == total:
            break
        with pytest.raises(Killed) as again:  # at once: the first call tells what is there already
            convert_folder(wide, out, FP8, shard_bytes=SHARD, on_tensors=stop)
        assert {path: path.stat().st_mtime_ns for path in done} == done
        at = max(at, again.value.args[0])
    finished = convert_folder(wide, out, FP8, shard_bytes=SHARD)
    assert finished.kept == kept
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())
    assert all((out / p.name).read_bytes() == p.read_bytes() for p in whole.iterdir())
    assert list(out.parent.iterdir()) == [out]


def test_a_process_that_is_killed(wide, converted, tmp_path):
    """SIGKILL, in the middle of a shard."""
    out = tmp_path / "out"
    options = {"shard_bytes": SHARD, "on_tensors": kill_at(50, signal.SIGKILL)}
    process = multiprocessing.get_context("fork").Process(target=convert_folder, args=(wide, out, BF16), kwargs=options)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not out.exists() and (tmp_path / ".partial-out").is_dir()
    assert convert_folder(wide, out, BF16, shard_bytes=SHARD).kept > 2
    assert_same_tensors(out, converted(BF16))


def test_a_finished_shard_that_was_damaged_is_written_again(wide, converted, tmp_path, caplog):
    out = tmp_path / "out"
    with pytest.raises(Killed):
        convert_folder(wide, out, BF16, shard_bytes=SHARD, on_tensors=kill_at(60))
    first, *others = sorted((tmp_path / ".partial-out").glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-1] + b"!")
    assert convert_folder(wide, out, BF16, shard_bytes=SHARD).kept == len(others)
    assert first.name in caplog.text
    assert_same_tensors(out, converted(BF16))


def test_a_second_process_is_refused_while_the_first_is_at_work(wide, converted, tmp_path):
    out = tmp_path / "out"
    refused = []

    def second(done: int, total: int) -> None:
        if done == 60:
            with pytest.raises(InputError, match="another process at work") as caught:
                convert_folder(wide, out, BF16, shard_bytes=SHARD)
            refused.append(caught.value.path)

    convert_folder(wide, out, BF16, shard_bytes=SHARD, on_tensors=second)
    assert refused == [tmp_path / ".partial-out"] and list(tmp_path.iterdir()) == [out]
    assert_same_tensors(out, converted(BF16))


@pytest.mark.parametrize("moment", ["before the lock", "after the lock"])
def test_a_second_process_that_starts_while_the_first_takes_its_lock(wide, converted, tmp_path, monkeypatch, moment):
    """Whoever has the lock goes on with what is there then, and the other one deletes nothing."""
    out, flock, outcomes = tmp_path / "out", fcntl.flock, []

    def during(lock: int, operation: int) -> None:
        monkeypatch.undo()
        if moment == "after the lock":
            flock(lock, operation)
        try:
            outcomes.append(convert_folder(wide, out, BF16, shard_bytes=SHARD).kept)
        except InputError as error:
            outcomes.append(error.found)
        if moment == "before the lock":
            flock(lock, operation)

    monkeypatch.setattr(fcntl, "flock", during)
    if moment == "after the lock":
        convert_folder(wide, out, BF16, shard_bytes=SHARD)
        assert outcomes == ["another process at work on it"]
    else:
        with pytest.raises(InputError, match="another process at work"):
            convert_folder(wide, out, BF16, shard_bytes=SHARD)
        assert outcomes == [0]
    assert list(tmp_path.iterdir()) == [out]
    assert_same_tensors(out, converted(BF16))


def test_shards_that_another_process_finished_before_the_lock_are_kept(wide, converted, tmp_path, monkeypatch):
    out, flock = tmp_path / "out", fcntl.flock

    def during(lock: int, operation: int) -> None:
        monkeypatch.undo()
        with pytest.raises(Killed):
            convert_folder(wide, out, BF16, shard_bytes=SHARD, on_tensors=kill_at(60))
        flock(lock, operation)

    monkeypatch.setattr(fcntl, "flock", during)
    assert convert_folder(wide, out, BF16, shard_bytes=SHARD).kept > 2
    assert_same_tensors(out, converted(BF16))


def test_a_second_process_that_starts_between_the_last_two_steps_finds_all_done(wide, tmp_path, monkeypatch):
    out, outcomes = tmp_path / "out", []

    def during(path: Path) -> None:
        if path == tmp_path and out.exists():
            monkeypatch.undo()
            outcomes.append(convert_folder(wide, out, BF16).kept)

    monkeypatch.setattr("core_model.checkpoint.convert.sync", during)
    assert convert_folder(wide, out, BF16).kept == 0 and outcomes == [1]
    assert list(tmp_path.iterdir()) == [out]


def test_what_no_record_describes_is_emptied(wide, tmp_path):
    (tmp_path / ".partial-out" / "folder").mkdir(parents=True)
    (tmp_path / ".partial-out" / "folder" / "file").write_text("old")
    (tmp_path / ".partial-out" / "link").symlink_to(wide)
    convert_folder(wide, tmp_path / "out", BF16)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"] and (wide / "config.json").is_file()


def test_a_disk_that_fills_up_on_the_way_leaves_what_can_go_on(wide, converted, tmp_path, monkeypatch):
    out, write, written = tmp_path / "out", TensorWriter.write, []

    def fills_up(writer: TensorWriter, name: str, tensor: torch.Tensor) -> None:
        written.append(name)
        if len(written) == 60:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(writer.path))
        write(writer, name, tensor)

    monkeypatch.setattr(TensorWriter, "write", fills_up)
    with pytest.raises(OSError, match="No space left"):
        convert_folder(wide, out, BF16, shard_bytes=SHARD)
    assert not out.exists()
    monkeypatch.undo()
    assert convert_folder(wide, out, BF16, shard_bytes=SHARD).kept > 2
    assert_same_tensors(out, converted(BF16))


@pytest.mark.parametrize("other", ["storage", "shards", "source"])
def test_another_conversion_does_not_go_on_with_the_first(wide, tmp_path, other):
    source, out = Path(shutil.copytree(wide, tmp_path / "source")), tmp_path / "out"
    with pytest.raises(Killed):
        convert_folder(source, out, BF16, shard_bytes=SHARD, on_tensors=kill_at(60))
    if other == "source":
        os.utime(source / "model.safetensors")
    storage, shard_bytes = FP8 if other == "storage" else BF16, 2 * SHARD if other == "shards" else SHARD
    with pytest.raises(InputError, match="remove it"):
        convert_folder(source, out, storage, shard_bytes=shard_bytes)


def test_killed_between_the_last_two_steps(wide, tmp_path, monkeypatch):
    out, unlink = tmp_path / "out", Path.unlink
    record = tmp_path / ".partial-out.json"
    monkeypatch.setattr(Path, "unlink", lambda path, **options: stop() if path == record else unlink(path, **options))
    with pytest.raises(Killed):
        convert_folder(wide, out, BF16)
    monkeypatch.undo()
    assert convert_folder(wide, out, BF16).kept == 1
    assert list(tmp_path.iterdir()) == [out]


def test_a_record_of_another_form_is_refused(wide, tmp_path):
    (tmp_path / ".partial-out.json").write_text("[]")
    with pytest.raises(InputError, match=r"\.partial-out\.json"):
        convert_folder(wide, tmp_path / "out", BF16)
