"""gpt-oss from checkpoint to child: windows in turn, sinks, clamped experts with biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from puzzle_search.arch import ArchitectureSpec, ParentConfig, SearchSpace
from puzzle_search.build import build_child
from puzzle_search.checkpoint import CheckpointReader, load_decoder
from puzzle_search.checkpoint.block_library import BlockLibrary
from puzzle_search.errors import InputError
from puzzle_search.files import Journal
from puzzle_search.library import BldSettings, build_library
from puzzle_search.runtime import ServingDecoder, precision_on
from puzzle_search.score import score_replacements
from tests.model.pico import random_ids, write_parent
from tests.model.test_parity import GPT_OSS

LENGTH = 24


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("gpt-oss") / "parent"
    return folder, write_parent(folder, **GPT_OSS)


def test_scores_are_the_kl_of_children_run_whole(parent: tuple[Path, Any], tmp_path: Path) -> None:
    folder, reference = parent
    config = ParentConfig.from_file(folder)
    space = SearchSpace.uniform(
        config,
        attention=["gqa_2", "gqa_1", "gqa_2_window_5", "gqa_1_window_11", "linear"],
        ffn=["moe_6", "moe_3", "moe_6_top_1", "moe_4_width_32", "linear"],
    )
    windowed = ("gqa_2_window_11", "gqa_2_window_5", "gqa_1_window_11", "linear")
    assert space.attention[0] == space.attention[2] == windowed
    assert space.attention[1] == ("gqa_2", "gqa_1", "gqa_2_window_5", "gqa_1_window_11", "linear")
    library, ids = tmp_path / "library", random_ids(4, LENGTH, seed=2)
    settings = BldSettings(tokens=4 * LENGTH, batch_tokens=LENGTH)
    build_library(
        folder, space, random_ids(8, LENGTH), random_ids(4, LENGTH, seed=1), library, settings
    )
    scores = score_replacements(
        folder,
        BlockLibrary.from_folder(library, config, CheckpointReader(folder)),
        list(space.replacements(config, composed=False)),
        ids,
        journal=Journal(tmp_path / "journal.jsonl"),
        metrics=("kl",),
    ).table("parent", data="random").rows  # fmt: skip
    found = {(row.first_layer, row.attention, row.ffn): row.value for row in scores}
    identity = ArchitectureSpec.identity(config).blocks
    for change in (
        (), (0, "gqa_2_window_5", ""), (1, "gqa_1", ""), (2, "gqa_1_window_11", ""),
        (1, "", "moe_3"), (0, "", "moe_4_width_32"), (2, "", "linear"),
    ):  # fmt: skip
        pairs = [(block.attention, block.ffn) for block in identity]
        if change:
            layer, attention, ffn = change
            pairs[layer] = (attention or pairs[layer][0], ffn or pairs[layer][1])
        spec = ArchitectureSpec.of("parent", pairs)
        child = build_child(folder, library, spec, tmp_path / f"child-{change}", dtype="fp32")
        with torch.no_grad():
            expected = reference(ids).logits.double().log_softmax(-1)
            kl = expected.exp() * (expected - load_decoder(child)(ids).double().log_softmax(-1))
        wanted = found[change] if change else 0.0
        assert float(kl.sum(-1).mean()) == pytest.approx(wanted, rel=1e-3, abs=1e-5), change


def test_the_runtime_refuses_sinks(parent: tuple[Path, Any]) -> None:
    device = torch.device("cpu")
    with pytest.raises(InputError, match="attention sinks"):
        ServingDecoder.from_checkpoint(parent[0], precision_on("fp32", device), device)
