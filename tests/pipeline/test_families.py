"""Every parent family from checkpoint to served child: library, scores, build, runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from puzzle_search.arch import ArchitectureSpec, ParentConfig, SearchSpace
from puzzle_search.build import build_child
from puzzle_search.checkpoint import CheckpointReader, load_decoder, read_model_config
from puzzle_search.checkpoint.block_library import BlockLibrary
from puzzle_search.files import Journal
from puzzle_search.library import BldSettings, build_library
from puzzle_search.model import generate
from puzzle_search.runtime import Engine, ServingDecoder, precision_on
from puzzle_search.score import score_replacements
from tests.model.pico import random_ids, write_parent

CPU = torch.device("cpu")
LENGTH = 24
PARENTS: dict[str, dict[str, Any]] = {
    "window": {"model_type": "mistral", "sliding_window": 7},
    "smollm3": {"model_type": "smollm3", "no_rope_layers": [1, 0, 1], "pad_token_id": 0},
    "granite": {
        "model_type": "granite", "embedding_multiplier": 3.0, "attention_multiplier": 0.1,
        "residual_multiplier": 0.4, "logits_scaling": 0.5,
    },
    "olmo2": {"model_type": "olmo2"},
    "phi3": {"model_type": "phi3", "pad_token_id": 0},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Made:
    """A parent as transformers has it, and what was made of it."""

    reference: Any
    config: ParentConfig
    parent: Path
    library: Path
    scores: dict[tuple[int, str, str], float]


@pytest.fixture(scope="module", params=PARENTS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    parent, out = folder / "parent", folder / "library"
    reference = write_parent(
        parent, num_hidden_layers=3, num_key_value_heads=2, **PARENTS[request.param]
    )
    config = ParentConfig.from_file(parent)
    space = SearchSpace.uniform(
        config,
        attention=["gqa_2", "gqa_1", "gqa_2_window_5", "linear"],
        ffn=["mlp_512", "mlp_256", "linear"],
    )
    settings = BldSettings(tokens=4 * LENGTH, batch_tokens=LENGTH)
    build_library(
        parent, space, random_ids(8, LENGTH), random_ids(4, LENGTH, seed=1), out, settings
    )
    rows = score_replacements(
        parent,
        BlockLibrary.from_folder(out, config, CheckpointReader(parent)),
        list(space.replacements(config, composed=False)),
        random_ids(4, LENGTH, seed=2),
        journal=Journal(folder / "journal.jsonl"),
        metrics=("kl",),
    ).table("parent", data="random").rows  # fmt: skip
    scores = {(row.first_layer, row.attention, row.ffn): row.value for row in rows}
    return Made(reference=reference, config=config, parent=parent, library=out, scores=scores)


def child_of(made: Made, folder: Path, *changes: tuple[int, str, str]) -> Path:
    pairs = [(made.config.attention, made.config.ffn)] * 3
    for layer, attention, ffn in changes:
        pairs[layer] = (attention or made.config.attention, ffn or made.config.ffn)
    spec = ArchitectureSpec.of("parent", pairs)
    return build_child(made.parent, made.library, spec, folder, dtype="fp32")


@torch.no_grad()
def test_the_identity_child_is_transformers_parent(made: Made, tmp_path: Path) -> None:
    child, ids = child_of(made, tmp_path / "child"), random_ids(2, 40)
    read, _ = read_model_config(child)
    assert read == made.config
    torch.testing.assert_close(
        load_decoder(child)(ids), made.reference(ids).logits, atol=1e-4, rtol=0
    )


@torch.no_grad()
@pytest.mark.parametrize(
    "change", [(0, "gqa_1", ""), (1, "linear", ""), (1, "gqa_1", ""), (2, "", "mlp_256"),
               (1, "", "linear"), (1, "gqa_2_window_5", "")]
)  # fmt: skip
def test_a_score_is_the_kl_of_the_child_run_whole(
    made: Made, change: tuple[int, str, str], tmp_path: Path
) -> None:
    ids = random_ids(4, LENGTH, seed=2)
    child = load_decoder(child_of(made, tmp_path / "child", change))
    expected = made.reference(ids).logits.double().log_softmax(-1)
    found = child(ids).double().log_softmax(-1)
    kl = float((expected.exp() * (expected - found)).sum(-1).mean())
    assert kl > 1e-3
    assert made.scores[change] == pytest.approx(kl, rel=1e-3, abs=1e-5)


def test_the_runtime_serves_the_child(made: Made, tmp_path: Path) -> None:
    child = child_of(
        made, tmp_path / "child", (0, "gqa_2_window_5", "mlp_256"), (1, "linear", ""),
        (2, "gqa_1", "linear"),
    )  # fmt: skip
    ids = random_ids(3, 20, seed=3)
    expected = torch.stack(list(generate(load_decoder(child), ids, max_new_tokens=12)), dim=1)
    served = ServingDecoder.from_checkpoint(child, precision_on("fp32", CPU), CPU)
    engine = Engine(served, slots=3, max_length=32, chunk_tokens=30)
    tokens = [engine.prefill(range(3), ids).clone()]
    tokens += [engine.decode().clone() for _ in range(11)]
    assert torch.equal(torch.stack(tokens, dim=1), expected)


def test_attention_in_a_window_begins_as_the_parents(made: Made) -> None:
    """And a library may keep it so, where training does not help."""
    library = BlockLibrary.from_folder(made.library, made.config, CheckpointReader(made.parent))
    entries = [entry for key, entry in library.entries.items() if key[2] == "gqa_2_window_5"]
    assert [entry.initialised_by for entry in entries] == ["parent"] * 3
