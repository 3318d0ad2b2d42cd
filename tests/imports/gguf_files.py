"""GGUF files of pico models, written through the ``gguf`` package as llama.cpp's converter does."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

gguf = pytest.importorskip("gguf", reason="pip install 'puzzle-search[gguf]'")
Type = gguf.GGMLQuantizationType
quantize, dequantize = gguf.quants.quantize, gguf.quants.dequantize

HIDDEN, LAYERS, HEADS, KV_HEADS, WIDTH = 256, 2, 4, 2, 512
HEAD_DIM = {"llama": 64, "mistral3": 64, "qwen2": 64, "qwen3": 128}
SPECIAL = ["<|unk|>", "<|start|>", "<|stop|>"]
TEMPLATE = "{% for m in messages %}<|start|>{{ m.content }}<|stop|>{% endfor %}"

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def published_tokenizer(pre: str, texts: Iterable[str], size: int = 600) -> Tokenizer:
    """A tokenizer that cuts texts as those do which llama.cpp knows by this name.

    It is trained on texts that are not cut at all, so that tokens reach over every boundary and
    a wrong cut gives other ids.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = byte_level
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=12,
    )
    trained.train_from_iterator(texts, trainer)
    patterns = {"llama-bpe": LLAMA3, "qwen2": QWEN2, "tekken": TEKKEN}
    if pre in patterns:
        cut = pre_tokenizers.Split(Regex(patterns[pre]), behavior="isolated")
        trained.pre_tokenizer = pre_tokenizers.Sequence([cut, byte_level])
    else:
        gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        digits = pre_tokenizers.Digits(individual_digits=True)
        trained.pre_tokenizer = pre_tokenizers.Sequence([digits, gpt2]) if pre == "smollm" else gpt2
    if pre == "qwen2":
        trained.normalizer = normalizers.NFC()
    trained.model.ignore_merges = pre in ("llama-bpe", "tekken")
    trained.decoder = decoders.ByteLevel()
    return trained


@dataclass(kw_only=True)
class PicoGguf:
    """A random model; tests change what they are about, then write it.

    Attributes:
        quantised: the type of every matrix of the blocks.
        tensors: raw data, its type and its shape by name.
    """

    arch: str = "llama"
    pre: str = "gpt-2"
    quantised: Any = Type.Q8_0
    tied: bool = True
    tokenizer: Tokenizer | None = None
    keys: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, tuple[np.ndarray, Any, tuple[int, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        random = np.random.default_rng(0)
        rows = self.tokenizer.get_vocab_size() if self.tokenizer else 300
        head = HEAD_DIM[self.arch]
        query, kv = HEADS * head, KV_HEADS * head

        def matrix(name: str, out: int, into: int, kind: Any) -> None:
            if kind == Type.Q4_K:
                data = _random_q4_k(random, out, into)
            else:
                data = quantize(random.normal(0, 0.15, (out, into)).astype(np.float32), kind)
            self.tensors[name] = (data, kind, (out, into))

        def vector(name: str, size: int, around: float) -> None:
            values = (around + 0.1 * random.normal(size=size)).astype(np.float32)
            self.tensors[name] = (values, Type.F32, (size,))

        matrix("token_embd.weight", rows, HIDDEN, Type.Q8_0)
        vector("output_norm.weight", HIDDEN, 1)
        if not self.tied:
            matrix("output.weight", rows, HIDDEN, Type.F16)
        for layer in range(LAYERS):
            sizes = {
                "attn_q": (query, HIDDEN), "attn_k": (kv, HIDDEN), "attn_v": (kv, HIDDEN),
                "attn_output": (HIDDEN, query), "ffn_gate": (WIDTH, HIDDEN),
                "ffn_up": (WIDTH, HIDDEN), "ffn_down": (HIDDEN, WIDTH),
            }  # fmt: skip
            for name, (out, into) in sizes.items():
                matrix(f"blk.{layer}.{name}.weight", out, into, self.quantised)
            for name in ("attn_norm", "ffn_norm"):
                vector(f"blk.{layer}.{name}.weight", HIDDEN, 1)
            if self.arch == "qwen2":
                for name, size in (("attn_q", query), ("attn_k", kv), ("attn_v", kv)):
                    vector(f"blk.{layer}.{name}.bias", size, 0)
            if self.arch == "qwen3":
                vector(f"blk.{layer}.attn_q_norm.weight", head, 1)
                vector(f"blk.{layer}.attn_k_norm.weight", head, 1)

    def write(self, file: Path) -> Path:
        """Write the file."""
        writer = gguf.GGUFWriter(file, self.arch)
        head = HEAD_DIM[self.arch]
        writer.add_name("pico")
        writer.add_block_count(LAYERS)
        writer.add_context_length(128)
        writer.add_embedding_length(HIDDEN)
        writer.add_feed_forward_length(WIDTH)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_key_length(head)
        writer.add_value_length(head)
        writer.add_rope_dimension_count(head)
        writer.add_rope_freq_base(50000.0)
        writer.add_layer_norm_rms_eps(1e-5)
        if self.tokenizer:
            add_byte_level(writer, self.tokenizer, self.pre)
        for key, value in self.keys.items():
            _add(writer, key, value)
        for name, (data, kind, _) in self.tensors.items():
            writer.add_tensor(name, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file


def add_byte_level(writer: Any, tokenizer: Tokenizer, pre: str) -> None:
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    kinds = [
        gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token, _ in vocab
    ]
    kinds[0] = gguf.TokenType.UNKNOWN
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in vocab])
    writer.add_token_types(kinds)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)


def _add(writer: Any, key: str, value: Any) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    if isinstance(value, (str, list)):
        (writer.add_string if isinstance(value, str) else writer.add_array)(key, value)
    else:
        add[type(value)](key, value)


def _random_q4_k(random: np.random.Generator, out: int, into: int) -> np.ndarray:
    """Blocks of 256 values; the package reads Q4_K and does not write it, so bits are drawn."""
    blocks = random.integers(0, 256, (out, into // 256, 144), dtype=np.uint8)
    scales = np.array([0.0006, 0.004], dtype=np.float16)  # of the values, and of their minima
    blocks[..., :4] = scales.view(np.uint8)
    return blocks.reshape(out, -1)
