"""A parent whose head is its embedding, distilled by one process and by two."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.distill.helpers import make_child, metrics
from tests.distill.test_distill import run_on_two
from tests.pico import Pico, run_here

STEPS, STEP_TOKENS = 12, 512


@pytest.fixture(scope="module")
def tied(pico: Pico, tmp_path_factory: pytest.TempPathFactory) -> Pico:
    """The pico parent's sizes with one matrix for embedding and head."""
    folder = tmp_path_factory.mktemp("tied") / "parent"
    config = LlamaConfig.from_pretrained(pico.parent)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(pico.parent).save_pretrained(folder)
    return replace(pico, parent=folder)


def test_two_processes_keep_the_head_tied_and_compute_what_one_does(
    tied: Pico, tmp_path: Path
) -> None:
    tied.library(tmp_path / "library")
    child = make_child(tied, tmp_path / "library", tmp_path / "child")
    words = [
        "distill", "--parent", tied.parent, "--child", child, "--data", tied.corpus,
        "--tokens", STEPS * STEP_TOKENS, "--batch-tokens", STEP_TOKENS, "--length", 32,
        "--held-out-tokens", 256, "--held-out-every", 4, "--losses", "lm,cosine,kl",
        "--learning-rate", 2e-3, "--dtype", "fp32", "--out-dtype", "fp32", "--out",
    ]  # fmt: skip
    run_here(*words, tmp_path / "one")
    finished = run_on_two(*words, tmp_path / "two")
    assert finished.returncode == 0, finished.stderr
    lines_of_one, lines_of_two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert len(lines_of_one) == STEPS + 1
    for one, two in zip(lines_of_one, lines_of_two, strict=True):
        losses = [name for name in one if name.endswith(("loss", "lm", "cosine", "kl"))]
        assert {name: two[name] for name in losses} == pytest.approx(
            {name: one[name] for name in losses}, abs=1e-6
        )
    begun, alone, both = (
        load_file(folder / "model.safetensors")
        for folder in (child, tmp_path / "one", tmp_path / "two")
    )
    assert "lm_head.weight" not in both
    moved = both["model.embed_tokens.weight"] - begun["model.embed_tokens.weight"]
    apart = both["model.embed_tokens.weight"] - alone["model.embed_tokens.weight"]
    assert moved.norm() > 0
    assert apart.norm() < 1e-3 * moved.norm()
    assert json.loads((tmp_path / "two" / "config.json").read_text())["tie_word_embeddings"]
