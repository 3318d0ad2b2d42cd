"""A GGUF file as a parent: what transformers computes from it, token ids of its own tokenizer."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from puzzle_search.checkpoint import load_decoder, load_tokenizer
from puzzle_search.errors import InputError
from puzzle_search.imports import import_gguf
from puzzle_search.imports.gguf import tensors as tensors_module
from tests.imports.gguf_files import (
    HIDDEN,
    SPECIAL,
    WIDTH,
    PicoGguf,
    Type,
    dequantize,
    published_tokenizer,
)
from tests.pico import ROOT, environment

TEXTS = [
    "The capital of France is Paris, isn't it? WE'LL see; they've said so.",
    "def f(x):\n\tif x == 12345:\n        return  {'a': x ** 2}  # 3.14e-10\n\n\n",
    "  two leading spaces,   three inside, and trailing   ",
    "Größe, naïve café, ÅNGSTRÖM; Привет, мир! 你好世界。 नमस्ते १२३ ²³ Ⅷ",
    "camelCase HTTPServer snake_case x=y+z*w//3;print(f'{a!r:>10}')\r\n\r\n \n",
    f"{SPECIAL[1]}hi{SPECIAL[2]} {SPECIAL[1]}",
    *(f"{number} words of {number**3} and {number * 7}," for number in range(20)),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return published_tokenizer("gpt-2", TEXTS, size=400)


@pytest.fixture
def model(tokenizer: Tokenizer) -> PicoGguf:
    return PicoGguf(tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("arch", "quantised", "tied"),
    [
        ("llama", Type.Q4_1, True),
        ("llama", Type.Q4_K, False),
        ("qwen2", Type.Q8_0, True),
        ("qwen3", Type.Q4_K, False),
    ],
)
def test_the_folder_computes_what_transformers_reads_from_the_file(
    arch: str, quantised: Any, tied: bool, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = PicoGguf(arch=arch, quantised=quantised, tied=tied, tokenizer=tokenizer)
    model.write(tmp_path / "pico.gguf")
    imported = import_gguf(tmp_path / "pico.gguf", tmp_path / "parent", dtype="fp32")
    assert imported.types[quantised.name] >= 14
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="pico.gguf", dtype=torch.float32
    )
    ids = torch.arange(60).reshape(2, 30) * 5 % 400
    with torch.no_grad():
        expected = theirs(ids).logits
        assert expected.std() > 0.5
        torch.testing.assert_close(
            load_decoder(tmp_path / "parent")(ids), expected, atol=1e-4, rtol=0
        )
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "parent", dtype=torch.float32)
        torch.testing.assert_close(again(ids).logits, expected, atol=1e-4, rtol=0)


def test_mistral3_differs_from_llama_in_its_name_only(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for arch in ("llama", "mistral3"):
        file = PicoGguf(arch=arch, tokenizer=tokenizer).write(tmp_path / f"{arch}.gguf")
        import_gguf(file, tmp_path / arch)
    ids = torch.arange(40)[None]
    ours = load_decoder(tmp_path / "mistral3")
    assert torch.equal(ours(ids), load_decoder(tmp_path / "llama")(ids))
    config = json.loads((tmp_path / "mistral3" / "config.json").read_text())
    assert config["model_type"] == "mistral"
    assert config["sliding_window"] is None


@pytest.mark.parametrize(
    ("dtype", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_weights_are_rounded_as_torch_rounds(
    dtype: Any, kind: torch.dtype, model: PicoGguf, tmp_path: Path
) -> None:
    # Every pattern of the lower half, ties among them, under exponents that all dtypes have.
    bits = np.arange(WIDTH * HIDDEN, dtype=np.uint32) * 40503 % 2**27 + np.uint32(0x38000000)
    plain = bits.view(np.float32).reshape(WIDTH, HIDDEN)
    model.tensors["blk.1.ffn_up.weight"] = (plain, Type.F32, plain.shape)
    import_gguf(model.write(tmp_path / "a.gguf"), tmp_path / "parent", dtype=dtype)
    written = load_file(tmp_path / "parent" / "model.safetensors")
    assert torch.equal(
        written["model.layers.1.mlp.up_proj.weight"], torch.from_numpy(plain).to(kind)
    )
    stored, quantised, _ = model.tensors["blk.0.ffn_down.weight"]
    assert torch.equal(
        written["model.layers.0.mlp.down_proj.weight"],
        torch.from_numpy(dequantize(stored, quantised)).to(kind),
    )


def test_a_few_rows_at_a_time_give_the_same_file(
    model: PicoGguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = model.write(tmp_path / "a.gguf")
    import_gguf(file, tmp_path / "whole")
    monkeypatch.setattr(tensors_module, "_CHUNK", 3 * HIDDEN)
    import_gguf(file, tmp_path / "pieces")
    whole, pieces = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "pieces")
    )
    assert whole == pieces
    with safe_open(tmp_path / "whole" / "model.safetensors", framework="pt") as opened:
        assert opened.metadata()["source"] == "a.gguf"


def test_the_model_is_never_in_memory_as_a_whole(
    model: PicoGguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = model.write(tmp_path / "a.gguf")
    monkeypatch.setattr(tensors_module, "_CHUNK", 16 * HIDDEN)
    tracemalloc.start()
    imported = import_gguf(file, tmp_path / "parent", dtype="fp32")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < imported.weight_bytes / 3


def test_the_command_loads_no_torch(model: PicoGguf, tmp_path: Path) -> None:
    file = model.write(tmp_path / "a.gguf")
    code = (
        "import sys; from puzzle_search.cli.main import app\n"
        f"app(['import', 'gguf', {str(file)!r}, '--out', {str(tmp_path / 'parent')!r}], "
        "standalone_mode=False)\nassert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "5 x F32, 15 x Q8_0" in done.stdout


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"])
def test_token_ids_are_those_of_the_tokenizer_that_was_converted(pre: str, tmp_path: Path) -> None:
    original = published_tokenizer(pre, TEXTS)
    arch = "qwen2" if pre == "qwen2" else "llama"
    file = PicoGguf(arch=arch, pre=pre, tokenizer=original).write(tmp_path / "a.gguf")
    import_gguf(file, tmp_path / "parent")
    auto = AutoTokenizer.from_pretrained(tmp_path / "parent")
    read = load_tokenizer(tmp_path / "parent")
    bos = [1] if pre in ("llama-bpe", "tekken") else []
    for text in [*TEXTS, unicodedata.normalize("NFD", TEXTS[3])]:
        expected = original.encode(text, add_special_tokens=False).ids
        assert read.encode(text, add_special_tokens=False) == expected
        assert read.encode(text) == bos + expected
        assert auto.encode(text) == bos + expected
        assert read.decode(expected, skip_special_tokens=True) == original.decode(expected)
    assert (read.bos_token, read.eos_token, read.unk_token) == (SPECIAL[1], SPECIAL[2], SPECIAL[0])
    chat = read.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == f"{SPECIAL[1]}hi{SPECIAL[2]}"


def sentencepiece(model: PicoGguf, *, prefix: bool = True) -> PicoGguf:
    """A SentencePiece vocabulary of 300 tokens, 256 of which are bytes."""
    pieces = ["\u2581", "a", "b", "c", "ab", "\u2581a", "\u2581ab", "bc", "<|x|>"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(pieces) - 1), 4]
    padding = range(300 - len(tokens))
    scores = [0.0] * 263 + [-1.0, -3.0, -4.0, -2.0, 0.0] + [0.0] * len(padding)
    model.tokenizer = None
    model.tensors["token_embd.weight"] = PicoGguf().tensors["token_embd.weight"]
    model.keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens + [f"[PAD{i}]" for i in padding],
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types + [5] * len(padding),
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    return model


def test_sentencepiece_merges_the_best_score_first(model: PicoGguf, tmp_path: Path) -> None:
    import_gguf(sentencepiece(model).write(tmp_path / "a.gguf"), tmp_path / "parent")
    read = load_tokenizer(tmp_path / "parent")
    space, a, _, c, ab, _, space_ab, bc, marked = range(259, 268)
    # ab (-1) is merged before bc (-2), bc before what follows; then the space joins (-4).
    assert read.encode("abc") == [1, space_ab, c]
    assert read.encode("bca", add_special_tokens=False) == [space, bc, a]
    assert read.encode("c ab<|x|>", add_special_tokens=False) == [space, c, space_ab, marked]
    # Bytes of what is not in the vocabulary: e with an acute accent is C3 A9.
    assert read.encode("é", add_special_tokens=False) == [space, 3 + 0xC3, 3 + 0xA9]
    for text in ("abc  cab", " é", "a\nb"):
        assert read.decode(read.encode(text, add_special_tokens=False)) == text
    plain = sentencepiece(model, prefix=False)
    import_gguf(plain.write(tmp_path / "b.gguf"), tmp_path / "plain")
    read = load_tokenizer(tmp_path / "plain")
    assert read.encode("ab ab", add_special_tokens=False) == [ab, space_ab]


def test_llama3_divisors_become_its_rope_scaling(model: PicoGguf, tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    published = LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=131072,
        rope_parameters=rope | {"rope_theta": 50000.0},
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](published, "cpu")
    plain = 50000.0 ** -(torch.arange(0, 64, 2) / 64)
    model.tensors["rope_freqs.weight"] = ((plain / scaled).numpy(), Type.F32, (32,))
    import_gguf(model.write(tmp_path / "a.gguf"), tmp_path / "parent")
    config = json.loads((tmp_path / "parent" / "config.json").read_text())
    assert config["rope_scaling"] == rope
    model.tensors["rope_freqs.weight"] = ((plain / scaled).numpy() + 0.5, Type.F32, (32,))
    with pytest.raises(InputError, match="rope_freqs"):
        import_gguf(model.write(tmp_path / "b.gguf"), tmp_path / "other")


def test_the_metadata_becomes_the_config(model: PicoGguf, tmp_path: Path) -> None:
    model.keys = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 32,
        "llama.expert_count": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
        "tokenizer.ggml.eot_token_id": 5,
        "tokenizer.chat_template.tools": "{{ tools }}",
        "general.sampling.temp": 0.6,
        "general.sampling.top_k": 20,
    }
    imported = import_gguf(model.write(tmp_path / "a.gguf"), tmp_path / "parent")
    assert imported.not_taken == ("tokenizer.chat_template.tools",)
    config = json.loads((tmp_path / "parent" / "config.json").read_text())
    assert config["rope_theta"] == 50000.0
    assert config["rms_norm_eps"] == 1e-5
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    assert config["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    ids = load_tokenizer(tmp_path / "parent").encode(" ", "  ")
    assert (ids[0], ids[-1], ids.count(1), ids.count(2)) == (1, 2, 2, 2)
    generation = json.loads((tmp_path / "parent" / "generation_config.json").read_text())
    assert generation == {
        "bos_token_id": 1,
        "eos_token_id": [2, 5],
        "temperature": 0.6,
        "top_k": 20,
        "do_sample": True,
    }
