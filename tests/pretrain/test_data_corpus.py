"""Where documents come from: which files, which licences, which split, and nothing held out among them."""

from __future__ import annotations

import hashlib
import json
from email.message import Message
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_model.errors import InputError
from core_model.tokenizer import decode_tokens, encode_texts, train_tokenizer
from eval import tasks
from pretrain.data import corpus, licences
from pretrain.data.corpus import Document, docstring_documents, stdlib_documents, task_documents, up_to
from pretrain.data.dedup import Deduplicator, content_digest, hash_fraction, is_validation
from pretrain.data.long_documents import ModuleGroup, long_documents, module_groups


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_tests_tables_and_machine_paths_are_left_out(tmp_path: Path):
    for name in ("os.py", "mypackage/core.py", "mypackage/latin.txt"):
        write(tmp_path / name, f"# {name}\n")
    for name in (
        "test/support.py",
        "mypackage/tests/case.py",
        "site-packages/other/code.py",
        "encodings/cp1252.py",
        "idlelib/idle_test/x.py",
        "config-3.11-x86_64/python-config.py",
        "_sysconfigdata__linux.py",
        "mypackage/test_core.py",
        "mypackage/__pycache__/core.py",
    ):
        write(tmp_path / name, "secret = 1\n")
    write(tmp_path / "latin.py", b"# caf\xe9\n")
    documents = list(stdlib_documents(tmp_path))
    assert {document.path for document in documents} == {"os.py", "mypackage/core.py"}
    assert {(document.source, document.licence) for document in documents} == {("stdlib", "PSF-2.0")}


def test_file_order_is_the_hash_of_the_relative_path(tmp_path: Path):
    names = [f"module{number}.py" for number in range(30)]
    for root in (tmp_path / "a", tmp_path / "somewhere/else"):
        for name in names:
            write(root / name, "x = 1\n")
        order = [document.path for document in stdlib_documents(root)]
        assert order == sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
        assert order != sorted(names)


def test_the_real_standard_library_is_there_without_its_tests():
    documents = list(up_to(0.5, stdlib_documents()))
    assert 0.5e6 <= sum(len(document.text.encode()) for document in documents) < 1.5e6
    assert not [document.path for document in documents if {"test", "tests"} & set(document.path.split("/"))]


def fake_package(monkeypatch, tmp_path: Path, files: dict[str, str | bytes]) -> None:
    for name, text in files.items():
        write(tmp_path / "fake" / name, text)
    monkeypatch.setattr(corpus, "package_root", lambda package: tmp_path / package)
    monkeypatch.setattr(corpus, "licence_of", lambda package: "MIT")


def test_docstrings_are_read_without_importing(monkeypatch, tmp_path: Path):
    long = "A sentence about something. " * 10
    source = f'''"""{long}module"""
raise SystemExit("imported")
class Thing:
    """{long}class"""
    def method(self):
        """Too short."""
    if True:
        async def other(self):
            """{long}method"""
def function():
    x = """{long}no docstring"""
'''
    fake_package(monkeypatch, tmp_path, {"a.py": source})
    found = {document.path: document for document in docstring_documents(["fake"])}
    assert set(found) == {"fake/a.py:module", "fake/a.py:Thing", "fake/a.py:other"}
    assert found["fake/a.py:other"].text == f"{long}method"
    assert {(document.source, document.licence) for document in found.values()} == {("docstrings/fake", "MIT")}


def test_files_that_cannot_be_parsed_are_passed_over(monkeypatch, tmp_path: Path):
    text = "words " * 50
    hostile = {
        "null.py": b'"""' + text.encode() + b'"""\x00',
        "latin.py": b'"""' + text.encode() + b'\xe9"""',
        "template.py": f'"""{text}"""\n{{{{ name }}}} = (',
        "deep.py": f'"""{text}"""\nx = ' + "(" * 3000 + ")" * 3000,
        "surrogate.py": f'"""{text} \\ud800"""',
        "escape.py": f'"""{text} \\d"""',
    }
    fake_package(monkeypatch, tmp_path, hostile)
    assert [document.path for document in docstring_documents(["fake"])] == ["fake/escape.py:module"]


def test_packages_take_turns_so_that_a_cut_holds_all_of_them():
    documents = list(up_to(0.2, docstring_documents(["networkx", "numpy", "sympy"])))
    sizes = dict.fromkeys(("docstrings/networkx", "docstrings/numpy", "docstrings/sympy"), 0)
    for document in documents:
        sizes[document.source] += len(document.text)
    assert min(sizes.values()) > 20_000


def test_held_out_packages_feed_no_training_text(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(corpus, "is_held_out", lambda group: group in ("json", "fake/linalg"))
    write(tmp_path / "json/decoder.py", "x = 1\n")
    write(tmp_path / "json.py", "x = 1\n")
    assert [document.path for document in stdlib_documents(tmp_path)] == ["json.py"]
    text = '"""' + "words " * 50 + '"""'
    fake_package(monkeypatch, tmp_path, {"linalg/solve.py": text, "fft/real.py": text})
    assert [document.path for document in docstring_documents(["fake"])] == ["fake/fft/real.py:module"]


def test_held_out_packages_are_about_a_tenth():
    groups = module_groups(["numpy", "scipy", "sympy", "networkx"])
    held_out = [group for group in groups if group.is_held_out]
    assert 0.02 < len(held_out) / len(groups) < 0.25
    assert len({group.name for group in groups}) == len(groups)


def test_sizes_are_kept_to_one_document():
    documents = [Document("é" * 500, "s", str(number), "MIT") for number in range(10)]  # 1,000 bytes each
    assert len(list(up_to(0.0035, documents))) == 4
    assert len(list(up_to(1.0, documents))) == 10
    assert list(up_to(0.0, documents)) == []


@given(text=st.text(st.characters(exclude_categories=["Cs"])), path=st.text(st.characters(exclude_categories=["Cs"])))
def test_documents_survive_their_line_of_json(text, path):
    document = Document(text, "stdlib", path, "PSF-2.0")
    line = document.to_json()
    assert "\n" not in line
    assert Document.from_json(line) == document
    assert json.loads(line) == {"text": text, "meta": {"source": "stdlib", "path": path, "licence": "PSF-2.0"}}


def test_task_text_holds_no_held_out_item_and_no_question_twice():
    held_out = {
        problem.messages[-1].content
        for split in ("validation", "test")
        for problem in tasks.problems("base_conversion", split, 60)
    }
    documents = list(task_documents(["base_conversion"], 0.3))  # more than the family has: it ends by itself
    text = "".join(document.text for document in documents)
    questions = [line for line in text.splitlines() if "binary" in line]
    assert len(questions) > 1000
    assert len(set(questions)) == len(questions)
    assert not [question for question in held_out if question in text]


def test_families_get_the_same_share():
    documents = list(task_documents(["chain_sum", "number_sorting"], 0.04))
    sizes = {
        name: sum(len(d.text) for d in documents if d.source == f"tasks/{name}")
        for name in ("chain_sum", "number_sorting")
    }
    assert all(20_000 <= size < 21_000 for size in sizes.values())
    with pytest.raises(InputError, match="nonsense"):
        list(task_documents(["nonsense"], 0.01))


def test_licences_of_installed_packages():
    assert licences.licence_of("networkx") == "BSD-3-Clause"
    assert licences.licence_of("scipy") == "BSD"
    with pytest.raises(InputError, match=r"hypothesis: expected a package with a permissive licence; found MPL-2\.0"):
        licences.licence_of("hypothesis")
    with pytest.raises(InputError, match="no such package"):
        licences.licence_of("no-such-package")


@pytest.mark.parametrize(
    ("headers", "licence"),
    [
        (
            {"License-Expression": "MIT AND (Apache-2.0 WITH LLVM-exception OR 0BSD)"},
            "MIT AND (Apache-2.0 WITH LLVM-exception OR 0BSD)",
        ),
        ({"License": "Apache 2.0 License"}, "Apache-2.0"),
        ({"Classifier": "License :: OSI Approved :: MIT License", "License": "see file"}, "MIT"),
        ({"License-Expression": "MIT AND GPL-3.0-only"}, None),
        ({"License": "GPL"}, None),
        ({"Classifier": "Programming Language :: Python"}, None),
        ({}, None),
    ],
)
def test_only_permissive_licences_pass(monkeypatch, headers, licence):
    message = Message()
    for key, value in headers.items():
        message[key] = value
    monkeypatch.setattr(metadata, "metadata", lambda package: message)
    if licence is None:
        with pytest.raises(InputError, match="permissive"):
            licences.licence_of("anything")
    else:
        assert licences.licence_of("anything") == licence


def test_white_space_does_not_make_a_document_new():
    deduplicator = Deduplicator()
    texts = ["a b\n  c", " a\tb c ", "a bc", "a b c d", ""]
    assert [deduplicator.is_new(content_digest(text)) for text in texts] == [True, False, True, True, True]


def test_the_validation_share_is_what_is_asked_and_only_grows():
    digests = [content_digest(str(number)) for number in range(20_000)]
    small = {digest for digest in digests if is_validation(digest, 0.01)}
    large = {digest for digest in digests if is_validation(digest, 0.05)}
    assert 150 < len(small) < 250
    assert small < large
    assert not any(is_validation(digest, 0.0) for digest in digests)
    # Purposes are independent: the tokenizer's sample is not the complement of the validation split.
    assert 0.3 < sum(hash_fraction(digest, "tokenizer") < 0.5 for digest in small) / len(small) < 0.7


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["def function(argument):\n    return argument + 1\n# file: a/b.py\n"] * 20, 320)


def test_long_documents_are_modules_under_headers_cut_to_length(tokenizer, tmp_path: Path):
    first = write(tmp_path / "pkg/a.py", "x = 1\n" * 10)
    second = write(tmp_path / "pkg/b.py", "y = 2\n" * 5000)
    third = write(tmp_path / "pkg/c.py", "z = 3\n" * 3)
    group = ModuleGroup("pkg", "MIT", (first, second, third), tmp_path)
    [(found, ids)] = long_documents(tokenizer, 500, [group])
    assert found is group
    assert len(ids) == 500
    assert ids[0] == 0
    text = decode_tokens(tokenizer, ids[1:])
    whole = "# file: pkg/a.py\n" + "x = 1\n" * 10 + "# file: pkg/b.py\n" + "y = 2\n" * 5000
    assert whole.startswith(text)
    assert ids[1:] == [*encode_texts(tokenizer, [whole[:77]])[0], *encode_texts(tokenizer, [whole[77:]])[0]][:499]


def test_long_documents_come_from_every_group_in_turn(tokenizer, tmp_path: Path):
    groups = []
    for name, count in (("a", 3), ("b", 1), ("c", 2), ("empty", 0)):
        paths = tuple(write(tmp_path / f"{name}/{number}.py", "x = 1\n" * 200) for number in range(count))
        groups.append(ModuleGroup(name, "MIT", paths, tmp_path))
    assert [group.name for group, _ in long_documents(tokenizer, 100, groups)] == ["a", "b", "c", "a", "c", "a"]
