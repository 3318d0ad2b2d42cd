"""Pairs trained together, and blocks for runs of layers, against blocks put together by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from puzzle_search.arch import NoOp, Replacement, SearchSpace, parse_variant
from puzzle_search.checkpoint.block_library import BlockLibrary
from puzzle_search.errors import InputError
from puzzle_search.library import BldSettings, build_library
from puzzle_search.library.build import planned_replacements
from puzzle_search.model import HeterogeneousDecoder, SubblockModule, make_subblock
from tests.pico import Pico

TOKENS = 2048
RUNS: tuple[Replacement, ...] = (
    (0, 1, "gqa_1", "mlp_256"),
    (0, 2, "gqa_2", "mlp_512"),
    (1, 2, "no_op", "linear"),
    (1, 2, "no_op", "no_op"),
)
INITIAL_OF_RUN = {
    f"{attention}+{ffn} of layer {layer}"
    for attention in ("mean_pool", "first_head", "activation_weighted")
    for ffn in ("channel_contribution", "channel_magnitude")
    for layer in (0, 1)
}


@pytest.fixture(scope="module")
def space(pico: Pico) -> SearchSpace:
    uniform = SearchSpace.uniform(
        pico.config, attention=["gqa_1", "no_op"], ffn=["mlp_256", "no_op"]
    )
    return replace(uniform, runs=RUNS)


def build(pico: Pico, space: SearchSpace, out: Path, **options: object) -> BlockLibrary:
    train, held_out = pico.tokens("train", TOKENS), pico.tokens("validation", 512)
    settings = BldSettings(tokens=TOKENS)
    return build_library(
        pico.parent, space, train, held_out, out, settings, coupled=True, **options
    )


@pytest.fixture(scope="module")
def library(
    pico: Pico, space: SearchSpace, tmp_path_factory: pytest.TempPathFactory
) -> BlockLibrary:
    return build(pico, space, tmp_path_factory.mktemp("coupled"))


def module(pico: Pico, part: str, name: str, tensors: dict[str, torch.Tensor]) -> SubblockModule:
    made = make_subblock(parse_variant(part, name), pico.config)
    made.load_state_dict(tensors)
    return made


@torch.no_grad()
def error(pico: Pico, decoder: HeterogeneousDecoder, library: BlockLibrary, key: Replacement):
    """The error of a stored block behind the parent's layers, all held-out tokens at once."""
    first, last, attention, ffn = key
    hidden = decoder.embedding(pico.tokens("validation", 512))
    rotary = decoder.rotary.slice(0, hidden.shape[1], hidden)
    for block in decoder.blocks[:first]:
        hidden = block(hidden, rotary)
    target = hidden
    for block in decoder.blocks[first : last + 1]:
        target = block(target, rotary)
    tensors = library.block(*key)
    parts = (("attention", attention), ("ffn", ffn))
    own = {"attention": pico.config.attention, "ffn": pico.config.ffn}
    for part, name in parts:
        hidden = module(pico, part, name or own[part], tensors[part])(hidden, rotary, None)
    return float((hidden - target).square().mean() / target.square().mean())


def test_everything_is_trained(library: BlockLibrary) -> None:
    singles = {
        (layer, layer, *names)
        for layer in range(3)
        for names in (("gqa_1", ""), ("no_op", ""), ("", "mlp_256"), ("", "no_op"))
    }
    pairs = {
        (layer, layer, attention, ffn)
        for layer in range(3)
        for attention in ("gqa_1", "no_op")
        for ffn in ("mlp_256", "no_op")
    }
    assert library.entries.keys() == singles | pairs | set(RUNS)
    for key, entry in library.entries.items():
        assert entry.loss_initial == min(entry.initial_errors.values())
        assert entry.initial_errors[entry.initialised_by] == entry.loss_initial
        untrained = set(key[2:]) <= {"no_op", ""}
        assert entry.tokens == (0 if untrained else TOKENS)


def test_a_type_of_weights_is_nothing_to_train(pico: Pico, library: BlockLibrary) -> None:
    typed = SearchSpace.uniform(
        pico.config,
        attention=["gqa_2", "gqa_1", "gqa_1@q8_0", "gqa_2@q4_0", "no_op"],
        ffn=["mlp_512", "mlp_256", "mlp_256@q4_0", "no_op"],
    )
    runs = (*RUNS, *((*run[:2], f"{run[2]}@q4_0", run[3]) for run in RUNS if run[2] != "no_op"))
    wanted = planned_replacements(replace(typed, runs=runs), pico.config, coupled=True)
    assert sorted(wanted) == sorted(library.entries)


def test_losses_are_those_of_the_stored_blocks(pico: Pico, library: BlockLibrary) -> None:
    decoder = pico.decoder()
    for key, entry in library.entries.items():
        assert error(pico, decoder, library, key) == pytest.approx(entry.loss_trained, rel=1e-4)


@pytest.mark.parametrize("key", [(0, 0, "gqa_1", "mlp_256"), (1, 1, "no_op", "mlp_256"), *RUNS[:3]])
def test_training_lowers_the_loss(library: BlockLibrary, key: Replacement) -> None:
    entry = library.entries[key]
    assert entry.loss_trained < entry.loss_initial


def test_a_pair_trained_together_beats_its_singles(pico: Pico, library: BlockLibrary) -> None:
    decoder, singles = (
        pico.decoder(),
        BlockLibrary.from_folder(library.folder, pico.config, library._parent),
    )
    for layer in range(3):
        key = (layer, layer, "no_op", "mlp_256")
        del singles.entries[key]
        assert library.entries[key].loss_trained < error(pico, decoder, singles, key)


def test_every_parent_block_of_a_run_is_tried(library: BlockLibrary) -> None:
    assert library.entries[RUNS[0]].initial_errors.keys() == INITIAL_OF_RUN
    own = library.entries[RUNS[1]].initial_errors.keys()
    assert own == {f"parent+parent of layer {layer}" for layer in range(3)}


def test_a_run_can_begin_as_one_of_its_parent_blocks(pico: Pico, library: BlockLibrary) -> None:
    """The error of each parent block in the place of all three, by the parent's own modules."""
    decoder = pico.decoder()
    with torch.no_grad():
        inputs = decoder.embedding(pico.tokens("validation", 512))
        rotary = decoder.rotary.slice(0, inputs.shape[1], inputs)
        target = inputs
        for block in decoder.blocks:
            target = block(target, rotary)
        for layer, block in enumerate(decoder.blocks):
            found = library.entries[RUNS[1]].initial_errors[f"parent+parent of layer {layer}"]
            expected = (block(inputs, rotary) - target).square().sum() / target.square().sum()
            assert found == pytest.approx(float(expected), rel=1e-4)


def test_a_run_that_is_left_out_has_no_weights(library: BlockLibrary) -> None:
    assert library.block(*RUNS[3]) == {"attention": {}, "ffn": {}}
    assert make_subblock(NoOp(), library.config).state_dict() == {}


def test_pairs_begin_with_the_singles_of_another_library(
    pico: Pico, space: SearchSpace, library: BlockLibrary, tmp_path: Path
) -> None:
    continued = build(pico, space, tmp_path / "continued", start_from=library.folder)
    decoder, singles = (
        pico.decoder(),
        BlockLibrary.from_folder(library.folder, pico.config, library._parent),
    )
    for key in [key for key in singles.entries if key[0] == key[1] and key[2] and key[3]]:
        del singles.entries[key]
    for key, entry in continued.entries.items():
        if not (key[2] and key[3]):
            assert entry == library.entries[key]
        elif key[0] == key[1]:
            assert entry.initial_errors.keys() == {"singles"}
            expected = error(pico, decoder, singles, key)
            assert entry.loss_initial == pytest.approx(expected, rel=1e-4)
        else:
            assert entry == library.entries[key]


def test_a_single_that_is_missing_or_damaged_is_named(
    pico: Pico, space: SearchSpace, tmp_path: Path
) -> None:
    smaller = replace(space, ffn=((pico.config.ffn, "no_op"),) * 3, runs=())
    first = tmp_path / "first"
    build(pico, smaller, first)
    with pytest.raises(InputError, match="holds no ffn mlp_256 for layer 0") as caught:
        build(pico, space, tmp_path / "second", start_from=first)
    assert caught.value.remedy
    file = first / "layer_001" / "attention.gqa_1.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError, match=r"attention\.gqa_1\.safetensors was changed"):
        build(pico, smaller, tmp_path / "third", start_from=first)
    assert not (tmp_path / "third" / "library.json").exists()
