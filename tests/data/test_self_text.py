"""Text that a parent writes itself: kept, hashed, gone on with, and of that parent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

from puzzle_search.checkpoint import load_tokenizer
from puzzle_search.data import load_documents
from puzzle_search.data.self_text import find_source, write_self_text
from puzzle_search.errors import InputError
from puzzle_search.files import file_hash
from tests.pico import Pico, kill_after, run_command, run_here

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def parent(pico: Pico, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small parent, which chats."""
    folder = tmp_path_factory.mktemp("chats") / "parent"
    shutil.copytree(pico.parent, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def written(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_self_text("self:20000", parent, tmp_path_factory.mktemp("text") / "self")


def sampled(parent: Path, message: str, seed: int) -> str:
    """What transformers' own model answers, drawn by the inverse of the distribution function."""
    tokenizer = load_tokenizer(parent)
    model = LlamaForCausalLM.from_pretrained(parent)
    ids = tokenizer.encode(f"<user>{message}<assistant>", add_special_tokens=False)
    numbers, prompt = torch.Generator().manual_seed(seed), len(ids)
    while len(ids) < 256 and (len(ids) == prompt or ids[-1] != tokenizer.eos_token_id):
        with torch.no_grad():
            logits_V = model(torch.tensor([ids])).logits[0, -1].double()
        until_V = (logits_V / 0.8).softmax(-1).cumsum(-1)
        number = torch.rand((), generator=numbers, dtype=torch.float64)
        ids.append(int((until_V <= number).sum()))
    return str(tokenizer.decode(ids[prompt:], skip_special_tokens=True))


def test_it_is_the_parents_own_text(parent: Path, written: Path) -> None:
    records = [json.loads(line) for line in (written / "text.jsonl").read_text().splitlines()]
    chats = [record["messages"] for record in records if "messages" in record]
    assert 0.3 < len(chats) / len(records) < 0.7
    assert {tuple(one["role"] for one in chat) for chat in chats} == {("user", "assistant")}
    assert len({chat[0]["content"] for chat in chats}) > len(chats) / 2
    plain = [record["text"] for record in records if "text" in record]
    assert len(set(plain)) == len(plain)
    for number in (1, 3):  # chats are the odd ones
        asked, answered = records[number]["messages"]
        assert answered["content"] == sampled(parent, asked["content"], number)


def test_as_many_tokens_as_were_asked(written: Path) -> None:
    texts = (written / "text.jsonl").read_text().splitlines()
    assert 20000 / 256 < len(texts) < 20000 / 256 + 200  # none has more than the parent's context
    assert load_documents(written, "validation")


def test_it_is_written_once(parent: Path, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puzzle_search.data.self_text.load_tokenizer", None)  # no model is loaded
    before = (written / "text.jsonl").read_bytes()
    assert write_self_text("self:20000", parent, written) == written
    assert (written / "text.jsonl").read_bytes() == before
    told = yaml.safe_load((written / "self-text.yaml").read_text())
    assert told["sha256"] == file_hash(written / "text.jsonl")
    assert sorted(file.name for file in written.iterdir()) == ["self-text.yaml", "text.jsonl"]


def test_what_was_changed_is_refused(parent: Path, written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "self"
    shutil.copytree(written, folder)
    with pytest.raises(InputError, match="of another parent, or it has been changed"):
        write_self_text("self:10000", parent, folder)
    with (folder / "text.jsonl").open("a") as file:
        file.write('{"text": "not the parent"}\n')
    with pytest.raises(InputError, match="of another parent, or it has been changed"):
        write_self_text("self:20000", parent, folder)


def test_a_killed_one_goes_on(pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["library", "--parent", pico.parent, "--space", pico.space_file, "--data", "self:60000"]
    asked += ["--out", "library", "--tokens", 0, "--held-out-tokens", 512, "--length", 32]
    folder = Path(find_folder(pico, tmp_path, *asked))
    begun = [json.loads(line) for line in folder.joinpath("journal").read_text().splitlines()]
    assert find_source("self:60000", pico.parent) == str(folder.relative_to(tmp_path))
    texts = (folder / "text.jsonl").read_text().splitlines()
    kept = {json.dumps(entry["record"]) for entry in begun if "record" in entry}
    assert len(kept) >= 4
    assert kept < set(texts)
    run_here(*asked)
    assert (tmp_path / "library" / "library.json").is_file()


def find_folder(pico: Pico, tmp_path: Path, *asked: object) -> Path:
    """Where the text is being written when the command is killed."""
    from puzzle_search.data.self_text import _made_from
    from puzzle_search.files import value_hash

    key = value_hash(_made_from(pico.parent, 60000))
    folder = tmp_path / "runs" / "self-text" / key
    kill_after(folder / "journal", 5, *asked)
    return folder


@pytest.mark.parametrize("source", ["self:", "self:many", "self:0", "self:-1"])
def test_a_number_of_tokens_that_is_none_is_refused(pico: Pico, source: str) -> None:
    with pytest.raises(InputError, match="is no number of tokens"):
        find_source(source, pico.parent)


def test_children_are_not_judged_on_it(pico: Pico) -> None:
    ended = run_command("evaluate", pico.parent, pico.parent, "--data", "self")
    assert ended.returncode == 2
    assert "no text to judge its children on" in ended.stderr
    assert "Traceback" not in ended.stderr
