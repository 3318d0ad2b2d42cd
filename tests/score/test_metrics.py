"""Every metric of every kind of replacement, around parent and child, against whole models."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from puzzle_search.arch import ArchitectureSpec, BlockChoice, Replacement
from puzzle_search.errors import InputError
from puzzle_search.files import Journal
from puzzle_search.score import METRICS, Scores, parse_metrics, score_replacements, weights
from puzzle_search.score.vocabulary import top_k_kl
from puzzle_search.solve import ScoreTable
from tests.pico import Pico
from tests.score.helpers import add_random, by_key, obvious, spec_with

JOINT: Replacement = (1, 1, "gqa_1", "mlp_256")
RUN: Replacement = (1, 2, "gqa_1", "mlp_256")
KINDS: list[Replacement] = [
    (0, 0, "", "mlp_256"),
    (0, 0, "gqa_1", "no_op"),
    JOINT,
    (1, 1, "gqa_1", ""),
    RUN,
    (2, 2, "linear", ""),
    (2, 2, "no_op", "no_op"),
]


@pytest.fixture(scope="module")
def library(pico: Pico, pico_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pico library with a pair that was trained together, and a run."""
    folder = tmp_path_factory.mktemp("library") / "library"
    shutil.copytree(pico_library, folder)
    add_random(pico, folder, [JOINT, RUN])
    return folder


@pytest.fixture(scope="module")
def ids(pico: Pico) -> torch.Tensor:
    return pico.tokens("validation", 1024)


def score(
    pico: Pico,
    library: Path,
    replacements: list[Replacement],
    ids: torch.Tensor,
    journal: Path,
    **options: object,
) -> Scores:
    return score_replacements(
        pico.parent,
        pico.open_library(library),
        replacements,
        ids,
        journal=Journal(journal / "scores.journal.jsonl"),
        **{"metrics": METRICS} | options,  # type: ignore[arg-type]
    )


def test_metrics_are_those_of_whole_children(
    pico: Pico, library: Path, ids: torch.Tensor, tmp_path: Path
) -> None:
    scores = score(pico, library, KINDS, ids, tmp_path)
    rows = by_key(scores.rows)
    assert len(rows) == len(scores.rows) == len(KINDS) * len(METRICS)
    for number, change in enumerate(KINDS):
        spec = spec_with(pico, None, change)
        expected = obvious(pico, library, spec, ids, tmp_path / str(number))
        for metric, (mean, stderr) in expected.items():
            row = rows[(*change, metric)]
            # A near tie for the k-th place may go either way in fp32: one token in 1024.
            tolerance = 1e-5 if "top" not in metric else 1.1 / ids.numel()
            assert row.value == pytest.approx(mean, abs=tolerance), (change, metric)
            assert row.stderr == pytest.approx(stderr, abs=tolerance), (change, metric)
            assert row.tokens == ids.numel()
    assert scores.base == []


BASES = {
    "single layers": [(0, 0, "gqa_1", "mlp_512"), JOINT, (2, 2, "gqa_2", "no_op")],
    "a run": [(0, 0, "linear", "mlp_256"), RUN],
}
AROUND: dict[str, list[Replacement]] = {
    "single layers": [
        (0, 0, "", ""),
        (0, 0, "gqa_1", "mlp_256"),
        (1, 1, "", ""),
        (1, 1, "no_op", "mlp_256"),
        RUN,
        (2, 2, "", ""),
    ],
    "a run": [(0, 0, "", ""), (0, 0, "", "no_op"), (0, 0, "gqa_1", "mlp_256")],
}


def child_of(blocks: list[Replacement]) -> ArchitectureSpec:
    return ArchitectureSpec(
        parent="parent",
        blocks=tuple(
            BlockChoice(attention=a, ffn=f, layers=tuple(range(first, last + 1)))
            for first, last, a, f in blocks
        ),
    )


@pytest.mark.parametrize("name", BASES)
def test_around_a_child_the_parent_stays_the_target(
    pico: Pico, library: Path, ids: torch.Tensor, tmp_path: Path, name: str
) -> None:
    base = child_of(BASES[name])
    scores = score(pico, library, AROUND[name], ids, tmp_path, base=base)
    rows = by_key(scores.rows)
    for number, change in enumerate(AROUND[name]):
        spec = spec_with(pico, base, change)
        expected = obvious(pico, library, spec, ids, tmp_path / str(number))
        for metric in ("kl", "lm_loss", "hidden_cosine_distance"):
            assert rows[(*change, metric)].value == pytest.approx(expected[metric][0], abs=1e-5)
    whole = obvious(pico, library, base, ids, tmp_path / "base")
    assert [row.metric for row in scores.base] == list(METRICS)
    for row in scores.base:
        assert (row.first_layer, row.last_layer) == (0, 2)
        if "top" not in row.metric:
            assert row.value == pytest.approx(whole[row.metric][0], abs=1e-5)
    assert "around the child" in scores.table("parent", data="text").sidecar["notes"]


def test_the_vocabulary_in_tiles_gives_the_same(
    pico: Pico, library: Path, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score(pico, library, KINDS, ids, tmp_path / "whole", kl_top_k=20)
    exact = score(pico, library, KINDS, ids, tmp_path / "exact")
    monkeypatch.setitem(weights._TILE_ROWS, "cpu", 64)
    tiled = score(pico, library, KINDS, ids, tmp_path / "tiled", kl_top_k=20)
    tiled_exact = score(pico, library, KINDS, ids, tmp_path / "tiled_exact")
    for one, other in ((whole, tiled), (exact, tiled_exact)):
        for row, same in zip(one.rows, other.rows, strict=True):
            assert same.value == pytest.approx(row.value, abs=1e-6), row


def test_top_k_kl_is_a_lower_bound_that_becomes_exact(
    pico: Pico, library: Path, ids: torch.Tensor, tmp_path: Path
) -> None:
    exact = [r.value for r in score(pico, library, KINDS, ids, tmp_path, metrics=("kl",)).rows]
    before = np.zeros(len(exact))
    for k in (1, 8, 64, 200, pico.config.vocab_size):
        scores = score(pico, library, KINDS, ids, tmp_path / str(k), metrics=("kl",), kl_top_k=k)
        values = np.array([row.value for row in scores.rows])
        # Finer buckets tell more apart.
        assert (values >= before - 1e-6).all()
        assert (values <= np.array(exact) + 1e-6).all()
        before = values
    assert before == pytest.approx(exact, abs=1e-5)


def test_top_k_kl_in_closed_form() -> None:
    parent, own = np.array([0.5, 0.3, 0.1, 0.1]), np.array([0.2, 0.3, 0.4, 0.1])
    expected = 0.5 * np.log(0.5 / 0.2) + 0.3 * np.log(0.3 / 0.3) + 0.2 * np.log(0.2 / 0.5)
    found = top_k_kl(*(torch.tensor(p[None, :2]).log() for p in (parent, own)))
    assert float(found[0]) == pytest.approx(expected)


def test_the_parents_likeliest_tokens_are_kept_on_disk(
    pico: Pico, library: Path, ids: torch.Tensor, tmp_path: Path
) -> None:
    base = child_of(BASES["single layers"])
    options = {"metrics": ("kl", "lm_loss", "top1_disagreement"), "kl_top_k": 16, "base": base}
    first = score(pico, library, AROUND["single layers"], ids, tmp_path, **options)
    file = tmp_path / "scores.journal.parent-top.safetensors"
    written = file.stat().st_mtime_ns
    journal = tmp_path / "scores.journal.jsonl"
    journal.unlink()
    again = score(pico, library, AROUND["single layers"], ids, tmp_path, **options)
    assert again == first
    assert file.stat().st_mtime_ns == written
    # Of other tokens it is not taken, but written anew.
    journal.unlink()
    score(pico, library, KINDS[:1], ids[:8], tmp_path, **options | {"base": None})
    assert file.stat().st_mtime_ns != written
    file.write_bytes(file.read_bytes()[:100])
    journal.unlink()
    with pytest.raises(InputError, match="truncated or damaged"):
        score(pico, library, KINDS[:1], ids[:8], tmp_path, **options | {"base": None})


def test_metrics_by_name() -> None:
    assert parse_metrics("all") == METRICS
    assert parse_metrics("top1_disagreement, kl") == ("kl", "top1_disagreement")
    for text in ("", "kl,loss"):
        with pytest.raises(InputError, match="not known"):
            parse_metrics(text)


def test_one_block_of_tokens_tells_no_standard_error(
    pico: Pico, library: Path, ids: torch.Tensor, tmp_path: Path
) -> None:
    scores = score(pico, library, KINDS[:1], ids[:1], tmp_path)
    table = scores.table("pico", data="test")
    table.write(tmp_path / "scores.csv")
    read = ScoreTable.from_file(tmp_path / "scores.csv").rows
    assert [row.stderr for row in read] == [None] * len(METRICS)
    assert [row.value for row in read] == [row.value for row in scores.rows]
    # A second pass takes them from the journal.
    assert score(pico, library, KINDS[:1], ids[:1], tmp_path).rows == scores.rows
