"""Scores in bf16 against whole models in fp64, and small differences in closed form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from puzzle_search.arch import Replacement
from puzzle_search.files import Journal
from puzzle_search.score import METRICS, score_replacements, weights
from puzzle_search.score.vocabulary import Tally, Tile, Wanted, parent_targets
from tests.pico import Pico
from tests.score.helpers import by_key, obvious, spec_with

KINDS: list[Replacement] = [
    (0, 0, "", "mlp_256"),
    (0, 0, "gqa_1", "no_op"),
    (1, 1, "gqa_1", "mlp_256"),
    (2, 2, "linear", ""),
    (2, 2, "no_op", "no_op"),
]


@pytest.mark.parametrize("options", [{}, {"max_memory_bytes": 80 * 2.0**20}, {"kl_top_k": 300}])
def test_metrics_are_those_of_whole_children(
    pico: Pico,
    pico_library: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, float],
) -> None:
    monkeypatch.setitem(weights._TILE_ROWS, "cpu", 128)
    ids = pico.tokens("validation", 1024)
    scores = score_replacements(
        pico.parent,
        pico.open_library(pico_library),
        KINDS,
        ids,
        journal=Journal(tmp_path / "journal.jsonl"),
        metrics=METRICS,
        dtype=torch.bfloat16,
        **options,  # type: ignore[arg-type]
    )
    found = by_key(scores.rows)
    for number, kind in enumerate(KINDS):
        spec = spec_with(pico, None, kind)
        expected = obvious(pico, pico_library, spec, ids, tmp_path / f"child{number}")
        for metric, (value, stderr) in expected.items():
            assert abs(found[*kind, metric].value - value) < stderr, (kind, metric)


def test_a_small_difference_is_not_lost_in_rounding() -> None:
    """Logits of 20 and more, rounded to bf16, would be off by more than what is measured."""
    generator = torch.Generator().manual_seed(0)
    parent_ND = torch.randn(64, 32, generator=generator) * 4
    child_ND = parent_ND + torch.randn(64, 32, generator=generator) * 2e-3
    head_VD = torch.randn(500, 32, generator=generator)
    ids_BL = torch.randint(500, (2, 32), generator=generator)
    tiles, wanted = [(0, head_VD[:300]), (300, head_VD[300:])], Wanted(metrics=("kl",))
    [target] = parent_targets([parent_ND], [ids_BL], tiles, wanted, mean_rows=False)
    tally = Tally((child_ND - parent_ND).bfloat16(), ids_BL, target, wanted)
    for start, tile_VD in tiles:
        tally.add(Tile.beside(start, tile_VD, target))
    log_probs = [(x.double() @ head_VD.double().T).log_softmax(-1) for x in (child_ND, parent_ND)]
    expected = F.kl_div(*log_probs, reduction="none", log_target=True).sum(-1).view(2, 32).mean(1)
    assert float(expected.mean()) < 1e-4
    torch.testing.assert_close(tally.metrics()["kl"], expected, rtol=0.03, atol=1e-6)
    rounded = [(x.bfloat16() @ head_VD.bfloat16().T).double().log_softmax(-1)
               for x in (child_ND, parent_ND)]  # fmt: skip
    naive = F.kl_div(*rounded, reduction="none", log_target=True).sum(-1).mean()
    assert float(naive) > 2 * float(expected.mean())
