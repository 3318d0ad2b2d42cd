"""A BPE tokenizer of Hugging Face as llama.cpp reads it: byte-level, or SentencePiece's.

llama.cpp knows how text is split before merging by a name (``tokenizer.ggml.pre``), not by the
tokenizer's own expressions; one that it has no name for is refused, because any other name would
split text otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from puzzle_search.errors import InputError
from puzzle_search.files import read_json, read_text

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "\u2581"  # SentencePiece's
_SPECIAL = ("bos", "eos", "unk", "pad")
_KEY = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# (expressions, digits apart, merges ignored for whole words) to llama.cpp's name of the split.
_PRE = {
    ("", False, False): "gpt-2",
    ("", True, False): "smollm",
    (_SPLIT % "{1,3}", False, True): "llama-bpe",
    (_SPLIT % "{1,3}", False, False): "smaug-bpe",
    (_SPLIT % "", False, False): "qwen2",
}


def tokenizer_header(folder: Path, vocab_size: int) -> tuple[dict[str, Any], list[str]]:
    """GGUF keys of a folder's tokenizer, and what llama.cpp will do otherwise.

    Raises:
        InputError: there is none, or llama.cpp cannot split text as it does.
    """
    file = folder / "tokenizer.json"
    remedy = "copy the parent's tokenizer files there"
    if not file.exists() and (folder / "tokenizer.model").exists():
        raise InputError(
            f"{folder} has a tokenizer.model alone",
            remedy="load it with transformers and save it again, which adds tokenizer.json",
        )
    data = read_json(file, remedy=remedy)
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise _unknown(file, "not BPE")
    tokens, types = _tokens(file, data, model["vocab"], vocab_size)
    header: dict[str, Any] = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
    }
    notes: list[str] = []
    if model.get("byte_fallback"):
        header |= _sentencepiece(file, data, model, header)
    else:
        notes = _check_normalizer(file, data.get("normalizer"))
        header |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": _pre(file, data, model),
            "tokenizer.ggml.merges": [" ".join(pair) for pair in _merges(model)],
        }
    settings_file = folder / "tokenizer_config.json"
    settings = read_json(settings_file, remedy=remedy)
    for name in _SPECIAL:
        given = settings.get(f"{name}_token")
        text = given.get("content") if isinstance(given, dict) else given
        if text in tokens:
            header[f"tokenizer.ggml.{_KEY[name]}_token_id"] = tokens.index(text)
    header |= _added_around(file, header)
    template = folder / "chat_template.jinja"
    if template.exists():
        header["tokenizer.chat_template"] = read_text(template, remedy=remedy)
    elif isinstance(settings.get("chat_template"), str):
        header["tokenizer.chat_template"] = settings["chat_template"]
    return header, notes


def _unknown(file: Path, what: str) -> InputError:
    return InputError(
        f"{file}: llama.cpp's name for this tokenizer is not known: {what}",
        remedy="byte-level BPE with the splits of GPT-2, Llama 3, Qwen2 and SmolLM, and "
        "SentencePiece's BPE, are exported; "
        "convert the tokenizer of others with llama.cpp's own converter",
    )


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs in order, from either way of writing them."""
    pairs = (m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"])
    return [(first, second) for first, second in pairs]


def _sentencepiece(
    file: Path, data: Mapping[str, Any], model: Mapping[str, Any], header: Mapping[str, Any]
) -> dict[str, Any]:
    """Keys of a tokenizer that came from SentencePiece: earlier merges score higher."""
    space, prefix = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}, False
    normalizer = data.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    before = data.get("pre_tokenizer")
    if steps == [{"type": "Prepend", "prepend": _SPACE}, space] and before is None:
        prefix = True
    elif steps != [space] or before is not None:
        raise _unknown(file, f"normalizer {normalizer!r}, pre_tokenizer {before!r}")
    tokens, types = header["tokenizer.ggml.tokens"], list(header["tokenizer.ggml.token_type"])
    scores = [0.0] * len(tokens)
    ids = model["vocab"]
    for rank, (first, second) in reversed(list(enumerate(_merges(model)))):
        scores[ids[first + second]] = -float(rank)
    for value in range(256):
        number = ids.get(f"<0x{value:02X}>")
        if number is None:
            raise _unknown(file, f"no token for the byte {value}")
        types[number] = _BYTE
    if model.get("unk_token") in ids:
        types[ids[model["unk_token"]]] = _UNKNOWN
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def _check_normalizer(file: Path, normalizer: Any) -> list[str]:
    if normalizer is None:
        return []
    if normalizer == {"type": "NFC"}:
        return ["the tokenizer composes characters (NFC); llama.cpp takes text as it is"]
    raise _unknown(file, f"normalizer {normalizer!r}")


def _pre(file: Path, data: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    given = data.get("pre_tokenizer") or {}
    steps = given.get("pretokenizers", [given])
    splits = [step for step in steps if step.get("type") == "Split"]
    patterns = [step["pattern"].get("Regex") for step in splits]
    digits = any(step == {"type": "Digits", "individual_digits": True} for step in steps)
    levels = [step for step in steps if step.get("type") == "ByteLevel"]
    known = len(splits) + digits + len(levels) == len(steps) and len(levels) == 1
    isolated = all(s.get("behavior") == "Isolated" and not s.get("invert") for s in splits)
    if known and isolated and None not in patterns and not levels[0].get("add_prefix_space"):
        own_split = bool(levels[0].get("use_regex", True))
        name = _PRE.get(("|".join(patterns), digits, bool(model.get("ignore_merges"))))
        if name is not None and own_split is not bool(patterns):
            return name
    raise _unknown(file, f"pre_tokenizer {given!r}, ignore_merges {model.get('ignore_merges')!r}")


def _tokens(
    file: Path, data: Mapping[str, Any], vocabulary: Mapping[str, int], size: int
) -> tuple[list[str], list[int]]:
    """Texts and types by token id, what the vocabulary leaves free marked as unused."""
    texts = {number: text for text, number in vocabulary.items()}
    types = dict.fromkeys(texts, _NORMAL)
    for added in data.get("added_tokens") or []:
        texts[added["id"]] = added["content"]
        types[added["id"]] = _CONTROL if added.get("special") else _USER_DEFINED
    if max(texts) >= size:
        raise InputError(
            f"{file}: token {max(texts)} is beyond the vocabulary of {size}",
            remedy="use the tokenizer that belongs to the model",
        )
    tokens = [texts.get(number, f"[PAD{number}]") for number in range(size)]
    return tokens, [types.get(number, _UNUSED) for number in range(size)]


def _added_around(file: Path, header: Mapping[str, Any]) -> dict[str, bool]:
    """Whether the tokenizer puts a token before and behind text."""
    ids = Tokenizer.from_file(str(file)).encode("a").ids
    bos, eos = (header.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    return {
        "tokenizer.ggml.add_bos_token": len(ids) > 1 and ids[0] == bos,
        "tokenizer.ggml.add_eos_token": len(ids) > 1 and ids[-1] == eos,
    }
