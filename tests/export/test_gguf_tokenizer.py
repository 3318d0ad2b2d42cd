"""llama.cpp splits text into the tokens that the `tokenizers` library does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers.processors import TemplateProcessing

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.errors import InputError
from puzzle_search.export import plan_export, write_export
from puzzle_search.export.gguf_tokenizer import tokenizer_header
from tests.export.engine_process import EngineProcess, config_of, write_random_child

SIZE = 700
# As published in the tokenizer.json of Llama 3 and of Qwen2.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
TEXTS = [
    "Hello, world! How's it going?",
    "  two  spaces   three ",
    "def f(x):\n    return x ** 2\n\n\n",
    "1234567 and 3.14159, 2026-11-28",
    "I'LL we'Re it'S don't",
    "naïve café, Ünïcödé, straße",
    "日本語のテキスト、中文。",
    "Привет, мир!",
    "🙂🚀 emoji",
    "\t\ttabs\r\nwindows\r\n",
    "a<|x|>b<|end|>",
    "x" * 40,
    "!!!???...---",
    "\uff46\uff55\uff4c\uff4c \uff11\uff12 ④ ½",
    "",
]
KINDS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
    **{
        name: pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        for name, pattern in (("llama-bpe", LLAMA3), ("smaug-bpe", LLAMA3), ("qwen2", QWEN2))
    },
}


def write_trained(folder: Path, kind: str, **settings: Any) -> Path:
    """A tokenizer trained on this file, which ignores merges where Llama 3's does."""
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    tokenizer.pre_tokenizer = KINDS[kind]
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - 20,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([Path(__file__).read_text(encoding="utf-8"), *TEXTS], trainer)
    tokenizer.add_tokens([AddedToken("<|x|>", normalized=False)])
    if kind == "llama-bpe":
        tokenizer.post_processor = TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    given = {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(given))
    return folder


def write_sentencepiece(folder: Path, *, prefix: bool) -> Path:
    """As transformers converts Llama 2's: no split, a byte for what has no token."""
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    replace = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), replace] if prefix else [replace]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - 20,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))],
        limit_alphabet=90,
        show_progress=False,
    )
    # Its merges grow within words, as SentencePiece's do.
    words = ["\u2581" + word for word in Path(__file__).read_text(encoding="utf-8").split()]
    tokenizer.train_from_iterator(words, trainer)
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = raw["added_tokens"][:3]  # bytes are no special tokens
    tokenizer = Tokenizer.from_str(json.dumps(raw))
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    given = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(given))
    return folder


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineProcess]:
    pytest.importorskip("xllamacpp", reason="pip install xllamacpp")
    process = EngineProcess(Path(__file__).with_name("llama_cpp_worker.py"))
    yield process
    process.close()


@pytest.mark.engines
@pytest.mark.parametrize("kind", [*KINDS, "sentencepiece", "sentencepiece-without-prefix"])
def test_tokens_are_those_of_tokenizers(kind: str, engine: EngineProcess, tmp_path: Path) -> None:
    config = config_of(1, vocab_size=SIZE)
    tokenizer = (
        write_trained(tmp_path / "tokenizer", kind)
        if kind in KINDS
        else write_sentencepiece(tmp_path / "tokenizer", prefix=kind == "sentencepiece")
    )
    spec = ArchitectureSpec.identity(config)
    child = write_random_child(tmp_path / "child", config, spec, tokenizer)
    write_export(plan_export(child, "llama.cpp"), child, tmp_path / "child.gguf")
    reference = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    found = engine.ask(file=str(tmp_path / "child.gguf"), texts=TEXTS)["ids"]
    assert dict(zip(TEXTS, found, strict=True)) == {
        text: reference.encode(text).ids for text in TEXTS
    }


def test_header(tmp_path: Path) -> None:
    folder = write_trained(tmp_path / "tokenizer", "llama-bpe", chat_template="{{ messages }}")
    header, notes = tokenizer_header(folder, SIZE)
    assert header["tokenizer.ggml.pre"] == "llama-bpe"
    assert header["tokenizer.ggml.tokens"][:2] == ["<|begin|>", "<|end|>"]
    assert header["tokenizer.ggml.tokens"][-1] == f"[PAD{SIZE - 1}]"
    assert header["tokenizer.ggml.token_type"][:3] == [3, 3, 1]
    assert header["tokenizer.ggml.token_type"][-1] == 5
    assert header["tokenizer.ggml.bos_token_id"] == 0
    assert header["tokenizer.ggml.eos_token_id"] == 1
    assert header["tokenizer.ggml.add_bos_token"] is True
    assert header["tokenizer.chat_template"] == "{{ messages }}"
    assert not notes


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"model": {"type": "WordPiece", "vocab": {}}}, "not BPE"),
    ],
)
def test_a_tokenizer_without_a_name_is_refused(
    change: dict[str, Any], told: str, tmp_path: Path
) -> None:
    folder = write_trained(tmp_path / "tokenizer", "gpt-2")
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=told):
        tokenizer_header(folder, SIZE)


def test_a_composing_normalizer_is_told(tmp_path: Path) -> None:
    folder = write_trained(tmp_path / "tokenizer", "qwen2")
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": {"type": "NFC"}}))
    _, notes = tokenizer_header(folder, SIZE)
    assert "NFC" in notes[0]


def test_more_tokens_than_the_model_has_are_refused(tmp_path: Path) -> None:
    folder = write_trained(tmp_path / "tokenizer", "gpt-2")
    with pytest.raises(InputError, match="beyond the vocabulary of 300"):
        tokenizer_header(folder, 300)
