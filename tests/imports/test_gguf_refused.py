"""GGUF files that cannot be a parent: one message, exit code 2, nothing written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.test_errors import refuse
from tests.imports.gguf_files import HIDDEN, PicoGguf, Type, published_tokenizer
from tests.imports.test_gguf import TEXTS, sentencepiece

NORM = "blk.0.ffn_norm.weight"


def without_tokenizer(model: PicoGguf) -> None:
    model.tokenizer = None


def key(name: str, value: object) -> Callable[[PicoGguf], None]:
    return lambda model: model.keys.update({name: value})


def tensor(name: str, values: np.ndarray, kind: Any) -> Callable[[PicoGguf], None]:
    return lambda model: model.tensors.update({name: (values, kind, values.shape)})


def without(name: str) -> Callable[[PicoGguf], None]:
    return lambda model: (model.tensors.pop(name), None)[1]


def other_pre(model: PicoGguf) -> None:
    model.pre = "deepseek-coder"


def damaged_pieces(model: PicoGguf) -> None:
    sentencepiece(model).keys["tokenizer.ggml.scores"] = [0.0] * 7


def damaged_merges(model: PicoGguf) -> None:
    sentencepiece(model).keys |= {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.merges": ["a b", "a q"],
    }


VALUES = np.ones(HIDDEN, dtype=np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_tokenizer, "holds no tokenizer"),
        (other_pre, "pre-tokenizer 'deepseek-coder' is not supported"),
        (damaged_pieces, "tokenizer.ggml.scores has 7 entries, not 300"),
        (damaged_merges, "the merge of 'a' and 'q' is not of tokens"),
        (key("llama.expert_count", 8), "llama.expert_count"),
        (key("llama.rope.scaling.type", "longrope"), "'longrope' is not supported"),
        (key("llama.attention.causal", False), "attention is not causal"),
        (key("split.count", 3), "one of 3 parts"),
        (key("general.type", "adapter"), "holds no model but: adapter"),
        (tensor("blk.0.ffn_gate_inp.weight", VALUES, Type.F32), "blk.0.ffn_gate_inp.weight"),
        (without(NORM), f"tensor {NORM} is missing"),
        (tensor(NORM, VALUES[1:], Type.F32), "has shape (255,), expected (256,)"),
        (tensor(NORM, VALUES.astype(np.int8), Type.I8), f"{NORM} is of type I8"),
        (tensor(NORM, VALUES * np.float32("nan"), Type.F32), "not finite"),
        (tensor(NORM, VALUES * 1e6, Type.F32), "holds 1e+06, more than fp16 can"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_refused_by_name(
    change: Callable[[PicoGguf], None],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = PicoGguf(tokenizer=published_tokenizer("gpt-2", TEXTS, size=300))
    change(model)
    file = model.write(tmp_path / "a.gguf")
    out = tmp_path / "parent"
    shown = refuse(monkeypatch, capsys, "import", "gguf", file, "--out", out, "--dtype", "fp16")
    assert message in shown
    assert str(file) in shown
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    model = PicoGguf(tokenizer=published_tokenizer("gpt-2", TEXTS, size=300))
    return model.write(tmp_path_factory.mktemp("whole") / "a.gguf").read_bytes()


@pytest.mark.parametrize("part", [0, 3, 20, 300, 5000, 0.02, 0.5, 0.999])
def test_a_file_that_ends_early_is_refused(
    part: float,
    whole: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(whole[: int(part * len(whole)) if 0 < part < 1 else int(part)])
    shown = refuse(monkeypatch, capsys, "import", "gguf", file, "--out", tmp_path / "parent")
    assert f"{file} is truncated, damaged, or not a GGUF file" in shown
    assert not (tmp_path / "parent").exists()


def test_types_and_architectures_of_later_versions_are_refused(
    whole: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "a.gguf"
    name = b"blk.0.attn_q.weight"
    dims = (2).to_bytes(4, "little") + (256).to_bytes(8, "little") * 2
    assert whole.count(name + dims + b"\x08") == 1
    file.write_bytes(whole.replace(name + dims + b"\x08", name + dims + b"\xc8"))
    shown = refuse(monkeypatch, capsys, "import", "gguf", file, "--out", tmp_path / "parent")
    assert "200" in shown
    assert "is not a valid GGMLQuantizationType" in shown
    file.write_bytes(whole.replace(b"llama", b"gemma"))
    shown = refuse(monkeypatch, capsys, "import", "gguf", file, "--out", tmp_path / "parent")
    assert "architecture 'gemma' is not supported" in shown
    assert "llama, mistral3, qwen2, qwen3" in shown


def test_other_folders_are_left_alone(
    whole: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(whole)
    shown = refuse(monkeypatch, capsys, "import", "gguf", file, "--out", tmp_path)
    assert "holds other files than an import" in shown
    assert file.read_bytes() == whole


def test_without_the_package_the_message_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "gguf"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gguf", None)
    shown = refuse(monkeypatch, capsys, "import", "gguf", "a.gguf", "--out", tmp_path / "parent")
    assert "pip install 'puzzle-search[gguf]'" in shown
