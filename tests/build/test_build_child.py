"""Children against models put together by hand, and what a failure leaves behind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from puzzle_search.arch import ArchitectureSpec, BlockChoice, ParentConfig, SearchSpace
from puzzle_search.build import build_child
from puzzle_search.checkpoint import CheckpointWriter, load_decoder, read_model_config
from puzzle_search.errors import InputError
from puzzle_search.library import BldSettings, build_library
from tests.model.pico import random_ids, write_parent, write_tokenizer
from tests.pico import run_here

HEADS, HEAD_DIM, HIDDEN, EPSILON = 4, 16, 64, 1e-5
PAIRS = [("gqa_2", "mlp_256"), ("no_op", "mlp_512"), ("gqa_4", "linear"), ("linear", "no_op")]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A parent, its library, and the parent's logits by transformers."""

    parent: Path
    library: Path
    tokenizer: dict[str, bytes]
    ids: Tensor
    parent_logits: Tensor


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    model = write_parent(folder / "parent", num_hidden_layers=len(PAIRS))
    tokenizer = write_tokenizer(folder / "parent")
    config = ParentConfig.from_file(folder / "parent")
    space = SearchSpace.uniform(
        config, attention=["gqa_4", "gqa_2", "linear", "no_op"], ffn=["mlp_256", "linear", "no_op"]
    )
    build_library(
        folder / "parent",
        space,
        random_ids(8, 16),
        random_ids(4, 16, seed=1),
        folder / "library",
        BldSettings(tokens=0),
    )
    ids = random_ids(2, 20, seed=2)
    with torch.no_grad():
        logits = model(ids).logits
    return Made(
        parent=folder / "parent",
        library=folder / "library",
        tokenizer=tokenizer,
        ids=ids,
        parent_logits=logits,
    )


def spec_of(pairs: list[tuple[str, str]]) -> ArchitectureSpec:
    return ArchitectureSpec.of("parent", pairs)


def identity(made: Made) -> ArchitectureSpec:
    return ArchitectureSpec.identity(ParentConfig.from_file(made.parent))


def build(made: Made, out: Path, *, dtype: str = "fp32") -> Path:
    return build_child(made.parent, made.library, spec_of(PAIRS), out, dtype=dtype)


def logits_of(folder: Path, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return load_decoder(folder)(ids)


# The same child in plain torch, from the files of the parent and of the library.


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt() * weight


def turn(x: Tensor) -> Tensor:
    """Rotary positions as complex numbers: pair (i, i + half) turns by position * theta^(-2i/E)."""
    half = HEAD_DIM // 2
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * frequency
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double())
    turned = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], dim=-1).float()


def attention(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    length = x.shape[1]

    def heads(name: str) -> Tensor:
        projected = x @ weights[f"{name}.weight"].T
        return projected.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)

    q, k, v = turn(heads("q_proj")), turn(heads("k_proj")), heads("v_proj")
    k, v = (part.repeat_interleave(HEADS // part.shape[1], dim=1) for part in (k, v))
    scores = q @ k.transpose(-1, -2) / HEAD_DIM**0.5
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
    return mixed.transpose(1, 2).flatten(2) @ weights["o_proj.weight"].T


def mlp(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    gate, up = x @ weights["gate_proj.weight"].T, x @ weights["up_proj.weight"].T
    return (F.silu(gate) * up) @ weights["down_proj.weight"].T


def by_hand(made: Made, pairs: list[tuple[str, str]], ids: Tensor) -> Tensor:
    parent = load_file(made.parent / "model.safetensors")

    def weights(layer: int, subblock: str, variant: str) -> dict[str, Tensor]:
        file = made.library / f"layer_{layer:03d}" / f"{subblock}.{variant}.safetensors"
        if variant not in ("gqa_4", "mlp_512"):
            held = load_file(file)
            return {name.removeprefix(f"{subblock}."): held[name] for name in held}
        module, norm = (
            ("self_attn", "input_layernorm")
            if subblock == "attention"
            else ("mlp", "post_attention_layernorm")
        )
        prefix = f"model.layers.{layer}."
        own = {
            name.removeprefix(f"{prefix}{module}."): tensor
            for name, tensor in parent.items()
            if name.startswith(f"{prefix}{module}.")
        }
        return own | {"norm.weight": parent[f"{prefix}{norm}.weight"]}

    x = parent["model.embed_tokens.weight"][ids]
    for layer, pair in enumerate(pairs):
        for subblock, variant in zip(("attention", "ffn"), pair, strict=True):
            if variant == "no_op":
                continue
            held = weights(layer, subblock, variant)
            normed = rms_norm(x, held["norm.weight"])
            if variant == "linear":
                x = x + normed @ held["linear.weight"].T
            else:
                x = x + (attention if subblock == "attention" else mlp)(normed, held)
    return rms_norm(x, parent["model.norm.weight"]) @ parent["lm_head.weight"].T


def test_reference_by_hand_is_the_parent(made: Made) -> None:
    pairs = [("gqa_4", "mlp_512")] * len(PAIRS)
    torch.testing.assert_close(
        by_hand(made, pairs, made.ids), made.parent_logits, atol=1e-4, rtol=0
    )


def test_mixed_child(made: Made, tmp_path: Path) -> None:
    folder = build(made, tmp_path / "child")
    expected = by_hand(made, PAIRS, made.ids)
    assert not torch.allclose(expected, made.parent_logits, atol=0.1)
    torch.testing.assert_close(logits_of(folder, made.ids), expected, atol=1e-4, rtol=0)
    config, spec = read_model_config(folder)
    assert config == ParentConfig.from_file(made.parent)
    assert spec == spec_of(PAIRS)


def test_identity_child_is_the_parent(made: Made, tmp_path: Path) -> None:
    folder = build_child(
        made.parent, made.library, identity(made), tmp_path / "child", dtype="fp32"
    )
    torch.testing.assert_close(logits_of(folder, made.ids), made.parent_logits, atol=1e-4, rtol=0)
    written = load_file(folder / "model.safetensors")
    parent = load_file(made.parent / "model.safetensors")
    assert written.keys() == parent.keys()
    assert all(torch.equal(written[name], parent[name]) for name in parent)


def test_child_holds_the_tensors_of_its_spec_and_no_others(made: Made, tmp_path: Path) -> None:
    folder = build(made, tmp_path / "child", dtype="bf16")
    tensors = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    qkvo = [f"self_attn.{name}_proj.weight" for name in "qkvo"]
    ffn = [f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
    first, second = "input_layernorm.weight", "post_attention_layernorm.weight"
    by_layer = [
        [first, *qkvo, second, *ffn],
        [second, *ffn],
        [first, *qkvo, second, "mlp.linear_mlp.weight"],
        [first, "self_attn.linear_attn.weight"],
    ]
    assert set(tensors) == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        *(f"model.layers.{layer}.{name}" for layer in range(4) for name in by_layer[layer]),
    }
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_the_command_tells_what_engines_make_of_the_child(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec_of(PAIRS).write(tmp_path / "spec.yaml")
    files = ("--parent", made.parent, "--library", made.library, "--out", tmp_path / "child")
    run_here("build", tmp_path / "spec.yaml", *files)
    told = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert told["trtllm"].endswith("loads the folder as it is")
    assert "linear FFN in block 2 (refused)" in told["sglang"]
    assert f"export {tmp_path / 'child'} --to llama.cpp" in told["llama.cpp"]


def test_files_beside_the_weights(made: Made, tmp_path: Path) -> None:
    folder = build(made, tmp_path / "child")
    for name, content in made.tokenizer.items():
        assert (folder / name).read_bytes() == content
    expected = {*made.tokenizer, "config.json", "architecture.yaml", "model.safetensors"}
    expected |= {"configuration_decilm.py"}
    assert expected <= {file.name for file in folder.iterdir()}
    assert {file.name for file in folder.iterdir()} <= expected | {"generation_config.json"}
    assert ArchitectureSpec.from_file(folder / "architecture.yaml") == spec_of(PAIRS)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_child_is_replaced_whole(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "child"
    build_child(made.parent, made.library, identity(made), folder, dtype="fp32")
    (folder / "left-over.txt").write_text("of the older child")
    build(made, folder)
    assert read_model_config(folder)[1] == spec_of(PAIRS)
    assert not (folder / "left-over.txt").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["child"]


@pytest.mark.parametrize("older", [True, False], ids=["older child", "no child"])
@pytest.mark.parametrize("method", ["add", "finish"])
def test_failure_of_the_writer_leaves_what_was_there(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, older: bool
) -> None:
    folder = tmp_path / "child"
    if older:
        build_child(made.parent, made.library, identity(made), folder, dtype="fp32")
    before = content(folder) if older else {}
    whole = getattr(CheckpointWriter, method)
    calls = 0

    def fail(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if method == "finish" or calls == 6:
            raise OSError("no space left on device")
        whole(*arguments)

    monkeypatch.setattr(CheckpointWriter, method, fail)
    with pytest.raises(OSError, match="no space"):
        build(made, folder)
    assert [entry.name for entry in tmp_path.iterdir()] == (["child"] if older else [])
    assert not older or content(folder) == before


@pytest.mark.parametrize("damage", ["cut", "changed", "deleted"])
def test_damaged_library_leaves_the_older_child(made: Made, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "out" / "child"
    build_child(made.parent, made.library, identity(made), folder, dtype="fp32")
    before = content(folder)
    file = made.library / "layer_002" / "ffn.linear.safetensors"
    sound = file.read_bytes()
    try:
        if damage == "deleted":
            file.unlink()
        else:
            file.write_bytes(sound[:-8] if damage == "cut" else sound[:-1] + b"\x01")
        with pytest.raises(InputError, match=r"ffn\.linear\.safetensors") as caught:
            build(made, folder)
    finally:
        file.write_bytes(sound)
    assert caught.value.remedy
    assert content(folder) == before
    assert [entry.name for entry in folder.parent.iterdir()] == ["child"]


@pytest.mark.parametrize("kind", ["file", "empty folder", "folder", "parent"])
def test_what_is_no_child_is_not_overwritten(made: Made, tmp_path: Path, kind: str) -> None:
    target = made.parent if kind == "parent" else tmp_path / "precious"
    if kind == "file":
        target.write_text("precious")
    elif kind != "parent":
        target.mkdir()
        if kind == "folder":
            (target / "config.json").write_text("{}")
    before = content(target) if target.is_dir() else target.read_bytes()
    with pytest.raises(InputError, match="is not a child") as caught:
        build(made, target)
    assert "another folder" in caught.value.remedy
    assert (content(target) if target.is_dir() else target.read_bytes()) == before


def refused(made: Made, spec: ArchitectureSpec, out: Path, pattern: str, **options: str) -> None:
    with pytest.raises(InputError, match=pattern) as caught:
        build_child(made.parent, made.library, spec, out, **options)
    assert caught.value.remedy
    assert list(out.parent.iterdir()) == []


def test_specs_that_cannot_be_built(made: Made, tmp_path: Path) -> None:
    out, own = tmp_path / "child", ("gqa_4", "mlp_512")
    refused(made, spec_of([own] * 3), out, "covers 3 layers")
    refused(made, spec_of([own] * 3 + [("gqa_1", "mlp_512")]), out, "no attention gqa_1 for layer")
    refused(made, spec_of([own] * 3 + [("gqa_8", "mlp_512")]), out, "gqa_8 does not fit")
    merged = tuple(
        BlockChoice(attention="gqa_4", ffn="mlp_512", layers=layers)
        for layers in ((0,), (1, 2), (3,))
    )
    refused(made, ArchitectureSpec(parent="parent", blocks=merged), out, "for layers 1-2")
    refused(made, identity(made), out, "fp16", dtype="fp16")


def test_library_that_is_not_finished(made: Made, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"library\.json does not exist") as caught:
        build_child(made.parent, tmp_path, identity(made), tmp_path / "child")
    assert "puzzle-search library" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []
