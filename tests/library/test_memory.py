"""What memory, grouping and executors may not change, and what they must refuse."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from puzzle_search.arch import Replacement, SearchSpace
from puzzle_search.errors import InputError
from puzzle_search.library import BldSettings, build_library
from puzzle_search.library.memory import groups, plan_memory, student_bytes
from puzzle_search.library.states import StatesWriter
from tests.faults import SmallDisk
from tests.pico import LENGTH, Pico

SETTINGS = BldSettings(tokens=2048, batch_tokens=512)
Results = dict[Replacement, tuple[str, float, dict[str, float]]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def space(pico: Pico) -> SearchSpace:
    runs = ((0, 1, "gqa_1", "mlp_256"), (0, 2, "gqa_1", "linear"), (0, 2, "linear", "mlp_256"))
    return replace(pico.space, runs=runs)


def results(pico: Pico, space: SearchSpace, out: Path, **options: Any) -> Results:
    train, held_out = pico.tokens("train", 2048), pico.tokens("validation", 512)
    library = build_library(
        pico.parent, space, train, held_out, out, SETTINGS, coupled=True, **options
    )
    assert not (out / "hidden_states").exists()
    return {
        key: (entry.sha256, entry.loss_trained, entry.initial_errors)
        for key, entry in library.entries.items()
    }


@pytest.fixture(scope="module")
def expected(
    pico: Pico, space: SearchSpace, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Results, dict[str, str]]:
    """In memory, one student at a time."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("expected")
    return results(pico, space, out), curves(out)


def curves(out: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in (out / "curves").iterdir()}


class Elsewhere:
    """Jobs in another process, the last one first."""

    def run(self, work: Callable[[Any], Iterator[Any]], jobs: Sequence[Any]) -> Iterator[Any]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            for job in reversed(jobs):
                assert len(pickle.dumps(job)) < 20_000  # hidden states stay in their files
                yield from pool.submit(whole, work, job).result()


def whole(work: Callable[[Any], Iterator[Any]], job: Any) -> list[Any]:
    torch.set_num_threads(1)
    return list(work(job))


@pytest.mark.parametrize("mebibytes", [19, 19.5, 21])
def test_memory_changes_no_result(
    pico: Pico,
    space: SearchSpace,
    expected: tuple[Results, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mebibytes: float,
) -> None:
    """Hidden states in files, students in groups of one, of some, of all."""
    written: list[Path] = []
    finish = StatesWriter.finish

    def noted(self: StatesWriter) -> Any:
        done = finish(self)
        if isinstance(done.held, Path):
            written.append(done.held)
        return done

    monkeypatch.setattr(StatesWriter, "finish", noted)
    found = results(pico, space, tmp_path, max_memory_bytes=mebibytes * 2**20)
    # Of two sets of tokens: the embeddings, and two places in each layer.
    assert len(written) == 2 * (1 + 2 * 3)
    assert (found, curves(tmp_path)) == expected


def test_another_process_changes_no_result(
    pico: Pico, space: SearchSpace, expected: tuple[Results, dict[str, str]], tmp_path: Path
) -> None:
    found = results(pico, space, tmp_path, executor=Elsewhere())
    assert (found, curves(tmp_path)) == expected


def test_other_variants_change_no_result(
    pico: Pico, space: SearchSpace, expected: tuple[Results, dict[str, str]], tmp_path: Path
) -> None:
    own = (pico.config.attention,)
    alone = replace(space, attention=(own, own, (*own, "gqa_1")), runs=space.runs[1:2])
    found = results(pico, alone, tmp_path)
    assert len(found) == 2 * 3 + 1 * (1 + 2) + 1
    assert found == {key: expected[0][key] for key in found}


def test_students_are_grouped_by_their_bytes(pico: Pico) -> None:
    # Query and output 64 x 64, key and value 16 x 64, a norm of 64; 24 bytes a parameter.
    size = 24 * (2 * 64 * 64 + 2 * 16 * 64 + 64)
    key = (0, 0, "gqa_1", "")
    assert student_bytes(key, pico.config) == size
    assert student_bytes((0, 1, "gqa_1", "mlp_256"), pico.config) == size + 24 * 64 * (3 * 256 + 1)
    assert student_bytes((0, 0, "no_op", "no_op"), pico.config) == 0
    students = [(layer, layer, "gqa_1", "") for layer in range(5)]
    sizes = [len(group) for group in groups(students, pico.config, 2 * size)]
    assert sizes == [2, 2, 1]
    assert [len(group) for group in groups(students, pico.config, 0)] == [1] * 5
    assert list(groups([], pico.config, 0)) == []


def test_memory_is_shared_out(pico: Pico) -> None:
    keys: list[Replacement] = [(0, 0, "gqa_1", ""), (0, 0, "", "mlp_256")]

    def plan(max_memory_bytes: float | None, *, files_needed: bool = False) -> Any:
        return plan_memory(
            keys,
            pico.config,
            SETTINGS,
            tokens=100_000,
            length=LENGTH,
            dtype=torch.float32,
            max_memory_bytes=max_memory_bytes,
            files_needed=files_needed,
        )

    assert not plan(None).states_on_disk
    assert plan(None, files_needed=True).states_on_disk
    states = 3 * 100_000 * 64 * 4
    assert not plan(2 * states).states_on_disk
    assert plan(states).states_on_disk
    largest = student_bytes(keys[1], pico.config)
    assert largest <= plan(states).group_bytes < states - largest


def test_too_little_memory_says_how_much_is_needed(
    pico: Pico, space: SearchSpace, tmp_path: Path
) -> None:
    out = tmp_path / "library"
    with pytest.raises(InputError, match=r"need about ([\d,]+) MiB") as caught:
        results(pico, space, out, max_memory_bytes=2**20)
    assert not out.exists()
    needed = caught.value.remedy.split("at least ")[1].split("MiB")[0]
    results(pico, space, out, max_memory_bytes=int(needed) * 2**20)


@pytest.mark.parametrize("max_memory_bytes", [None, 19 * 2**20], ids=["blocks", "hidden states"])
def test_a_full_disk_is_reported_and_leaves_whole_files(
    pico: Pico,
    space: SearchSpace,
    expected: tuple[Results, dict[str, str]],
    small_disk: SmallDisk,
    max_memory_bytes: float | None,
) -> None:
    out = small_disk.folder / "library"
    small_disk.resize(kib=400)
    with pytest.raises(InputError, match="space") as caught:
        results(pico, space, out, max_memory_bytes=max_memory_bytes)
    assert "free" in caught.value.remedy
    assert not (out / "library.json").exists()
    assert not (out / "hidden_states").exists()
    assert not [file for file in out.rglob("*") if file.name.endswith(".tmp")]
    # With space again, the same command goes on.
    small_disk.resize(kib=16384)
    assert results(pico, space, out, max_memory_bytes=max_memory_bytes) == expected[0]
