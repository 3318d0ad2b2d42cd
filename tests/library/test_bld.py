"""Blockwise local distillation: its loss, and that it never makes a variant worse."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from puzzle_search.arch import Gqa, Linear, NoOp
from puzzle_search.errors import InputError
from puzzle_search.files import file_hash
from puzzle_search.library import BldSettings, build_library
from puzzle_search.library.bld import (
    LayerActivations,
    ParentLayer,
    block_loss,
    normalised_error,
    train_student,
)
from puzzle_search.model import HeterogeneousDecoder, make_subblock
from puzzle_search.model.rope import RotarySlice
from tests.pico import LENGTH, Pico

TOKENS = 4096


@pytest.fixture(scope="module")
def decoder(pico: Pico) -> HeterogeneousDecoder:
    return pico.decoder()


def first_layer(
    decoder: HeterogeneousDecoder, ids: torch.Tensor
) -> tuple[ParentLayer, LayerActivations, RotarySlice]:
    block, inputs = decoder.blocks[0], decoder.embedding(ids)
    rotary = decoder.rotary.slice(0, LENGTH, inputs)
    middle = block.attention(inputs, rotary, None)
    outputs = block.ffn(middle, rotary, None)
    layer = ParentLayer(attention=block.attention, ffn=block.ffn)
    return layer, LayerActivations(inputs=inputs, middle=middle, outputs=outputs), rotary


def test_the_loss_is_the_error_over_that_of_zero() -> None:
    generator = np.random.default_rng(0)
    output, target = generator.normal(size=(2, 3, 4, 5)).astype(np.float32)
    expected = np.mean((target - output) ** 2) / np.mean(target**2)
    found = float(normalised_error(torch.from_numpy(output), torch.from_numpy(target)))
    assert found == pytest.approx(expected, rel=1e-6)
    zero = torch.zeros(3, 4, 5)
    assert float(normalised_error(zero, torch.from_numpy(target))) == 1


def test_the_loss_of_a_dropped_attention_is_that_of_the_block_without_it(
    pico: Pico, decoder: HeterogeneousDecoder
) -> None:
    layer, seen, rotary = first_layer(decoder, pico.tokens("validation", 256))
    dropped = make_subblock(NoOp(), pico.config)
    without = layer.ffn(seen.inputs, rotary, None).numpy()
    target = seen.outputs.numpy()
    expected = np.mean((target - without) ** 2) / np.mean(target**2)
    found = block_loss(dropped, "attention", layer, seen, rotary)
    assert found == pytest.approx(expected, rel=1e-5)
    own = block_loss(layer.attention, "attention", layer, seen, rotary)
    assert own < 1e-9


@pytest.fixture(scope="module")
def trained(pico: Pico, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Losses before and after training, by variant, and the parent's hash before and after."""
    weights = pico.parent / "model.safetensors"
    before = file_hash(weights)
    library = pico.library(tmp_path_factory.mktemp("trained"), tokens=TOKENS)
    assert file_hash(weights) == before
    assert {entry.tokens for entry in library.entries.values()} == {TOKENS}
    return {
        f"{entry.first_layer} {entry.attention or entry.ffn}": [
            entry.loss_initial,
            entry.loss_trained,
        ]
        for entry in library.entries.values()
    }


@pytest.mark.parametrize("variant", ["gqa_1", "mlp_256"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_training_lowers_the_loss(
    trained: dict[str, list[float]], layer: int, variant: str
) -> None:
    initial, final = trained[f"{layer} {variant}"]
    assert 0 < final < initial


def test_every_variant_with_weights_is_trained(trained: dict[str, list[float]]) -> None:
    variants = ("gqa_1", "linear", "mlp_256")
    assert trained.keys() == {f"{layer} {name}" for layer in range(3) for name in variants}
    assert all(final <= initial for initial, final in trained.values())


def test_the_parent_stays_as_it_is(pico: Pico, decoder: HeterogeneousDecoder) -> None:
    layer, seen, rotary = first_layer(decoder, pico.tokens("train", 1024))
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    student = make_subblock(Linear(), pico.config)
    train_student(student, "attention", layer, seen, rotary, BldSettings(tokens=1024))
    for name, value in decoder.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in decoder.parameters())
    assert all(parameter.grad is None for parameter in decoder.parameters())


def test_building_a_library_leaves_the_parent_in_memory_as_it_is(
    pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student that starts from the parent's tensors must not share them."""
    parent = pico.decoder()
    before = {name: value.clone() for name, value in parent.state_dict().items()}
    monkeypatch.setattr("puzzle_search.library.build.load_decoder", lambda folder: parent)
    pico.library(tmp_path, tokens=1024)
    for name, value in parent.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, msg=name)


def test_no_tokens_keep_the_initialisation(pico: Pico, pico_library: Path) -> None:
    library = pico.open_library(pico_library)
    assert library.entries
    for entry in library.entries.values():
        assert entry.loss_trained == entry.loss_initial
    own, pooled = (library.block(0, 0, name, "")["attention"] for name in ("gqa_2", "gqa_1"))
    expected = own["v_proj.weight"].view(2, 16, 64).mean(dim=0)
    torch.testing.assert_close(pooled["v_proj.weight"], expected)


def test_a_variant_made_worse_keeps_its_initialisation(
    pico: Pico, pico_library: Path, tmp_path: Path
) -> None:
    """Steps that are far too long ruin a good start: training must then change nothing."""
    ids = pico.tokens("train", 2048)
    settings = BldSettings(tokens=256, batch_tokens=128, learning_rate=1e3)
    held_out = pico.tokens("validation", 512)
    ruined = build_library(pico.parent, pico.space, ids, held_out, tmp_path, settings)
    untrained = pico.open_library(pico_library)
    kept = [
        key for key, entry in ruined.entries.items() if "linear" not in (entry.attention, entry.ffn)
    ]
    assert len(kept) == 6
    for key in kept:
        entry = ruined.entries[key]
        assert entry.loss_trained == entry.loss_initial
        assert entry.sha256 == untrained.entries[key].sha256


def test_few_data_are_seen_again_and_again(pico: Pico, decoder: HeterogeneousDecoder) -> None:
    """Two blocks of text, where a step asks for 32."""
    layer, seen, rotary = first_layer(decoder, pico.tokens("train", 2 * LENGTH))
    torch.manual_seed(0)
    student = make_subblock(Gqa(1), pico.config)
    before = block_loss(student, "attention", layer, seen, rotary)
    settings = BldSettings(tokens=1024, batch_tokens=1024)
    train_student(student, "attention", layer, seen, rotary, settings)
    assert block_loss(student, "attention", layer, seen, rotary) < before


def test_fewer_tokens_than_a_step_still_train(pico: Pico, decoder: HeterogeneousDecoder) -> None:
    layer, seen, rotary = first_layer(decoder, pico.tokens("train", 2048))
    student = make_subblock(Linear(), pico.config)
    before = student.linear.weight.clone()
    settings = BldSettings(tokens=256, batch_tokens=1024)
    train_student(student, "attention", layer, seen, rotary, settings)
    assert not torch.equal(student.linear.weight, before)


def test_a_parent_with_nan_is_refused_by_layer(pico: Pico, tmp_path: Path) -> None:
    damaged = tmp_path / "parent"
    shutil.copytree(pico.parent, damaged)
    tensors = load_file(damaged / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
    broken = Pico(parent=damaged, corpus=pico.corpus, space_file=pico.space_file)
    with pytest.raises(InputError, match=r"layer 1 .*not finite") as caught:
        broken.library(tmp_path / "library")
    assert "parent's weights" in caught.value.remedy
    assert not (tmp_path / "library" / "library.json").exists()
