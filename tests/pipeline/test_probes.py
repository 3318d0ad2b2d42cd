"""Candidates that short distillations compare, in a whole run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.errors import InputError
from puzzle_search.pipeline.recipes.recipe import read_recipe
from puzzle_search.pipeline.run import run_recipe
from puzzle_search.pipeline.status import run_status
from puzzle_search.solve.question.run_folder import RunFolder
from tests.pico import Pico
from tests.pipeline.test_run import write_recipe

# Four candidates in two rungs: 4 x 64 and 2 x 128 tokens are a quarter of the final distillation.
TOKENS = 4 * (4 * 64 + 2 * 128)


def probing(pico: Pico, folder: Path, tokens: int) -> Path:
    file = write_recipe(pico, folder, solve={"candidates": 4})
    asked = yaml.safe_load(file.read_text()) | {"distill": {"tokens": tokens, "batch_tokens": 64}}
    file.write_text(yaml.safe_dump(asked))
    return file


def test_the_best_candidate_after_its_probes_is_built(pico: Pico, tmp_path: Path) -> None:
    file, run = probing(pico, tmp_path, TOKENS), tmp_path / "run"
    result = run_recipe(read_recipe(file), run)
    found = json.loads((run / "probe" / "probes.json").read_text())
    assert [(one["rung"], one["tokens"]) for one in found["probes"]] == [(0, 64)] * 4 + [
        (1, 128)
    ] * 2
    assert found["tokens"] == TOKENS // 4
    # What each probe reached stands in its child's own record.
    for one in found["probes"]:
        child = run / "probe" / "children" / str(one["child"]) / f"rung-{one['rung']}"
        record = json.loads((child / "distillation.json").read_text())
        assert one["held_out_kl"] == record["held_out"]["after"]["held_out_kl"]
        assert record["tokens"] == one["tokens"]
    last = [one for one in found["probes"] if one["rung"] == 1]
    best = min(last, key=lambda one: one["held_out_kl"])["child"]
    assert found["chosen"] == best
    candidate = ArchitectureSpec.from_file(run / "solve" / "candidates" / f"{best:02}.yaml")
    for spec in (result.child / "architecture.yaml", run / "probe" / "architecture.yaml"):
        assert ArchitectureSpec.from_file(spec).blocks == candidate.blocks
    assert RunFolder.open(run).spec.blocks == candidate.blocks
    assert any("probes of 4 children on 512 tokens" in line for line in result.comparison.remarks)
    status = {stage.name: stage.gave for stage in run_status(run).stages}
    assert status["probe"] == f"candidate {best + 1} of 4"
    # Without candidates the probes go, and what was made from them.
    plain = yaml.safe_load(file.read_text()) | {"solve": {"target_speedup": 1.1, "margin": 0.0}}
    file.write_text(yaml.safe_dump(plain))
    again = run_recipe(read_recipe(file), run)
    assert not (run / "probe").exists()
    assert "probe" in again.removed
    assert "library" in again.skipped


def test_too_few_tokens_for_probes_are_told_before_the_first_stage(
    pico: Pico, tmp_path: Path
) -> None:
    file = probing(pico, tmp_path, TOKENS - 64)
    with pytest.raises(InputError, match="too few for probes of 4 children"):
        run_recipe(read_recipe(file), tmp_path / "run")
    assert not (tmp_path / "run" / "profile").exists()
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"distill": None}))
    with pytest.raises(InputError, match=r"solve\.candidates: distillation chooses"):
        read_recipe(file)
