"""Children with a pair that was trained together, and with one block for a run of layers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from puzzle_search.arch import ArchitectureSpec, BlockChoice, SearchSpace, parse_variant
from puzzle_search.build import build_child
from puzzle_search.checkpoint import load_decoder, read_model_config
from puzzle_search.errors import InputError
from puzzle_search.library import BldSettings, build_library
from puzzle_search.model import make_subblock
from tests.pico import Pico

PAIR, RUN = ("gqa_1", "mlp_256"), ("gqa_1", "mlp_512")


@pytest.fixture(scope="module")
def library(pico: Pico, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blocks") / "library"
    space = SearchSpace.uniform(pico.config, attention=["gqa_1"], ffn=["mlp_256"])
    build_library(
        pico.parent,
        replace(space, runs=((1, 2, *RUN),)),
        pico.tokens("train", 2048),
        pico.tokens("validation", 512),
        folder,
        BldSettings(tokens=1024),
        coupled=True,
    )
    return folder


def test_the_child_computes_with_the_trained_blocks(
    pico: Pico, library: Path, tmp_path: Path
) -> None:
    blocks = (
        BlockChoice(attention=PAIR[0], ffn=PAIR[1], layers=(0,)),
        BlockChoice(attention=RUN[0], ffn=RUN[1], layers=(1, 2)),
    )
    spec = ArchitectureSpec(parent="parent", blocks=blocks)
    written = build_child(pico.parent, library, spec, tmp_path / "child", dtype="fp32")
    assert read_model_config(written)[1] == spec
    assert json.loads((written / "config.json").read_text())["num_hidden_layers"] == 2
    child = load_decoder(written)
    parent, ids = pico.decoder(), pico.tokens("validation", 256)
    with torch.no_grad():
        hidden = parent.embedding(ids)
        rotary = parent.rotary.slice(0, hidden.shape[1], hidden)
        for folder, names in (("layer_000", PAIR), ("layers_001-002", RUN)):
            file = f"attention.{names[0]}+ffn.{names[1]}.safetensors"
            stored = load_file(library / folder / file)
            for part, name in zip(("attention", "ffn"), names, strict=True):
                module = make_subblock(parse_variant(part, name), pico.config)
                prefix = f"{part}."
                module.load_state_dict(
                    {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
                )
                hidden = module(hidden, rotary, None)
        torch.testing.assert_close(child(ids), parent.logits(hidden), rtol=1e-4, atol=1e-4)
    singles = load_file(library / "layer_000" / "attention.gqa_1.safetensors")
    together = load_file(library / "layer_000" / "attention.gqa_1+ffn.mlp_256.safetensors")
    assert not torch.equal(singles["attention.q_proj.weight"], together["attention.q_proj.weight"])


@pytest.mark.parametrize(
    "layers", [[[0]], [[0], []], [[0], [True, 2]], [[0], [2, 1]], [[0], [2]], [0, 1], 2, "12"]
)
def test_damaged_lists_of_layers_are_refused(
    pico: Pico, library: Path, tmp_path: Path, layers: object
) -> None:
    blocks = (
        BlockChoice(attention="gqa_2", ffn="mlp_512", layers=(0,)),
        BlockChoice(attention=RUN[0], ffn=RUN[1], layers=(1, 2)),
    )
    spec = ArchitectureSpec(parent="parent", blocks=blocks)
    file = build_child(pico.parent, library, spec, tmp_path / "child") / "config.json"
    config = json.loads(file.read_text())
    assert config["puzzle_search"]["layers"] == [[0], [1, 2]]
    config["puzzle_search"]["layers"] = layers
    file.write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config\.json: puzzle_search names layers"):
        read_model_config(file.parent)
