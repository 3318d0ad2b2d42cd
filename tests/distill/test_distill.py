"""A child distilled from its parent, killed and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.checkpoint import load_decoder, load_tokenizer
from puzzle_search.errors import InputError
from tests.distill.helpers import PAIRS, distilled, make_child, metrics
from tests.pico import Pico, kill_after, run_command


@pytest.fixture(scope="module")
def child(pico: Pico, pico_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_child(pico, pico_library, tmp_path_factory.mktemp("distill") / "child")


def test_the_child_comes_nearer_to_its_parent(pico: Pico, child: Path, tmp_path: Path) -> None:
    out = distilled(pico, child, tmp_path / "out", tokens=512 * 30, held_out_every=10)
    lines = metrics(out)
    assert [line["step"] for line in lines] == list(range(31))
    assert [line["step"] for line in lines if "held_out_kl" in line] == [0, 10, 20, 30]
    before, after = lines[0], lines[-1]
    assert after["held_out_kl"] < 0.7 * before["held_out_kl"]
    assert after["held_out_cosine"] < before["held_out_cosine"]
