"""Parents in 8 bits are read as what they mean; every other quantisation is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.build import build_child
from puzzle_search.checkpoint import CheckpointReader, load_decoder
from puzzle_search.errors import InputError
from puzzle_search.files import Journal
from puzzle_search.runtime import ServingDecoder, precision_on
from puzzle_search.score import score_replacements
from tests.cli.test_errors import library_arguments, refuse
from tests.model.pico import random_ids, write_parent
from tests.pico import Pico

SINGLE = "model.safetensors"
KEY = "model.layers.1.self_attn.k_proj"
FP8 = torch.float8_e4m3fn
BLOCK = [48, 40]  # divides none of the pico parent's matrices


def quantise(folder: Path, out: Path, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Compress a parent's matrices as llm-compressor does; what they are decompressed to."""
    compressors = pytest.importorskip("compressed_tensors.compressors")
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**settings))
    name = f"{settings['type']}-quantized"
    compressor = compressors.BaseCompressor.get_value_from_registry(name)
    shutil.copytree(folder, out)
    tensors, plain = load_file(out / SINGLE), {}
    for key, weight in list(tensors.items()):
        plain[key] = weight
        if key.endswith("_proj.weight"):
            given = {"weight": weight, "weight_scale": scale_of(weight, settings)}
            small = compressor.compress(given, scheme)
            plain[key] = compressor.decompress(small, scheme)["weight"].contiguous()
            module = key.removesuffix("weight")
            tensors |= {module + part: tensor.contiguous() for part, tensor in small.items()}
            tensors[module + "input_scale"] = torch.tensor([0.5])
    tensors["model.layers.0.self_attn.k_scale"] = torch.tensor(0.25)
    save_file(tensors, out / SINGLE, metadata={"format": "pt"})
    described = {
        "quant_method": "compressed-tensors",
        "format": name,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": settings}},
        "ignore": ["lm_head"],
    }
    configure(out, quantization_config=described)
    return plain


def scale_of(weight: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    top = 448 if settings["type"] == "float" else 127
    if settings["strategy"] == "tensor":
        return weight.abs().max().reshape(1) / top
    if settings["strategy"] == "channel":
        return weight.abs().amax(1, keepdim=True) / top
    rows = [part.abs() for part in weight.split(settings["block_structure"][0])]
    wide = settings["block_structure"][1]
    return torch.tensor([[cell.max() for cell in row.split(wide, 1)] for row in rows]) / top


def configure(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def settings_of(kind: str, strategy: str) -> dict[str, Any]:
    blocks = {"block_structure": BLOCK} if strategy == "block" else {}
    return {"num_bits": 8, "type": kind, "strategy": strategy, "symmetric": True} | blocks


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        ("float", "tensor"),
        ("float", "channel"),
        ("float", "block"),
        ("int", "tensor"),
        ("int", "channel"),
    ],
)
def test_what_compressed_tensors_decompresses_is_read(
    kind: str, strategy: str, tmp_path: Path
) -> None:
    write_parent(tmp_path / "plain")
    plain = quantise(tmp_path / "plain", tmp_path / "small", settings_of(kind, strategy))
    save_file(plain, tmp_path / "plain" / SINGLE)
    ids = random_ids(1, 24)
    expected = load_decoder(tmp_path / "plain")(ids)
    assert torch.equal(load_decoder(tmp_path / "small")(ids), expected)
    cpu = torch.device("cpu")
    serving, other = (
        ServingDecoder.from_checkpoint(tmp_path / name, precision_on("fp32", cpu), cpu)
        for name in ("small", "plain")
    )
    for mine, theirs in zip(serving.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def eight_bits(
    folder: Path, scales: str, block: int | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Store a parent's matrices in FP8 by hand; name and value of each, as stored times scale."""
    tensors = load_file(folder / SINGLE)
    for key, weight in list(tensors.items()):
        if not key.endswith("_proj.weight"):
            continue
        rows, columns = weight.shape
        high, wide = (block, block) if block else (rows, columns)
        cells = weight.reshape(rows // high, high, columns // wide, wide)
        scale = cells.abs().amax((1, 3), keepdim=True) / 448
        stored = (cells / scale).to(FP8)
        tensors[key] = stored.reshape(rows, columns)
        tensors[key.removesuffix("weight") + scales] = (
            scale.reshape(rows // high, columns // wide) if block else scale.reshape(())
        )
        yield key, (stored.float() * scale).reshape(rows, columns)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def test_blocks_as_deepseek_and_qwen_store_them(tmp_path: Path) -> None:
    write_parent(tmp_path)
    expected = dict(eight_bits(tmp_path, "weight_scale_inv", block=32))
    described = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": [32, 32],
        "modules_to_not_convert": ["lm_head"],
    }
    configure(tmp_path, quantization_config=described)
    reader = CheckpointReader(tmp_path)
    for name, weight in expected.items():
        torch.testing.assert_close(reader.tensor(name, tuple(weight.shape)), weight)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=FineGrainedFP8Config(dequantize=True), dtype=torch.float32
    )
    ids = random_ids(1, 24)
    with torch.no_grad():
        torch.testing.assert_close(load_decoder(tmp_path)(ids), theirs(ids).logits)


@pytest.mark.parametrize("form", ["fp8", "modelopt", "hf_quant_config.json", "nothing"])
def test_one_scale_for_each_matrix(form: str, tmp_path: Path) -> None:
    write_parent(tmp_path)
    # Mistral's name; the others' are without `_inv`. All of them are multiplied.
    expected = dict(eight_bits(tmp_path, "weight_scale_inv" if form == "fp8" else "weight_scale"))
    if form == "fp8":
        configure(tmp_path, quantization_config={"quant_method": "fp8"})
    if form == "modelopt":
        configure(tmp_path, quantization_config={"quant_method": form, "quant_algo": "FP8"})
    if form == "hf_quant_config.json":
        section = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
        (tmp_path / form).write_text(json.dumps({"quantization": section}))
    reader = CheckpointReader(tmp_path)
    for name, weight in expected.items():
        torch.testing.assert_close(reader.tensor(name, tuple(weight.shape)), weight)


def test_library_scores_and_child_are_those_of_the_plain_parent(pico: Pico, tmp_path: Path) -> None:
    plain = quantise(pico.parent, tmp_path / "small", settings_of("float", "channel"))
    shutil.copytree(pico.parent, tmp_path / "plain")
    save_file(plain, tmp_path / "plain" / SINGLE, metadata={"format": "pt"})
    values, weights = [], []
    for name in ("small", "plain"):
        one = Pico(parent=tmp_path / name, corpus=pico.corpus, space_file=pico.space_file)
        library = one.library(tmp_path / f"{name}_library")
        scores = score_replacements(
            one.parent,
            library,
            [(0, 0, "gqa_1", ""), (2, 2, "", "mlp_256")],
            one.tokens("validation", 256),
            journal=Journal(tmp_path / f"{name}.jsonl"),
        )
        values.append([row.value for row in scores.table("pico", data="text").rows])
        spec = ArchitectureSpec.of("small", [("gqa_1", "mlp_512"), *[("gqa_2", "mlp_512")] * 2])
        child = build_child(one.parent, library.folder, spec, tmp_path / f"{name}_child")
        weights.append(load_file(child / SINGLE))
        assert "quantization_config" not in (child / "config.json").read_text()
    assert values[0] == values[1]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


BYTES = torch.zeros(64, 32, dtype=torch.uint8)
WORDS = torch.zeros(8, 64, dtype=torch.int32)
ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("stored", "config", "message"),
    [
        ({}, {"quant_method": "gptq", "bits": 4}, "quantised by gptq"),
        ({}, {"quant_method": "awq", "bits": 4}, "quantised by awq"),
        ({}, {"quant_method": "bitsandbytes", "load_in_4bit": True}, "quantised by bitsandbytes"),
        ({}, {"quant_method": "mxfp4"}, "quantised by mxfp4"),
        ({}, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4, by ModelOpt"),
        (
            {},
            {"quant_method": "compressed-tensors", "format": "pack-quantized"},
            "pack-quantized, by compressed-tensors",
        ),
        (
            {},
            {
                "quant_method": "compressed-tensors",
                "format": "mixed-precision",
                "config_groups": {"a": {"format": "nvfp4-pack-quantized"}},
            },
            "nvfp4-pack-quantized, by compressed-tensors",
        ),
        (
            {},
            {
                "quant_method": "compressed-tensors",
                "transform_config": {"config_groups": {"u": {}}},
            },
            "compressed-tensors with transforms",
        ),
        (
            {"qweight": WORDS, "qzeros": WORDS.clone(), "scales": ONE, "weight": None},
            None,
            "GPTQ or AWQ",
        ),
        ({"weight": BYTES, "weight.absmax": ONE}, None, "bitsandbytes (4 bits)"),
        ({"weight": BYTES.to(torch.int8), "SCB": ONE}, None, "bitsandbytes (8 bits)"),
        ({"weight_packed": BYTES, "weight_global_scale": ONE, "weight": None}, None, "NVFP4"),
        ({"weight_packed": WORDS, "weight": None}, None, "several to a word"),
        (
            {"weight": BYTES, "weight_scale": torch.ones(64, 4).to(FP8), "weight_scale_2": ONE},
            None,
            "NVFP4, by ModelOpt",
        ),
        (
            {"weight": BYTES, "weight_scale": torch.ones(64, 4).to(FP8)},
            None,
            "stored as U8, packed or not of floats",
        ),
        ({"weight": torch.zeros(64, 64, dtype=FP8)}, None, "F8_E4M3, of 8 bits without scales"),
        ({"weight": torch.zeros(64, 64, dtype=torch.int8)}, None, "I8, of 8 bits without scales"),
        ({"weight_scale": ONE}, None, "is stored as F32 and yet has scales"),
        (
            {"weight": torch.zeros(64, 64, dtype=FP8), "weight_scale": torch.ones(64, 2).byte()},
            None,
            "weight_scale is stored as U8",
        ),
        (
            {"weight": torch.zeros(64, 64, dtype=FP8), "weight_scale": torch.ones(2, 2)},
            {"quant_method": "fp8", "weight_block_size": [16, 16]},
            "scales of shape (2, 2), which is none for the whole",
        ),
        ({}, {"quant_method": "fp8", "weight_block_size": [16]}, "blocks of [16]"),
        ({}, [], "quantization_config is not an object"),
    ],
)
def test_other_quantisations_are_refused_by_name(
    stored: dict[str, torch.Tensor | None], config: Any, message: str, tmp_path: Path
) -> None:
    write_parent(tmp_path)
    tensors = load_file(tmp_path / SINGLE)
    for last, tensor in stored.items():
        if tensor is None:
            del tensors[f"{KEY}.{last}"]
        else:
            tensors[f"{KEY}.{last}"] = tensor
    save_file(tensors, tmp_path / SINGLE, metadata={"format": "pt"})
    if config is not None:
        configure(tmp_path, quantization_config=config or ["fp8"])
    with pytest.raises(InputError) as caught:
        load_decoder(tmp_path)
    assert message in caught.value.message
    assert caught.value.remedy


def test_the_command_line_refuses_before_it_writes(
    pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(pico.parent, tmp_path / "parent")
    configure(tmp_path / "parent", quantization_config={"quant_method": "gptq", "bits": 4})
    out = tmp_path / "library"
    changed = {"parent": tmp_path / "parent"}
    shown = refuse(monkeypatch, capsys, *library_arguments(pico, out, **changed))
    assert "the weights are quantised by gptq, which is not read" in shown
    assert not out.exists()


def test_modelopt_says_it_in_a_file_of_its_own(tmp_path: Path) -> None:
    write_parent(tmp_path)
    quantised = {"quantization": {"quant_algo": "W4A16_AWQ"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(quantised))
    with pytest.raises(InputError, match="W4A16_AWQ, by ModelOpt"):
        CheckpointReader(tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.2.input_layernorm.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "vision_tower.layers.0.weight",
        "model.layers.9.mlp.up_proj.weight_scale",
    ],
)
@pytest.mark.parametrize("sharded", [False, True])
def test_tensors_without_a_place_are_not_dropped_in_silence(
    other: str, sharded: bool, tmp_path: Path
) -> None:
    model = write_parent(tmp_path)
    file = tmp_path / SINGLE
    if sharded:
        file.unlink()
        model.save_pretrained(tmp_path, max_shard_size="200KB")
        index = json.loads((tmp_path / f"{SINGLE}.index.json").read_text())
        file = tmp_path / index["weight_map"]["model.norm.weight"]
        index["weight_map"][other] = file.name
        (tmp_path / f"{SINGLE}.index.json").write_text(json.dumps(index))
    save_file(load_file(file) | {other: torch.zeros(64)}, file, metadata={"format": "pt"})
    with pytest.raises(InputError) as caught:
        CheckpointReader(tmp_path)
    assert f"1 tensors are not of a llama model of this config.json: {other}" in str(caught.value)


def test_frequencies_that_older_checkpoints_store_are_no_weights(tmp_path: Path) -> None:
    write_parent(tmp_path)
    ids = random_ids(1, 9)
    expected = load_decoder(tmp_path)(ids)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file(load_file(tmp_path / SINGLE) | {name: torch.ones(8)}, tmp_path / SINGLE)
    assert torch.equal(load_decoder(tmp_path)(ids), expected)
