"""A full disk, a parent that gives NaN, too little GPU memory, a kill beside the journal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from puzzle_search.errors import InputError
from puzzle_search.files import Journal
from puzzle_search.score import Scores, score_replacements
from tests.faults import SmallDisk, killed_while_writing, with_nan
from tests.pico import Pico, run_here


def scored(pico: Pico, library: Path, folder: Path) -> Scores:
    return score_replacements(
        pico.parent,
        pico.open_library(library),
        list(pico.space.replacements(pico.config)),
        pico.tokens("validation", 256),
        journal=Journal(folder / "journal.jsonl"),
    )


def test_a_full_disk_is_reported_and_scoring_goes_on(
    pico: Pico, pico_library: Path, small_disk: SmallDisk, tmp_path: Path
) -> None:
    small_disk.resize(kib=8)  # two pages: the folder and its name take none
    with pytest.raises(InputError, match=r"journal\.jsonl: no space is left") as caught:
        scored(pico, pico_library, small_disk.folder)
    assert "run the same command again" in caught.value.remedy
    journal = small_disk.folder / "journal.jsonl"
    before = journal.read_bytes()
    whole_lines = before[: before.rfind(b"\n") + 1]
    assert whole_lines.count(b"\n") > 2
    small_disk.resize(kib=64)
    found = scored(pico, pico_library, small_disk.folder)
    assert journal.read_bytes().startswith(whole_lines)
    assert found == scored(pico, pico_library, tmp_path)


def test_a_parent_with_nan_is_refused(pico: Pico, pico_library: Path, tmp_path: Path) -> None:
    broken = with_nan(pico, tmp_path / "parent", "model.layers.2.mlp.down_proj.weight")
    journal = Journal(tmp_path / "journal.jsonl")
    with pytest.raises(InputError, match=r"parent's hidden states .* not finite") as caught:
        score_replacements(
            broken.parent,
            pico.open_library(pico_library),
            [(0, 0, "gqa_1", "")],
            pico.tokens("validation", 128),
            journal=journal,
        )
    assert "parent's weights" in caught.value.remedy
    assert len(journal.read()) == 1  # what it was made from, and no score


def test_too_little_gpu_memory_is_told(
    pico: Pico, pico_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("puzzle_search.score.sweep.Sweeper.sweep", fail)
    with pytest.raises(InputError, match="scoring ran out of GPU memory") as caught:
        scored(pico, pico_library, tmp_path)
    assert "--max-memory" in caught.value.remedy


def test_scoring_killed_while_it_writes_the_parents_tokens(
    pico: Pico, pico_library: Path, tmp_path: Path
) -> None:
    def arguments(name: str) -> list[object]:
        return [
            "score", "--parent", pico.parent, "--library", pico_library, "--space",
            pico.space_file, "--data", pico.corpus, "--out", tmp_path / name / "scores.csv",
            "--tokens", 512, "--length", 32, "--metrics", "kl", "--kl-top-k", 20,
        ]  # fmt: skip

    killed_while_writing(r"parent-top", 1, *arguments("killed"))
    assert not list((tmp_path / "killed").glob("*.safetensors"))
    run_here(*arguments("killed"))
    run_here(*arguments("whole"))
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for name in ("scores.csv", "scores.yaml"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    name = "scores.journal.parent-top.safetensors"
    tokens, expected = load_file(killed / name), load_file(whole / name)
    assert tokens.keys() == expected.keys()
    assert all(torch.equal(tokens[key], expected[key]) for key in expected)
