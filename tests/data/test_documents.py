"""Documents and their held-out splits."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzle_search.data import Document, load_documents, split_of
from puzzle_search.errors import InputError

# From `printf NAME | sha256sum`: the first 16 hex digits modulo 20, 0 is test and 1 is validation.
KNOWN = {
    "operator.py": "test",
    "runpy.py": "test",
    "datetime.py": "validation",
    "json/encoder.py": "validation",
    "json/decoder.py": "train",
    "os.py": "train",
}


def expected_split(name: str) -> str:
    bucket = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) % 20
    return ["test", "validation", *["train"] * 18][bucket]


@pytest.mark.parametrize("name", KNOWN)
def test_known_names_keep_their_split(name: str) -> None:
    assert split_of(name) == KNOWN[name]


def test_splits_by_the_hash_of_the_name() -> None:
    listing = [f"package/module_{number}.py" for number in range(2000)]
    splits = {name: split_of(name) for name in listing}
    assert splits == {name: expected_split(name) for name in listing}
    counts = Counter(splits.values())
    assert 50 < counts["test"] < 150  # 5% each
    assert 50 < counts["validation"] < 150


@given(st.text(max_size=30))
def test_a_split_is_stable(name: str) -> None:
    assert split_of(name) == split_of(name) == expected_split(name)


def test_a_name_that_is_no_utf8_has_a_split() -> None:
    assert split_of("caf\udce9.txt") in {"train", "validation", "test"}


def test_splits_are_disjoint_and_whole(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    parts = [load_documents(tmp_path, split) for split in ("train", "validation", "test")]
    joined = [document.name for part in parts for document in part]
    assert len(joined) == len(set(joined)) == 100
    assert sorted(joined) == sorted(document.name for document in load_documents(tmp_path))


def test_a_folder_is_read_in_a_fixed_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.md").write_text("bee")
    (tmp_path / "a.txt").write_text("ä", encoding="utf-8")
    (tmp_path / "sub" / "c.py").write_text("c = 1")
    (tmp_path / "ignored.bin").write_bytes(b"\xff")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder.txt").mkdir()
    assert load_documents(tmp_path) == [
        Document(name="a.txt", text="ä"),
        Document(name="b.md", text="bee"),
        Document(name="sub/c.py", text="c = 1"),
    ]
    assert load_documents(tmp_path / "b.md") == [Document(name="b.md", text="bee")]


def test_jsonl(tmp_path: Path) -> None:
    # U+2028 ends a line for str.splitlines, but not in JSON.
    texts = ["one", "two\u2028lines", "three\nlines"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join([lines[0], "", *lines[1:], ""]), encoding="utf-8")
    assert load_documents(file) == [
        Document(name="a.jsonl#1", text="one"),
        Document(name="a.jsonl#3", text="two\u2028lines"),
        Document(name="a.jsonl#4", text="three\nlines"),
    ]


@pytest.mark.parametrize(
    "line", ["{", "3", "[]", "null", '{"txt": "a"}', '{"text": 3}', '"text"', "9" * 5000]
)
def test_jsonl_errors_name_the_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"text": "good"}}\n{line}\n')
    with pytest.raises(InputError, match=r"a\.jsonl, line 2"):
        load_documents(file)


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"a\.txt is not UTF-8"):
        load_documents(tmp_path)


def test_a_source_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist") as caught:
        load_documents(tmp_path / "nowhere")
    assert "python-stdlib" in caught.value.remedy


def test_a_source_without_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no text"):
        load_documents(tmp_path)
    file = tmp_path / "a.txt"
    file.write_text("text")
    others = {"train", "validation", "test"} - {expected_split("a.txt")}
    for split in others:
        with pytest.raises(InputError, match=f"no document in the {split} split"):
            load_documents(file, split)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def stdlib() -> list[Document]:
    return load_documents("python-stdlib")


def test_the_standard_library(stdlib: list[Document]) -> None:
    named = {document.name: document.text for document in stdlib}
    assert {"os.py", "json/decoder.py", "asyncio/tasks.py"} <= named.keys()
    assert named["json/decoder.py"] == Path(json.decoder.__file__).read_text(encoding="utf-8")
    assert len(named) == len(stdlib)
    assert [document.name for document in stdlib] == sorted(named, key=lambda name: Path(name))


def test_the_standard_library_holds_nothing_installed(stdlib: list[Document]) -> None:
    assert not [d.name for d in stdlib if "site-packages" in d.name or "dist-packages" in d.name]
    assert not [d.name for d in stdlib if Path(d.name).is_absolute() or ".." in d.name]
