"""Blockwise local distillation: its loss, and that it never makes a variant worse."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from puzzle_search.arch import Gqa, Mlp, NoOp, SearchSpace
from puzzle_search.checkpoint.block_library import LibraryEntry
from puzzle_search.errors import InputError
from puzzle_search.files import file_hash
from puzzle_search.library import BldSettings, build_library
from puzzle_search.library.bld import Batch, Training, block_error, normalised_error
from puzzle_search.library.parent import Parent, ParentLayer
from puzzle_search.library.states import HiddenStates, LayerActivations
from puzzle_search.model import HeterogeneousDecoder, make_subblock
from puzzle_search.model.rope import RotarySlice
from tests.faults import with_nan
from tests.pico import LENGTH, Pico

TOKENS = 4096


@pytest.fixture(scope="module")
def decoder(pico: Pico) -> HeterogeneousDecoder:
    return pico.decoder()


def states(tensor: torch.Tensor) -> HiddenStates:
    blocks, length, hidden = tensor.shape
    return HiddenStates(shape=(blocks, length, hidden), dtype=tensor.dtype, held=tensor)


def first_layer(
    decoder: HeterogeneousDecoder, ids: torch.Tensor
) -> tuple[ParentLayer, Batch, RotarySlice]:
    block, inputs = decoder.blocks[0], decoder.embedding(ids)
    rotary = decoder.rotary.slice(0, LENGTH, inputs)
    middle = block.attention(inputs, rotary, None)
    outputs = block.ffn(middle, rotary, None)
    layer = ParentLayer(attention=block.attention, ffn=block.ffn)
    return layer, Batch(inputs=inputs, middle=middle, outputs=outputs), rotary


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
    activations = LayerActivations(
        inputs=states(seen.inputs), middle=states(seen.middle), outputs=states(seen.outputs)
    )
    found = block_error({"attention": dropped}, layer, activations, rotary, chunk=3)
    assert found == pytest.approx(expected, rel=1e-5)
    own = block_error({"attention": layer.attention}, layer, activations, rotary, chunk=3)
    assert own < 1e-9


@pytest.fixture(scope="module")
def trained(pico: Pico, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Losses before and after training, by variant, and the parent's hash before and after."""
    weights = pico.parent / "model.safetensors"
    before = file_hash(weights)
    library = pico.library(tmp_path_factory.mktemp("trained"), tokens=TOKENS)
    assert file_hash(weights) == before
    trained = [key for key in library.entries if "no_op" not in key]
    assert {library.entries[key].tokens for key in trained} == {TOKENS}
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


def test_every_variant_is_there(trained: dict[str, list[float]]) -> None:
    variants = ("gqa_1", "linear", "mlp_256", "no_op")
    assert trained.keys() == {f"{layer} {name}" for layer in range(3) for name in variants}
    assert all(final <= initial for initial, final in trained.values())


def test_steps_are_those_of_adamw_along_a_cosine(pico: Pico, decoder: HeterogeneousDecoder) -> None:
    """Against the obvious loop: plain AdamW, the schedule of the paper's text written out."""
    _, batch, rotary = first_layer(decoder, pico.tokens("train", 512))
    torch.manual_seed(0)
    student, same = make_subblock(Mlp(256), pico.config), make_subblock(Mlp(256), pico.config)
    same.load_state_dict(student.state_dict())
    steps, peak = 12, 1e-2
    settings = BldSettings(tokens=1, learning_rate=peak, max_grad_norm=0.3)
    training = Training({"ffn": student}, settings, steps, held_out_loss=1.0)
    layer = ParentLayer(attention=decoder.blocks[0].attention, ffn=decoder.blocks[0].ffn)
    adam = torch.optim.AdamW(same.parameters(), betas=(0.9, 0.95), weight_decay=0, foreach=False)
    for step in range(steps):
        training.step(step, layer, batch, rotary)
        # One step of warm-up, then half a cosine over the other eleven.
        rate = peak if step == 0 else peak * (1 + math.cos(math.pi * (step - 1) / 11)) / 2
        adam.param_groups[0]["lr"] = rate
        error = (same(batch.middle, rotary, None) - batch.outputs).square().sum()
        adam.zero_grad()
        (error / batch.outputs.square().sum()).backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in same.parameters()))
        for parameter in same.parameters():
            parameter.grad *= min(1.0, 0.3 / norm)
        adam.step()
    for name, weight in same.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], weight, rtol=1e-3, atol=1e-5)


def test_bf16_students_learn_by_steps_smaller_than_bf16_can_tell(
    pico: Pico, decoder: HeterogeneousDecoder
) -> None:
    """Norm weights of 1 have neighbours 2^-8 and 2^-7 away; steps are of 2^-11."""
    _, batch, rotary = first_layer(decoder, pico.tokens("train", 512))
    half = Batch(
        inputs=batch.inputs.bfloat16(),
        middle=batch.middle.bfloat16(),
        outputs=batch.outputs.bfloat16(),
    )
    torch.manual_seed(0)
    student = make_subblock(Mlp(256), pico.config).bfloat16()
    assert bool((student.norm.weight == 1).all())
    layer = ParentLayer(attention=decoder.blocks[0].attention, ffn=decoder.blocks[0].ffn)
    settings = BldSettings(tokens=1, learning_rate=2**-11)
    training = Training({"ffn": student}, settings, 40, held_out_loss=1.0)
    half_rotary = RotarySlice(rotary.cos_LE.bfloat16(), rotary.sin_LE.bfloat16())
    training.step(0, layer, half, half_rotary)
    training.step(1, layer, half, half_rotary)
    assert bool((student.norm.weight == 1).all())
    for step in range(2, 20):
        training.step(step, layer, half, half_rotary)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}
    assert float((student.norm.weight != 1).float().mean()) > 0.5


def test_bf16_libraries_are_like_fp32_ones(pico: Pico, tmp_path: Path) -> None:
    space = SearchSpace.uniform(pico.config, attention=["gqa_1"], ffn=["mlp_256"])
    ids, held_out = pico.tokens("train", TOKENS), pico.tokens("validation", 512)
    losses = {}
    for dtype in ("fp32", "bf16"):
        library = build_library(
            pico.parent,
            space,
            ids,
            held_out,
            tmp_path / dtype,
            BldSettings(tokens=TOKENS),
            dtype=dtype,
        )
        losses[dtype] = [library.entries[key].loss_trained for key in sorted(library.entries)]
        stored = load_file(tmp_path / dtype / "layer_001" / "ffn.mlp_256.safetensors")
        expected = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        assert {tensor.dtype for tensor in stored.values()} == {expected}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)


def test_building_a_library_leaves_the_parent_in_memory_as_it_is(
    pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student that starts from the parent's tensors must not share them."""
    parent = pico.decoder()
    before = {name: value.clone() for name, value in parent.state_dict().items()}

    def layer(self: Parent, index: int) -> ParentLayer:
        block = parent.blocks[index]
        return ParentLayer(attention=block.attention, ffn=block.ffn)

    monkeypatch.setattr(Parent, "layer", layer)
    pico.library(tmp_path, tokens=1024)
    for name, value in parent.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, msg=name)
    assert not any(parameter.requires_grad for parameter in parent.parameters())
    assert all(parameter.grad is None for parameter in parent.parameters())


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
    settings = BldSettings(tokens=256, batch_tokens=128, learning_rate=1.0)
    held_out = pico.tokens("validation", 512)
    ruined = build_library(pico.parent, pico.space, ids, held_out, tmp_path, settings)
    untrained = pico.open_library(pico_library)
    kept = [key for key in ruined.entries if "linear" not in key and "no_op" not in key]
    assert len(kept) == 6
    for key in kept:
        entry = ruined.entries[key]
        assert entry.loss_trained == entry.loss_initial
        assert entry.sha256 == untrained.entries[key].sha256


def one_variant(pico: Pico, out: Path, train: torch.Tensor, settings: BldSettings) -> LibraryEntry:
    """Layer 0 with one KV head."""
    own = ((pico.config.attention,), (pico.config.ffn,))
    space = SearchSpace(
        attention=(("gqa_2", "gqa_1"), own[0], own[0]), ffn=(own[1], own[1], own[1])
    )
    held_out = pico.tokens("validation", 512)
    library = build_library(pico.parent, space, train, held_out, out, settings)
    [entry] = library.entries.values()
    return entry


def curve(out: Path) -> list[dict[str, Any]]:
    lines = (out / "curves" / "layer_000.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_few_data_are_seen_again_and_again(pico: Pico, tmp_path: Path) -> None:
    """Two blocks of text, where a step asks for 32."""
    settings = BldSettings(tokens=1024, batch_tokens=1024)
    entry = one_variant(pico, tmp_path, pico.tokens("train", 2 * LENGTH), settings)
    assert entry.loss_trained < entry.loss_initial
    assert entry.tokens == 1024
    assert [point["step"] for point in curve(tmp_path)][-1] == 1024 // (2 * LENGTH)


def test_fewer_tokens_than_a_step_still_train(pico: Pico, tmp_path: Path) -> None:
    settings = BldSettings(tokens=256, batch_tokens=1024)
    entry = one_variant(pico, tmp_path, pico.tokens("train", 2048), settings)
    assert entry.loss_trained < entry.loss_initial
    assert entry.tokens == 256


def test_a_student_that_no_longer_improves_stops(pico: Pico, tmp_path: Path) -> None:
    settings = BldSettings(tokens=8192, batch_tokens=128, learning_rate=1.0, checks=16, patience=3)
    entry = one_variant(pico, tmp_path, pico.tokens("train", 8192), settings)
    points = curve(tmp_path)
    # 64 steps, looked at every fourth; nothing is better than the beginning.
    assert [point["step"] for point in points] == [0, 4, 8, 12]
    assert [point["tokens"] for point in points] == [0, 512, 1024, 1536]
    assert all(point["held_out_loss"] > points[0]["held_out_loss"] for point in points[1:])
    assert entry.tokens == 1536
    assert entry.loss_trained == entry.loss_initial


def test_the_best_weights_that_were_seen_are_kept(pico: Pico, tmp_path: Path) -> None:
    """Also where later ones are worse."""
    settings = BldSettings(
        tokens=8192, batch_tokens=128, learning_rate=0.02, checks=64, patience=64
    )
    entry = one_variant(pico, tmp_path, pico.tokens("train", 8192), settings)
    losses = [point["held_out_loss"] for point in curve(tmp_path)]
    assert len(losses) == 65
    best = min(losses)
    stored = load_file(tmp_path / "layer_000" / "attention.gqa_1.safetensors")
    decoder = pico.decoder()
    # Checks look at 8192 / 64 of the held-out tokens.
    layer, seen, rotary = first_layer(decoder, pico.tokens("validation", 512)[:4])
    student = make_subblock(Gqa(1), pico.config)
    student.load_state_dict({k.removeprefix("attention."): v for k, v in stored.items()})
    with torch.no_grad():
        output = layer.ffn(student(seen.inputs, rotary, None), rotary, None)
        error = (output - seen.outputs).square().sum() / seen.outputs.square().sum()
    assert float(error) == pytest.approx(best, rel=1e-5)
    assert entry.loss_trained < entry.loss_initial


def test_a_parent_with_nan_is_refused_by_layer(pico: Pico, tmp_path: Path) -> None:
    broken = with_nan(pico, tmp_path / "parent", "model.layers.1.mlp.up_proj.weight")
    with pytest.raises(InputError, match=r"layer 1 .*not finite") as caught:
        broken.library(tmp_path / "library")
    assert "parent's weights" in caught.value.remedy
    assert not (tmp_path / "library" / "library.json").exists()


def test_too_little_gpu_memory_is_told(
    pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("puzzle_search.library.bld.Training.step", fail)
    with pytest.raises(InputError, match=r"layers 0 to 0 ran out of GPU memory") as caught:
        pico.library(tmp_path / "library", tokens=2048)
    assert "--max-memory" in caught.value.remedy
