"""Replace-1-block scores against whole models, run the obvious way."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.build import build_child
from puzzle_search.checkpoint import load_decoder
from puzzle_search.errors import InputError
from puzzle_search.files import Journal, file_hash
from puzzle_search.score import score_replacements
from puzzle_search.solve import ScoreTable
from tests.pico import Pico

TOKENS = 1024


def score(
    pico: Pico,
    library: Path,
    journal: Path,
    *,
    composed: bool = True,
    ids: torch.Tensor | None = None,
) -> ScoreTable:
    return score_replacements(
        pico.parent,
        pico.open_library(library),
        list(pico.space.replacements(pico.config, composed=composed)),
        pico.tokens("validation", TOKENS) if ids is None else ids,
        journal=Journal(journal),
        metrics=("kl",),
    ).table("parent", data="text")


@pytest.fixture(scope="module")
def table(pico: Pico, pico_library: Path, tmp_path_factory: pytest.TempPathFactory) -> ScoreTable:
    return score(pico, pico_library, tmp_path_factory.mktemp("score") / "journal.jsonl")


def log_probabilities(folder: Path, ids: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        logits = load_decoder(folder)(ids).double().numpy()
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    found: np.ndarray = shifted - log_sum
    return found


@pytest.mark.parametrize(
    ("layer", "attention", "ffn"),
    [
        (0, "gqa_1", "mlp_512"),
        (1, "gqa_2", "mlp_256"),
        (2, "linear", "mlp_512"),
        (0, "no_op", "no_op"),
        (1, "linear", "mlp_256"),
        (2, "gqa_1", "no_op"),
    ],
)
def test_a_score_is_the_kl_of_the_child_with_that_block(
    pico: Pico,
    pico_library: Path,
    table: ScoreTable,
    tmp_path: Path,
    layer: int,
    attention: str,
    ffn: str,
) -> None:
    pairs = [("gqa_2", "mlp_512")] * 3
    pairs[layer] = (attention, ffn)
    spec = ArchitectureSpec.of("parent", pairs)
    child = build_child(pico.parent, pico_library, spec, tmp_path / "child", dtype="fp32")
    ids = pico.tokens("validation", TOKENS)
    parent, student = log_probabilities(pico.parent, ids), log_probabilities(child, ids)
    kl = (np.exp(parent) * (parent - student)).sum(axis=-1)
    per_block = kl.mean(axis=1)
    found = table.block_damage(layer, attention, ffn, pico.config, {"kl": 1.0})
    assert found == pytest.approx(kl.mean(), abs=1e-5)
    assert found > 1e-3
    [row] = [
        row
        for row in table.rows
        if (row.first_layer, row.attention or "gqa_2", row.ffn or "mlp_512")
        == (layer, attention, ffn)
    ]
    assert row.stderr == pytest.approx(per_block.std(ddof=1) / np.sqrt(len(per_block)), abs=1e-5)


def test_scores_of_weights_in_another_type(pico: Pico, pico_library: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="pip install 'puzzle-search[gguf]'")
    wanted = {
        (0, "gqa_2@q4_0", ""): ("gqa_2", "mlp_512"),
        (1, "", "mlp_256@q4_0"): ("gqa_2", "mlp_256"),
        (2, "linear@q4_0", "mlp_512@q8_0"): ("linear", "mlp_512"),
    }
    ids = pico.tokens("validation", TOKENS)
    found = score_replacements(
        pico.parent,
        pico.open_library(pico_library),
        [(layer, layer, attention, ffn) for layer, attention, ffn in wanted],
        ids,
        journal=Journal(tmp_path / "journal.jsonl"),
        metrics=("kl",),
    ).table("parent", data="text")
    parent = log_probabilities(pico.parent, ids)
    for (layer, *typed), shapes in wanted.items():
        pairs = [("gqa_2", "mlp_512")] * 3
        pairs[layer] = shapes
        spec = ArchitectureSpec.of("parent", pairs)
        child = build_child(pico.parent, pico_library, spec, tmp_path / f"{layer}", dtype="fp32")
        weights = load_file(child / "model.safetensors")
        for name, matrix in weights.items():
            of = typed["mlp" in name].partition("@")[2]
            if f"layers.{layer}." in name and matrix.ndim == 2 and of:
                stored = gguf.GGMLQuantizationType[of.upper()]
                data = gguf.quants.quantize(matrix.numpy(), stored)
                weights[name] = torch.from_numpy(gguf.quants.dequantize(data, stored))
        save_file(weights, child / "model.safetensors")
        student = log_probabilities(child, ids)
        kl = (np.exp(parent) * (parent - student)).sum(axis=-1).mean()
        [row] = [row for row in found.rows if row.first_layer == layer]
        assert row.value == pytest.approx(kl, rel=1e-3, abs=1e-6)
        assert row.value > 1e-4
        # A child that names the types computes the same.
        pairs[layer] = tuple(t or s for t, s in zip(typed, shapes, strict=True))
        spec = ArchitectureSpec.of("parent", pairs)
        child = build_child(pico.parent, pico_library, spec, tmp_path / "typed", dtype="fp32")
        assert np.allclose(log_probabilities(child, ids), student, atol=1e-5)


def test_every_pair_but_the_parents_own_is_scored(table: ScoreTable) -> None:
    keys = {(row.first_layer, row.attention, row.ffn) for row in table.rows}
    attention, ffn = ("", "gqa_1", "linear", "no_op"), ("", "mlp_256", "no_op")
    assert keys == {(n, a, f) for n in range(3) for a in attention for f in ffn if a or f}
    assert len(table.rows) == len(keys)
    for row in table.rows:
        assert row.last_layer == row.first_layer
        assert row.metric == "kl"
        assert row.tokens == TOKENS
        assert 0 < row.stderr < row.value


def test_singles_alone_are_the_same_singles(
    pico: Pico, pico_library: Path, table: ScoreTable, tmp_path: Path
) -> None:
    singles = score(pico, pico_library, tmp_path / "journal.jsonl", composed=False)
    assert len(singles.rows) == 3 * (3 + 2)
    expected = {(r.first_layer, r.attention, r.ffn): r.value for r in table.rows}
    for row in singles.rows:
        assert not (row.attention and row.ffn)
        assert row.value == pytest.approx(expected[row.first_layer, row.attention, row.ffn])


def test_one_block_of_text_has_no_standard_error(
    pico: Pico, pico_library: Path, tmp_path: Path
) -> None:
    ids = pico.tokens("validation", TOKENS)[:1]
    single = score(pico, pico_library, tmp_path / "journal.jsonl", composed=False, ids=ids)
    assert {row.stderr for row in single.rows} == {None}  # not zero: it is not known


def test_the_sidecar_says_what_was_scored(table: ScoreTable, tmp_path: Path) -> None:
    table.write(tmp_path / "scores.csv")
    read = ScoreTable.from_file(tmp_path / "scores.csv")
    assert read.rows == table.rows
    assert read.evidence == "measured"
    assert "1024 tokens, sha256 " in read.sidecar["data"]


def test_scores_of_other_tokens_are_not_taken(
    pico: Pico, pico_library: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "journal.jsonl"
    score(pico, pico_library, journal, composed=False)
    ids = pico.tokens("validation", TOKENS)
    with pytest.raises(InputError, match=r"journal\.jsonl .*tokens_sha256 differ") as caught:
        score(pico, pico_library, journal, composed=False, ids=ids.flip(0)[:4])
    assert "delete that file" in caught.value.remedy


def test_scores_of_another_library_are_not_taken(
    pico: Pico, pico_library: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "journal.jsonl"
    score(pico, pico_library, journal, composed=False)
    pico.library(tmp_path / "trained", tokens=512)
    with pytest.raises(InputError, match="library_sha256 differ"):
        score(pico, tmp_path / "trained", journal, composed=False)


def test_a_journal_without_its_first_line_is_not_taken(
    pico: Pico, pico_library: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "journal.jsonl"
    score(pico, pico_library, journal, composed=False)
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[1:]))
    with pytest.raises(InputError, match="another run"):
        score(pico, pico_library, journal, composed=False)


def test_a_score_with_a_missing_field_names_the_journal(
    pico: Pico, pico_library: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "journal.jsonl"
    score(pico, pico_library, journal, composed=False)
    with journal.open("a") as file:
        file.write('{"first_layer": 0}\n')
    with pytest.raises(InputError, match=r"journal\.jsonl"):
        score(pico, pico_library, journal, composed=False)


def test_a_wider_space_adds_to_the_journal(
    pico: Pico, pico_library: Path, table: ScoreTable, tmp_path: Path
) -> None:
    journal = tmp_path / "journal.jsonl"
    singles = score(pico, pico_library, journal, composed=False)
    begun = journal.read_bytes()
    wider = score(pico, pico_library, journal)
    assert journal.read_bytes().startswith(begun)
    assert set(singles.rows) < set(wider.rows)
    assert len(wider.rows) == len(table.rows)


def test_a_score_that_is_not_finite_is_refused(
    pico: Pico, pico_library: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "library"
    shutil.copytree(pico_library, folder)
    file = folder / "layer_001" / "attention.gqa_1.safetensors"
    tensors = load_file(file)
    tensors["attention.v_proj.weight"][0, 0] = float("inf")
    save_file(tensors, file)
    library = pico.open_library(folder)
    key = (1, 1, "gqa_1", "")
    entry = dataclasses.replace(library.entries[key], sha256=file_hash(file))
    library.entries[key] = entry
    journal = Journal(tmp_path / "journal.jsonl")
    with pytest.raises(InputError, match=r"layer 1 .*gqa_1 .*not finite"):
        score_replacements(
            pico.parent,
            library,
            [(layer, layer, "gqa_1", "") for layer in range(3)],
            pico.tokens("validation", 128),
            journal=journal,
        )
    assert [line.get("first_layer") for line in journal.read()] == [None, 0]
