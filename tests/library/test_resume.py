"""A library that was killed is finished as if it had not been."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from puzzle_search.checkpoint.block_library import BlockLibrary
from puzzle_search.errors import InputError
from puzzle_search.files import file_hash
from puzzle_search.library import BldSettings, build_library
from tests.pico import Pico, kill_after, make_pico, run_here

UNITS = 15
COUPLED_UNITS = 3 * 5 + 2
SPACE = """\
format: puzzle-search.search-space/1
attention: [gqa_2, gqa_1]
ffn: [mlp_512, mlp_256, no_op]
runs: [{lengths: [2], attention: [gqa_1], ffn: [mlp_256]}]
"""


def arguments(pico: Pico, out: Path) -> list[object]:
    return [
        "library", "--parent", pico.parent, "--space", pico.space_file, "--data", pico.corpus,
        "--out", out, "--tokens", 8192, "--held-out-tokens", 512, "--length", 32,
    ]  # fmt: skip


def hashes(folder: Path) -> dict[str, str]:
    files = [*folder.rglob("*.safetensors"), *folder.glob("curves/[!.]*"), folder / "library.json"]
    return {str(file.relative_to(folder)): file_hash(file) for file in sorted(files)}


def results(journal: Path) -> list[tuple[int, int, str, str]]:
    lines = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    return [
        tuple(line[key] for key in ("first_layer", "last_layer", "attention", "ffn"))
        for line in lines
    ]


def test_a_killed_library_is_continued(pico: Pico, tmp_path: Path) -> None:
    """Of singles, pairs and blocks for runs, killed among the first pairs."""
    space, killed, whole = tmp_path / "space.yaml", tmp_path / "killed", tmp_path / "whole"
    space.write_text(SPACE)
    coupled = replace(pico, space_file=space)
    journal = killed / "journal.jsonl"
    before = kill_after(journal, 5, *arguments(coupled, killed), "--coupled")
    assert not (killed / "library.json").exists()
    done = before.count(b"\n") - 1
    assert 4 <= done < COUPLED_UNITS
    # A crash in the middle of a write: the last whole entry loses its second half.
    kept = before[: before.rstrip(b"\n").rfind(b"\n") + 40]
    journal.write_bytes(kept)
    written = {
        file: file.stat().st_mtime_ns
        for file in killed.rglob("*.safetensors")
        if file.name[0] != "."
    }
    run_here(*arguments(coupled, killed), "--coupled")
    # Not one journaled unit was done again; its files are those of the first process.
    repeated = {f for f, time in written.items() if f.stat().st_mtime_ns != time}
    assert len(written) - len(repeated) == done - 1
    units = results(journal)
    assert len(units) == len(set(units)) == COUPLED_UNITS
    assert journal.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])

    run_here(*arguments(coupled, whole), "--coupled")
    assert hashes(killed) == hashes(whole)
    assert {(0, 0, "gqa_1", "no_op"), (0, 1, "gqa_1", "mlp_256")} <= set(units)
    assert not (killed / "hidden_states").exists()


@pytest.mark.slow
def test_a_library_killed_with_hidden_states_on_disk_is_continued(
    pico: Pico, tmp_path: Path
) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    little = ("--max-memory", "40MiB", "--dtype", "fp32")
    kill_after(killed / "journal.jsonl", 4, *arguments(pico, killed), *little)
    assert list((killed / "hidden_states").iterdir())
    run_here(*arguments(pico, killed), *little)
    assert not (killed / "hidden_states").exists()
    run_here(*arguments(pico, whole), "--dtype", "fp32")
    assert hashes(killed) == hashes(whole)


def test_a_finished_library_is_not_made_again(pico: Pico, tmp_path: Path) -> None:
    pico.library(tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    pico.library(tmp_path)
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    assert len(results(tmp_path / "journal.jsonl")) == UNITS


def test_a_library_of_other_settings_is_not_continued(pico: Pico, tmp_path: Path) -> None:
    pico.library(tmp_path)
    with pytest.raises(InputError, match=r"journal\.jsonl .*settings differ") as caught:
        pico.library(tmp_path, tokens=1024)
    assert "delete that file" in caught.value.remedy
    assert hashes(tmp_path).keys() > {"library.json"}


def test_a_library_of_other_text_is_not_continued(pico: Pico, tmp_path: Path) -> None:
    pico.library(tmp_path)
    ids = pico.tokens("train", 2048)
    other = torch.where(ids == ids[0, 0], ids[0, 1], ids)
    held_out = pico.tokens("validation", 512)
    with pytest.raises(InputError, match="tokens_sha256 differ"):
        build_library(pico.parent, pico.space, other, held_out, tmp_path, BldSettings(tokens=0))


def test_a_library_of_another_parent_is_neither_continued_nor_opened(
    pico: Pico, pico_library: Path, tmp_path: Path
) -> None:
    """Of the same shape: only the weights tell."""
    other = make_pico(tmp_path / "other")
    weights = other.parent / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match=r"library\.json was made of another parent"):
        other.open_library(pico_library)
    pico.library(tmp_path / "library")
    with pytest.raises(InputError, match="parent_sha256 differ"):
        other.library(tmp_path / "library")


def test_after_the_remedy_the_library_is_made_anew(pico: Pico, tmp_path: Path) -> None:
    pico.library(tmp_path)
    (tmp_path / "journal.jsonl").unlink()
    library = pico.library(tmp_path, tokens=1024)
    assert {entry.tokens for key, entry in library.entries.items() if "no_op" not in key} == {1024}
    opened = pico.open_library(tmp_path)
    assert opened.sha256 == library.sha256
    opened.block(0, 0, "gqa_1", "")


def test_entries_come_from_the_finished_index(pico: Pico, pico_library: Path) -> None:
    library: BlockLibrary = pico.open_library(pico_library)
    index = json.loads((pico_library / "library.json").read_text())
    assert [e["sha256"] for e in index["entries"]] == [
        library.entries[key].sha256 for key in sorted(library.entries)
    ]


def test_a_damaged_entry_names_the_file(pico: Pico, tmp_path: Path) -> None:
    pico.library(tmp_path)
    index = tmp_path / "library.json"
    content = json.loads(index.read_text())
    del content["entries"][0]["sha256"]
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"library\.json.*'sha256' is missing"):
        pico.open_library(tmp_path)
