"""Parquet, saved datasets and conversations."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from puzzle_search.checkpoint import load_tokenizer
from puzzle_search.data import Document, load_documents, pack_tokens, split_of
from puzzle_search.errors import InputError, MissingDependencyError
from tests.pico import Pico

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "there"}]
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"text": ["one", "two", ""], "other": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    assert load_documents(tmp_path) == [
        Document(name="a.parquet#1", text="one"),
        Document(name="a.parquet#2", text="two"),
    ]
    parquet.write_table(pyarrow.table({"messages": [CHAT]}), tmp_path / "b.parquet")
    [document] = load_documents(tmp_path / "b.parquet")
    assert list(document.messages) == CHAT
    parquet.write_table(pyarrow.table({"txt": ["one"]}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"c\.parquet, row 1: neither a text nor"):
        load_documents(tmp_path / "c.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "d.parquet").write_bytes(content[:-9])
    with pytest.raises(InputError, match=r"d\.parquet is truncated or damaged"):
        load_documents(tmp_path / "d.parquet")


@pytest.mark.slow
def test_a_saved_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_dict({"text": ["one", "two"]})
    chats = datasets.Dataset.from_dict({"messages": [CHAT]})
    one.save_to_disk(tmp_path / "single")
    assert [(d.name, d.text) for d in load_documents(tmp_path / "single")] == [
        ("data#1", "one"),
        ("data#2", "two"),
    ]
    datasets.DatasetDict({"a": one, "b": chats}).save_to_disk(tmp_path / "parts")
    found = load_documents(tmp_path / "parts")
    assert [d.name for d in found] == ["a#1", "a#2", "b#1"]
    assert list(found[-1].messages) == CHAT
    (tmp_path / "parts" / "a" / "dataset_info.json").unlink()
    with pytest.raises(InputError, match="no whole datasets folder"):
        load_documents(tmp_path / "parts")


@pytest.mark.parametrize("package", ["pyarrow", "datasets"])
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    name = "a.parquet" if package == "pyarrow" else "dataset_info.json"
    (tmp_path / name).touch()
    with pytest.raises(MissingDependencyError) as caught:
        load_documents(tmp_path)
    assert caught.value.remedy == "pip install 'puzzle-search[data]'"


def write_chats(folder: Path, *conversations: object) -> Path:
    file = folder / "chats.jsonl"
    file.write_text("".join(json.dumps({"messages": one}) + "\n" for one in conversations))
    return file


def test_conversations_go_through_the_chat_template(pico: Pico, tmp_path: Path) -> None:
    documents = load_documents(write_chats(tmp_path, CHAT))
    tokenizer = load_tokenizer(pico.parent)
    with pytest.raises(InputError, match=r"chats\.jsonl#1 is a conversation") as caught:
        pack_tokens(documents, tokenizer, length=4)
    assert "chat template" in caught.value.remedy
    tokenizer.chat_template = TEMPLATE
    expected = tokenizer.encode("[user]hi[assistant]there", add_special_tokens=False)
    packed = pack_tokens(documents, tokenizer, length=len(expected) + 1)
    assert packed.ids.tolist() == [[*expected, tokenizer.eos_token_id]]
    tokenizer.chat_template = TEMPLATE + tokenizer.eos_token  # which ends it by itself
    assert pack_tokens(documents, tokenizer, length=len(expected) + 1).ids.equal(packed.ids)


def test_what_a_template_refuses(pico: Pico, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(pico.parent)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match=r"chats\.jsonl#1.*roles must alternate"):
        pack_tokens(load_documents(write_chats(tmp_path, CHAT)), tokenizer, length=4)


@pytest.mark.parametrize("messages", [3, [3], [{"role": "user"}], [{"role": 1, "content": ""}]])
def test_messages_that_are_none(tmp_path: Path, messages: object) -> None:
    with pytest.raises(InputError, match=r"chats\.jsonl, line 2: neither a text nor a list"):
        load_documents(write_chats(tmp_path, CHAT, messages))


def test_conversations_have_a_split(tmp_path: Path) -> None:
    file = write_chats(tmp_path, *[CHAT] * 60)
    held_out = {document.name for document in load_documents(file, "validation")}
    assert held_out == {
        name for n in range(1, 61) if split_of(name := f"chats.jsonl#{n}") == "validation"
    }
    assert held_out
