"""Little memory, other slices, other neighbours: the same scores to the last bit; faults."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from puzzle_search.arch import ArchitectureSpec, Replacement
from puzzle_search.errors import InputError
from puzzle_search.files import Journal
from puzzle_search.score import METRICS, Scores, replacements_around, score_replacements
from puzzle_search.score.plan import SweepPlan
from puzzle_search.solve import ScoreTable
from tests.pico import Pico, run_here
from tests.score.helpers import by_key


@pytest.fixture(autouse=True)
def one_thread() -> object:
    """So that sums are added in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def score(pico: Pico, library: Path, journal: Path, **options: object) -> Scores:
    replacements = list(pico.space.replacements(pico.config))
    return score_replacements(
        pico.parent,
        pico.open_library(library),
        **{  # type: ignore[arg-type]
            "replacements": replacements,
            "ids": pico.tokens("validation", 1024),
            "journal": Journal(journal),
            "metrics": METRICS,
        }
        | options,
    )


@pytest.fixture(scope="module")
def whole(pico: Pico, pico_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Scores:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    scores = score(pico, pico_library, tmp_path_factory.mktemp("whole") / "journal.jsonl")
    torch.set_num_threads(threads)
    return scores


def test_a_limit_is_kept_with_the_same_scores(
    pico: Pico, pico_library: Path, whole: Scores, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"at least (\d+)MiB, and the limit is 1MiB") as caught:
        score(pico, pico_library, tmp_path / "a.jsonl", max_memory_bytes=2.0**20)
    least = int(re.findall(r"at least (\d+)MiB", str(caught.value))[0])
    for extra in (1, 2, 4):  # streaming with few candidates at once, with many, all kept
        limit = (least + extra) * 2.0**20
        found = score(pico, pico_library, tmp_path / f"{extra}.jsonl", max_memory_bytes=limit)
        assert found == whole


@pytest.mark.parametrize("jobs", [2, 3, 7])
def test_slices_give_the_same_scores(
    pico: Pico, pico_library: Path, whole: Scores, tmp_path: Path, jobs: int
) -> None:
    assert score(pico, pico_library, tmp_path / "journal.jsonl", jobs=jobs) == whole


def test_neighbours_do_not_matter(
    pico: Pico, pico_library: Path, whole: Scores, tmp_path: Path
) -> None:
    some: list[Replacement] = [(2, 2, "no_op", ""), (0, 0, "gqa_1", "mlp_256")]
    scores = score(pico, pico_library, tmp_path / "journal.jsonl", replacements=some)
    expected = by_key(whole.rows)
    for key, row in by_key(scores.rows).items():
        assert row == expected[key]
    assert [row[:4] for row in by_key(scores.rows)][:: len(METRICS)] == some


def test_sweeps_hold_what_fits() -> None:
    asked: list[Replacement] = [
        (layer, layer, f"gqa_{n}", "") for n in (1, 2, 4) for layer in (1, 0)
    ]
    sweeps = list(SweepPlan(resident=True, candidates=2).sweeps(asked))
    assert [[r[0] for r in sweep] for sweep in sweeps] == [[0, 0], [0], [1, 1], [1]]
    sweeps = list(SweepPlan(resident=False, candidates=5).sweeps(asked))
    assert [[r[0] for r in sweep] for sweep in sweeps] == [[0, 0, 0, 1, 1], [1]]


def child(pico: Pico) -> ArchitectureSpec:
    pairs = [("gqa_1", "mlp_512"), ("gqa_2", "mlp_256"), ("gqa_2", "mlp_512")]
    return ArchitectureSpec.of("parent", pairs)


def test_around_a_child_in_little_memory_and_slices(
    pico: Pico, pico_library: Path, tmp_path: Path
) -> None:
    around = list(replacements_around(pico.config, pico.space, child(pico)))
    options = {"base": child(pico), "replacements": around}
    together = score(pico, pico_library, tmp_path / "together.jsonl", **options)
    sliced = score(pico, pico_library, tmp_path / "sliced.jsonl", **options, jobs=3)
    little = score(
        pico, pico_library, tmp_path / "little.jsonl", **options, max_memory_bytes=73 * 2.0**20
    )
    assert together == sliced == little
    assert len(together.base) == len(METRICS)


def test_what_is_around_a_child(pico: Pico) -> None:
    found = set(replacements_around(pico.config, pico.space, child(pico)))
    own = {(0, 0, "gqa_1", ""), (1, 1, "", "mlp_256"), (2, 2, "", "")}
    names = {
        (layer, layer, a, f)
        for layer in range(3)
        for a in ("", "gqa_1", "linear", "no_op")
        for f in ("", "mlp_256", "no_op")
    }
    assert found == names - own
    singles = set(replacements_around(pico.config, pico.space, child(pico), composed=False))
    assert singles < found
    assert {r for r in singles if r[0] == 0} == {
        r for r in found if r[0] == 0 and (r[2] == "gqa_1" or r[3] == "")
    }


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        ((2, 3, "gqa_1", "mlp_256"), "has 3 layers"),
        ((1, 2, "gqa_1", ""), "has no ffn"),
        ((0, 0, "gqa_3", ""), "gqa_3 does not fit"),
        ((0, 0, "dense", ""), "not a variant"),
    ],
)
def test_replacements_that_cannot_be(
    pico: Pico, pico_library: Path, tmp_path: Path, replacement: Replacement, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        score(pico, pico_library, tmp_path / "journal.jsonl", replacements=[replacement])
    assert not (tmp_path / "journal.jsonl").exists()


def test_part_of_a_childs_block_cannot_be_replaced(
    pico: Pico, pico_library: Path, tmp_path: Path
) -> None:
    blocks = child(pico).blocks
    run = blocks[1].__class__(attention="gqa_1", ffn="mlp_256", layers=(1, 2))
    base = ArchitectureSpec(parent="parent", blocks=(blocks[0], run))
    options = {"base": base, "replacements": [(1, 1, "", "")]}
    with pytest.raises(InputError, match="stands for some of layer 1"):
        score(pico, pico_library, tmp_path / "journal.jsonl", **options)


def test_faults_of_the_library(pico: Pico, pico_library: Path, tmp_path: Path) -> None:
    folder = tmp_path / "library"
    shutil.copytree(pico_library, folder)
    missing: list[Replacement] = [(0, 1, "gqa_1", "mlp_256")]
    with pytest.raises(
        InputError, match="holds no attention gqa_1 with ffn mlp_256 for layers 0-1"
    ):
        score(pico, folder, tmp_path / "a.jsonl", replacements=missing)
    file = folder / "layer_001" / "ffn.mlp_256.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"mlp_256\.safetensors"):
        score(pico, folder, tmp_path / "b.jsonl")
    # What came before is kept.
    assert len(Journal(tmp_path / "b.jsonl").read()) == 1 + 11


def test_a_journal_of_another_base_is_not_taken(
    pico: Pico, pico_library: Path, tmp_path: Path
) -> None:
    options = {"replacements": [(0, 0, "", "mlp_256")], "metrics": ("kl",)}
    score(pico, pico_library, tmp_path / "journal.jsonl", **options)
    for other in (
        {"base": child(pico)},
        {"kl_top_k": 5},
        {"dtype": torch.bfloat16},
        {"metrics": ("kl", "lm_loss")},
    ):
        with pytest.raises(InputError, match=f"{next(iter(other))} differ"):
            score(pico, pico_library, tmp_path / "journal.jsonl", **options | other)


def test_too_many_top_tokens(pico: Pico, pico_library: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="KL over 301 tokens: parent has 300"):
        score(pico, pico_library, tmp_path / "journal.jsonl", kl_top_k=301)


def test_the_command_scores_around_a_child(
    pico: Pico, pico_library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    child(pico).write(tmp_path / "child.yaml")
    run_here(
        "score", "--parent", pico.parent, "--library", pico_library, "--space", pico.space_file,
        "--data", pico.corpus, "--out", tmp_path / "around.csv", "--tokens", 512, "--length", 32,
        "--around", tmp_path / "child.yaml", "--max-memory", "80MiB", "--kl-top-k", 50,
        "--metrics", "kl", "--no-composed",
    )  # fmt: skip
    out = capsys.readouterr().out
    assert "the child itself: kl " in out
    table = ScoreTable.from_file(tmp_path / "around.csv")
    around = list(replacements_around(pico.config, pico.space, child(pico), composed=False))
    assert [(r.first_layer, r.last_layer, r.attention, r.ffn) for r in table.rows] == around
    assert "KL over 50 tokens" in table.sidecar["notes"]
