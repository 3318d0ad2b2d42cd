"""The larger parent of ``experiments/paper/paper.py``, in small, on the CPU."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from puzzle_search.arch import ParentConfig, SearchSpace
from puzzle_search.checkpoint import load_decoder
from puzzle_search.data import load_documents
from tests.pico import ROOT

SHORT = {"epochs": 1, "tokens_per_step": 512, "length": 64}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, with a hundredth of its text."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments" / "paper"))
    import paper_parent

    def some(source: str, split: str) -> list[Any]:
        return load_documents(source, split)[:12]  # type: ignore[arg-type]

    monkeypatch.setattr(paper_parent, "load_documents", some)
    return paper_parent


def trained(bench: ModuleType, folder: Path, **changes: Any) -> tuple[Path, Path]:
    shape = bench.ParentShape(**(vars(bench.PICO) | SHORT))
    options = {"device": "cpu", "bf16": False, "max_seconds": 1e6} | changes
    found: tuple[Path, Path] = bench.trained_parent(folder, shape, **options)
    return found


def test_the_large_parent_has_60_million_parameters_or_more(bench: ModuleType) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(bench.LARGE.config(4096))
    assert 60e6 <= model.num_parameters() <= 100e6
    config = ParentConfig.from_dict(bench.LARGE.config(4096).to_dict(), name="large")
    assert (config.attention, config.ffn) == ("gqa_4", "mlp_2048")


def test_the_spaces_are_those_of_the_shapes(bench: ModuleType, tmp_path: Path) -> None:
    for shape in (bench.LARGE, bench.PICO):
        config = ParentConfig.from_dict(shape.config(4096).to_dict(), name="parent")
        file = tmp_path / "space.yaml"
        file.write_text(shape.space())
        space = SearchSpace.from_file(file, config)
        assert config.attention in space.attention[0]
        assert config.ffn in space.ffn[0]
        assert {"gqa_1", "linear", "no_op"} <= set(space.attention[0])


@pytest.mark.slow
def test_a_trained_parent_loads_and_has_learned(bench: ModuleType, tmp_path: Path) -> None:
    parent, space = trained(bench, tmp_path, bf16=True)
    SearchSpace.from_file(space, ParentConfig.from_file(parent))
    model = LlamaForCausalLM.from_pretrained(parent, dtype=torch.float32)
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        assert torch.allclose(load_decoder(parent)(ids), model(ids).logits, atol=1e-4)
    summary = json.loads((parent / bench.SUMMARY).read_text())
    assert summary["parameters"] == model.num_parameters()
    assert summary["test_loss_nats"] < math.log(4096) - 0.5  # every token alike
    written = (parent / "model.safetensors").stat().st_mtime_ns
    trained(bench, tmp_path, bf16=True)
    assert (parent / "model.safetensors").stat().st_mtime_ns == written


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain = bench.pretrain

    def saved_often(*arguments: Any) -> Any:
        model, train, validation, settings, *rest = arguments
        short = {"steps": 12, "save_every": 4}
        return pretrain(
            model, train, validation[:2], type(settings)(**(vars(settings) | short)), *rest
        )

    monkeypatch.setattr(bench, "pretrain", saved_often)
    whole, _ = trained(bench, tmp_path / "whole")

    class Interrupted(Exception):
        pass

    muon = pretrain.__globals__["Muon"]
    taken, original = 0, muon.step

    def stop(self: Any, closure: None = None) -> None:
        nonlocal taken
        taken += 1
        if taken == 7:
            raise Interrupted
        original(self, closure)

    monkeypatch.setattr(muon, "step", stop)
    with pytest.raises(Interrupted):
        trained(bench, tmp_path / "cut")
    assert not (tmp_path / "cut" / "parent").exists()
    cut, _ = trained(bench, tmp_path / "cut")
    assert taken == 7 + (12 - 4)  # from the checkpoint after four steps
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_training_ends_with_its_time(bench: ModuleType, tmp_path: Path) -> None:
    parent, _ = trained(bench, tmp_path, max_seconds=0.01)
    assert json.loads((parent / bench.SUMMARY).read_text())["steps"] == 1
