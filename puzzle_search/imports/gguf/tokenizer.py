"""The tokenizer in a GGUF file, as a ``tokenizer.json`` that gives the same token ids."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers.processors import TemplateProcessing

from puzzle_search.imports.gguf.source import GgufSource

# Token types of the format.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = range(1, 6)

_SPACE = "\u2581"  # stands for a space in SentencePiece's pieces
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


@dataclass(frozen=True, kw_only=True)
class _Rules:
    """What a pre-tokenizer's name stands for: how texts are cut before byte pairs are merged.

    Attributes:
        pattern: regular expression of a piece; None is GPT-2's.
        single_digits: digits are cut apart first.
        compose: texts are brought to Unicode's composed form first (NFC).
        whole_words: a piece that is a token of its own is taken without merging.
        add_bos: texts begin with the first token where the file does not say.
    """

    pattern: str | None = None
    single_digits: bool = False
    compose: bool = False
    whole_words: bool = False
    add_bos: bool = False


_GPT2 = _Rules()
_LLAMA3 = _Rules(pattern=rf"{_WORD}|\p{{N}}{{1,3}}|{_TAIL}", whole_words=True, add_bos=True)
_QWEN2 = _Rules(pattern=rf"{_WORD}|\p{{N}}|{_TAIL}", compose=True)
_TEKKEN = _Rules(
    pattern=rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    whole_words=True,
    add_bos=True,
)
_RULES = {
    "deepseek-r1-qwen": _QWEN2,
    "gpt-2": _GPT2,
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
    "smollm": _Rules(single_digits=True),
    "tekken": _TEKKEN,
}
_IDS = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "padding_token_id",
    "unk_token_id": "unknown_token_id",
}
_SENTENCEPIECE_IDS = {"unk_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_MORE_STOPS = ("eot_token_id", "eom_token_id")
_KNOWN = {
    *("model", "pre", "tokens", "token_type", "scores", "merges", *_IDS.values(), *_MORE_STOPS),
    *("add_bos_token", "add_eos_token", "add_space_prefix"),
}


@dataclass(frozen=True, kw_only=True)
class GgufTokenizer:
    """A tokenizer as a GGUF file describes it.

    Attributes:
        tokens: every token by its id.
        types: their types.
        ids: ids of special tokens under their names in a ``config.json``.
        stop_ids: tokens that end an answer.
        chat_template: Jinja; empty if the file has none.
        not_taken: keys that say something which a ``tokenizer.json`` has no place for.
    """

    tokens: list[str] = field(repr=False)
    types: list[int] = field(repr=False)
    merges: list[tuple[str, str]] = field(repr=False)
    rules: _Rules | None
    ids: dict[str, int]
    stop_ids: list[int]
    add_bos: bool
    add_eos: bool
    space_prefix: bool
    chat_template: str = field(repr=False)
    not_taken: tuple[str, ...]

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids for a ``config.json``."""
        return {name: i for name, i in self.ids.items() if name != "unk_token_id"}

    @classmethod
    def read(cls, source: GgufSource, vocab_size: int) -> GgufTokenizer:
        """Read the tokenizer of a file whose embedding has so many rows.

        Raises:
            InputError: there is none, or one of a kind that is not supported.
        """
        key = "tokenizer.ggml"
        if not source.keys("tokenizer."):
            raise source.refuse(
                "holds no tokenizer", remedy="use a file with the tokenizer.ggml keys"
            )
        model = source.get(f"{key}.model", str)
        name = source.get(f"{key}.pre", str, "default")
        if model not in ("gpt2", "llama"):
            raise source.refuse(
                f"tokenizer model {model!r} is not supported",
                remedy="use a model whose tokenizer is gpt2 (byte-level BPE) or llama "
                "(SentencePiece BPE)",
            )
        if model == "gpt2" and name not in _RULES:
            raise source.refuse(
                f"pre-tokenizer {name!r} is not supported: other rules give other tokens",
                remedy=f"use a file whose tokenizer.ggml.pre is one of {', '.join(_RULES)}",
            )
        rules = _RULES[name] if model == "gpt2" else None
        tokens = source.get_list(f"{key}.tokens", str)
        if len(tokens) > vocab_size or len(set(tokens)) < len(tokens):
            raise source.refuse(
                f"{len(tokens)} tokens, of which {len(set(tokens))} differ, do not fit the "
                f"{vocab_size} rows of the embedding",
                remedy="use a file whose tokenizer belongs to its model",
            )
        types = source.get_list(f"{key}.token_type", int, len(tokens))
        if rules is None:
            merges = _merges_by_score(
                tokens, types, source.get_list(f"{key}.scores", float, len(tokens))
            )
        else:
            merges = [_pair(text) for text in source.get_list(f"{key}.merges", str)]
        _check_merges(source, merges, tokens, types)
        said = source.keys(f"{key}.")
        defaults = _SENTENCEPIECE_IDS if rules is None else {}
        ids = {
            name: _id(source, stored, tokens, defaults.get(name, -1))
            for name, stored in _IDS.items()
        }
        stops = [ids["eos_token_id"], *(_id(source, name, tokens) for name in _MORE_STOPS)]
        template = "tokenizer.chat_template"
        return cls(
            tokens=tokens,
            types=types,
            merges=merges,
            rules=rules,
            ids={name: i for name, i in ids.items() if i is not None},
            stop_ids=list(dict.fromkeys(i for i in stops if i is not None)),
            add_bos=source.get(f"{key}.add_bos_token", bool, rules is None or rules.add_bos),
            add_eos=source.get(f"{key}.add_eos_token", bool, False),
            space_prefix=rules is None and source.get(f"{key}.add_space_prefix", bool, True),
            chat_template=source.get(template, str, ""),
            not_taken=tuple(
                sorted(
                    (said - {f"{key}.{known}" for known in _KNOWN})
                    | (source.keys(f"{template}") - {template})
                )
            ),
        )

    def build(self) -> Tokenizer:
        """The tokenizer itself."""
        # Rows that only pad the embedding have names too, which no text shall ever yield.
        vocab = {
            token: i
            for i, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind != _UNUSED
        }
        built = self._byte_level(vocab) if self.rules else self._sentencepiece(vocab)
        built.add_tokens(
            [
                AddedToken(token, special=kind != _USER_DEFINED, normalized=False)
                for token, kind in zip(self.tokens, self.types, strict=True)
                if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
            ]
        )
        bos = [self.ids["bos_token_id"]] if self.add_bos and "bos_token_id" in self.ids else []
        eos = [self.ids["eos_token_id"]] if self.add_eos and "eos_token_id" in self.ids else []
        first, last = ([self.tokens[i] for i in ids] for ids in (bos, eos))
        if bos or eos:
            built.post_processor = TemplateProcessing(
                single=[*first, "$A", *last],
                pair=[*first, "$A", *last, *first, "$B:1", *last],
                special_tokens=[(self.tokens[i], i) for i in {*bos, *eos}],
            )
        return built

    def _byte_level(self, vocab: dict[str, int]) -> Tokenizer:
        assert self.rules is not None
        built = Tokenizer(models.BPE(vocab, self.merges, ignore_merges=self.rules.whole_words))
        cuts: list[Any] = [pre.Digits(individual_digits=True)] if self.rules.single_digits else []
        if self.rules.pattern:
            cuts.append(pre.Split(Regex(self.rules.pattern), behavior="isolated"))
        own_pattern = self.rules.pattern is None
        cuts.append(pre.ByteLevel(add_prefix_space=False, use_regex=own_pattern))
        built.pre_tokenizer = pre.Sequence(cuts)
        if self.rules.compose:
            built.normalizer = normalizers.NFC()
        built.decoder = decoders.ByteLevel()
        return built

    def _sentencepiece(self, vocab: dict[str, int]) -> Tokenizer:
        unknown = self._special("unk_token_id")
        built = Tokenizer(
            models.BPE(vocab, self.merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
        )
        spaces = normalizers.Replace(" ", _SPACE)
        prefix = [normalizers.Prepend(_SPACE)] if self.space_prefix else []
        built.normalizer = normalizers.Sequence([*prefix, spaces])
        steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        strip = [decoders.Strip(" ", 1, 0)] if self.space_prefix else []
        built.decoder = decoders.Sequence([*steps, *strip])
        return built

    def _special(self, name: str) -> str | None:
        return self.tokens[self.ids[name]] if name in self.ids else None

    def settings(self, max_length: int) -> dict[str, Any]:
        """The content of ``tokenizer_config.json``."""
        named = {name.removesuffix("_id"): self._special(name) for name in _IDS}
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{name: token for name, token in named.items() if token is not None},
            "model_max_length": max_length,
            "clean_up_tokenization_spaces": False,
        }


def _id(source: GgufSource, name: str, tokens: list[str], default: int = -1) -> int | None:
    """The id of a special token; None where the file names none."""
    found = source.get(f"tokenizer.ggml.{name}", int, default)
    if found >= len(tokens):
        raise source.refuse(
            f"tokenizer.ggml.{name} is {found} of {len(tokens)} tokens",
            remedy="use a file whose tokenizer is whole",
        )
    return found if found >= 0 else None


def _pair(text: str) -> tuple[str, str]:
    first, _, second = text.partition(" ")
    return first, second


def _check_merges(
    source: GgufSource, merges: list[tuple[str, str]], tokens: list[str], types: list[int]
) -> None:
    known = {token for token, kind in zip(tokens, types, strict=True) if kind != _UNUSED}
    for first, second in merges:
        if not {first, second, first + second} <= known:
            raise source.refuse(
                f"the merge of {first!r} and {second!r} is not of tokens",
                remedy="use a file whose tokenizer is whole",
            )


def _merges_by_score(
    tokens: list[str], types: list[int], scores: list[float]
) -> list[tuple[str, str]]:
    """SentencePiece's merges: any two pieces that make a third, the one of the best score first."""
    pieces = {token: i for i, token in enumerate(tokens) if types[i] == _NORMAL}
    ranked = []
    for token, i in pieces.items():
        for cut in range(1, len(token)):
            first, second = token[:cut], token[cut:]
            if first in pieces and second in pieces:
                ranked.append((-scores[i], pieces[first], pieces[second], first, second))
    return [(first, second) for *_, first, second in sorted(ranked)]
