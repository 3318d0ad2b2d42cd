"""Tokenizers on disk: whole, damaged, or another model's; and what ends a text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from puzzle_search.checkpoint import load_tokenizer, stop_tokens
from puzzle_search.errors import InputError
from tests.pico import Pico


@pytest.fixture
def folder(pico: Pico, tmp_path: Path) -> Path:
    """A copy of the parent, without its weights."""
    return Path(
        shutil.copytree(
            pico.parent, tmp_path / "parent", ignore=shutil.ignore_patterns("*.safetensors")
        )
    )


def changed(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"model": 7}', "\x00"])
def test_a_damaged_tokenizer_is_one_message(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    if name == "tokenizer_config.json" and content in ("{}", '{"model": 7}'):
        load_tokenizer(folder)  # every setting has a default
        return
    with pytest.raises(InputError, match=f"tokenizer of {folder}") as caught:
        load_tokenizer(folder)
    assert "tokenizer files" in caught.value.remedy


def test_a_truncated_tokenizer_is_one_message(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match=f"tokenizer of {folder} cannot be read"):
        load_tokenizer(folder)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(folder: Path) -> None:
    load_tokenizer(folder)
    changed(folder / "config.json", vocab_size=299)
    with pytest.raises(InputError, match=r"token 299, the model 299 tokens \(vocab_size\)"):
        load_tokenizer(folder)


def test_every_file_may_name_tokens_that_end_a_text(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    changed(folder / "config.json", eos_token_id=None)
    assert stop_tokens(folder, tokenizer) == {0}  # the tokenizer's own
    changed(folder / "config.json", eos_token_id=[5, 6])
    (folder / "generation_config.json").write_text('{"eos_token_id": [6, 7]}')
    assert stop_tokens(folder, tokenizer) == {0, 5, 6, 7}
    (folder / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(InputError, match=r"generation_config\.json: eos_token_id"):
        stop_tokens(folder, tokenizer)
