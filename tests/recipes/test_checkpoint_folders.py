"""Checkpoints: torn ones are thrown away, damaged ones are refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_model.errors import InputError
from core_model.manifest import verify_manifest, write_manifest
from recipes.checkpoints import latest_checkpoint, save_checkpoint, step_of


def save(folder: Path, step: int, keep: int = 2) -> Path:
    def write(path: Path) -> None:
        (path / "deep").mkdir()
        (path / "state.bin").write_bytes(bytes([step % 256]) * 100)
        (path / "deep" / "empty").write_bytes(b"")

    return save_checkpoint(folder, step, write, keep=keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_is_found_and_the_old_are_pruned(tmp_path):
    folder = tmp_path / "checkpoints"
    assert latest_checkpoint(folder) is None
    for step in (5, 1000, 123_456_789, 900):
        save(folder, step)
    # Two are kept, and the one just written: a run that went back to step 900 goes on from there next time it saves.
    assert names(folder) == ["step_00000900", "step_00001000", "step_123456789"]
    latest = latest_checkpoint(folder)
    assert latest is not None
    assert (latest.name, step_of(latest)) == ("step_123456789", 123_456_789)


def test_keep(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=3)
    assert names(tmp_path) == ["step_00000002", "step_00000003", "step_00000004"]
    save(tmp_path, 5, keep=1)
    assert names(tmp_path) == ["step_00000005"]
    with pytest.raises(ValueError, match="keep >= 1"):
        save(tmp_path, 6, keep=0)


def test_a_write_that_fails_leaves_the_earlier_one(tmp_path, caplog):
    save(tmp_path, 1)

    def fail(path: Path) -> None:
        (path / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path, 2, fail)
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(tmp_path) == tmp_path / "step_00000001"
    assert "its writing was interrupted" in caplog.text
    assert names(tmp_path) == ["step_00000001"]


def test_a_torn_one_is_removed_with_a_line(tmp_path, caplog):
    save(tmp_path, 1)
    (save(tmp_path, 2) / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(tmp_path) == tmp_path / "step_00000001"
    assert "step_00000002: torn" in caplog.text
    assert names(tmp_path) == ["step_00000001"]


def test_a_torn_one_of_the_same_step_is_written_anew_and_a_whole_one_stays(tmp_path):
    target = save(tmp_path, 2)
    (target / "manifest.json").unlink()
    (target / "state.bin").write_text("torn")
    assert (save(tmp_path, 2) / "state.bin").read_bytes() == bytes([2]) * 100
    before = (target / "manifest.json").stat().st_mtime_ns
    save(tmp_path, 2)
    assert (target / "manifest.json").stat().st_mtime_ns == before


@settings(max_examples=40, deadline=None)
@given(position=st.integers(0, 99), bit=st.integers(0, 7))
def test_any_flipped_bit_is_one_message(tmp_path_factory, position, bit):
    folder = tmp_path_factory.mktemp("flip")
    file = save(folder, 1) / "state.bin"
    data = bytearray(file.read_bytes())
    data[position] ^= 1 << bit
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"state.bin: expected sha256 .* by manifest.json; found .* \(damaged\)"):
        latest_checkpoint(folder)
    assert names(folder) == ["step_00000001"]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_in_the_manifest_is_never_taken_for_another_file(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flip")
    manifest = save(folder, 1) / "manifest.json"
    content = bytearray(manifest.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    manifest.write_bytes(content)
    try:
        latest_checkpoint(folder)
    except InputError:
        return
    # Only what JSON ignores may go unseen: the listed sizes and hashes hold.
    assert json.loads(content)["files"]["state.bin"]["size"] == 100


def test_cut_short_and_missing_files(tmp_path):
    checkpoint = save(tmp_path, 1)
    (checkpoint / "state.bin").write_bytes(b"\1" * 99)
    with pytest.raises(InputError, match=r"state.bin: expected 100 bytes, by manifest.json; found 99 bytes"):
        latest_checkpoint(tmp_path)
    (checkpoint / "state.bin").unlink()
    with pytest.raises(InputError, match=r"state.bin: expected a file of 100 bytes.*found no such file"):
        latest_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"files": []}', '{"files": {"a": 1}}', '{"files": {"a": {"size": "x"}}}']
)
def test_a_manifest_that_is_none(tmp_path, text):
    (save(tmp_path, 1) / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest.json: expected a manifest"):
        latest_checkpoint(tmp_path)


def test_a_manifest_may_not_point_outside(tmp_path):
    (tmp_path / "secret").write_text("")
    (tmp_path / "model").mkdir()
    entry = {"size": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}
    (tmp_path / "model" / "manifest.json").write_text(json.dumps({"files": {"../secret": entry}}))
    with pytest.raises(InputError, match="a path that leaves it"):
        verify_manifest(tmp_path / "model")


def test_an_empty_folder_has_a_manifest_too(tmp_path):
    write_manifest(tmp_path)
    verify_manifest(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text()) == {"files": {}}
