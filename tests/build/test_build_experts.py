"""Children of parents with experts, by the command line from library to text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.checkpoint import load_decoder, read_model_config
from puzzle_search.errors import InputError
from tests.pico import Pico, run_here

PAIRS = [("gqa_2", "moe_4_width_32"), ("gqa_1", "moe_2_top_1"), ("gqa_2", "moe_4")]


@pytest.fixture(scope="module")
def child(
    pico_experts: Pico, pico_experts_library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    ArchitectureSpec.of("parent", PAIRS).write(folder / "spec.yaml")
    run_here(
        "build", folder / "spec.yaml", "--parent", pico_experts.parent,
        "--library", pico_experts_library, "--out", folder / "child", "--dtype", "fp32",
    )  # fmt: skip
    return folder / "child"


def test_the_folder_says_what_it_holds(child: Path) -> None:
    raw = json.loads((child / "config.json").read_text())
    assert raw["model_type"] == "puzzle-search"
    assert [block["ffn"] for block in raw["block_configs"]] == [
        base | sizes
        for base, sizes in zip(
            [{"ffn_mult": None, "no_op": False, "replace_with_linear": False}] * 3,
            [
                {"num_local_experts": 4, "moe_intermediate_size": 32},
                {"num_local_experts": 2, "num_experts_per_tok": 1},
                {"num_local_experts": 4},
            ],
            strict=True,
        )
    ]
    config, spec = read_model_config(child)
    assert spec == ArchitectureSpec.of("parent", PAIRS)
    assert config.experts is not None
    assert config.experts.count == 8


def test_experts_are_stored_one_by_one_under_the_parents_names(child: Path) -> None:
    tensors = load_file(child / "model.safetensors")
    experts = {name for name in tensors if "block_sparse_moe" in name}
    assert experts == {
        *(f"model.layers.{layer}.block_sparse_moe.gate.weight" for layer in range(3)),
        *(
            f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}.weight"
            for layer, count in enumerate((4, 2, 4))
            for expert in range(count)
            for name in ("w1", "w2", "w3")
        ),
    }
    assert tensors["model.layers.0.block_sparse_moe.experts.3.w1.weight"].shape == (32, 64)
    assert tensors["model.layers.0.block_sparse_moe.experts.3.w2.weight"].shape == (64, 32)
    assert tensors["model.layers.2.block_sparse_moe.gate.weight"].shape == (4, 64)


def test_the_loaded_child_has_the_librarys_weights(
    child: Path, pico_experts: Pico, pico_experts_library: Path
) -> None:
    library, decoder = pico_experts.open_library(pico_experts_library), load_decoder(child)
    for layer, (attention, ffn) in enumerate(PAIRS):
        block = library.block(layer, layer, attention, ffn)
        for part in ("attention", "ffn"):
            loaded = getattr(decoder.blocks[layer], part).state_dict()
            assert loaded.keys() == block[part].keys()
            for name, tensor in loaded.items():
                assert torch.equal(tensor, block[part][name]), name


def test_it_completes_a_text_and_is_inspected(
    child: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here("generate", child, "--prompt", "hello", "--max-new-tokens", "4")
    assert capsys.readouterr().out.startswith("hello")
    run_here("inspect", child)
    shown = capsys.readouterr().out
    assert "moe_4_width_32" in shown
    assert "a mixture of experts" in shown


def test_without_experts_it_is_a_child_that_stock_engines_load(
    pico_experts: Pico, pico_experts_library: Path, tmp_path: Path
) -> None:
    spec = ArchitectureSpec.of(
        "parent", [("gqa_2", "no_op"), ("gqa_1", "linear"), ("gqa_2", "no_op")]
    )
    spec.write(tmp_path / "spec.yaml")
    run_here(
        "build", tmp_path / "spec.yaml", "--parent", pico_experts.parent,
        "--library", pico_experts_library, "--out", tmp_path / "child", "--dtype", "fp32",
    )  # fmt: skip
    raw = json.loads((tmp_path / "child" / "config.json").read_text())
    assert raw["model_type"] == "nemotron-nas"
    assert load_decoder(tmp_path / "child").spec == spec


def test_no_engine_takes_an_export(
    child: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for engine in ("vllm", "llama.cpp", "mlx-lm"):
        with pytest.raises(InputError, match="a mixture of experts"):
            run_here("export", child, "--to", engine, "--out", tmp_path / engine)
        assert not (tmp_path / engine).exists()
