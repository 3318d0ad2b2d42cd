"""Scores of variants with experts against whole children."""

from __future__ import annotations

from pathlib import Path

import pytest

from puzzle_search.files import Journal
from puzzle_search.score import score_replacements
from tests.pico import Pico
from tests.score.helpers import by_key, obvious, spec_with

TOKENS = 512


def test_a_score_is_the_damage_of_the_child_with_that_block(
    pico_experts: Pico, pico_experts_library: Path, tmp_path: Path
) -> None:
    ids = pico_experts.tokens("validation", TOKENS)
    replacements = list(pico_experts.space.replacements(pico_experts.config, composed=False))
    rows = by_key(
        score_replacements(
            pico_experts.parent,
            pico_experts.open_library(pico_experts_library),
            replacements,
            ids,
            journal=Journal(tmp_path / "journal.jsonl"),
            metrics=("kl", "lm_loss"),
        ).rows
    )
    assert len(replacements) == 3 * (1 + 5)
    for replacement in replacements:
        spec = spec_with(pico_experts, None, replacement)
        expected = obvious(pico_experts, pico_experts_library, spec, ids, tmp_path / "child")
        for metric in ("kl", "lm_loss"):
            value, stderr = expected[metric]
            row = rows[*replacement, metric]
            assert row.value == pytest.approx(value, abs=1e-5)
            assert row.stderr == pytest.approx(stderr, abs=1e-5)
        assert rows[*replacement, "kl"].value > 1e-4
