"""A run that is killed in every stage, or that finds its disk full in every stage, ends well."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from puzzle_search.errors import InputError
from puzzle_search.pipeline.recipes.recipe import read_recipe
from puzzle_search.pipeline.run import run_recipe
from tests.faults import MEASURED, SmallDisk, artefacts, begun_like, killed_while_writing
from tests.pico import Pico, run_here
from tests.pipeline.test_run import write_recipe

pytestmark = pytest.mark.slow

# What is being written when the run is killed, in the order of the stages.
WRITTEN = {
    "library": r"library/layer_001/",
    "score": r"score/journal",
    "solve": r"solve/rounds/around",
    "build": r"build/\.child\..*shard",
    "distill": r"distill/child\.run/.*exp_avg_sq",
    "evaluate": r"evaluate/\.quality",
    "bench": r"bench/\.bench",
    "generate": r"generate/\.samples",
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So that sums are added in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def recipe(pico: Pico, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With rounds and distillation: every stage that there is."""
    solve = {"rounds": 1, "target_speedup": 1.3}
    file = write_recipe(pico, tmp_path_factory.mktemp("recipe"), solve=solve)
    distill = {"tokens": 2048, "batch_tokens": 512}
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"distill": distill}))
    return file


@pytest.fixture(scope="module")
def unbroken(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    run_recipe(read_recipe(recipe), folder)
    return folder


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_as_an_unbroken_one(
    recipe: Path, unbroken: Path, tmp_path: Path
) -> None:
    run = begun_like(unbroken, tmp_path / "run")
    for stage, pattern in WRITTEN.items():
        killed_while_writing(
            pattern, 2 if "journal" in pattern else 1, "run", recipe, "--run-dir", run
        )
        assert (run / stage / "begun.json").exists()
        assert not (run / stage / "done.json").exists()
    run_here("run", recipe, "--run-dir", run)
    assert artefacts(run) == artefacts(unbroken)
    journal = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    events = [(entry["stage"], entry["event"]) for entry in journal]
    for stage in WRITTEN:
        assert events.count((stage, "begun")) == 2
        assert events.count((stage, "done")) == 1


def kib_of(folder: Path) -> int:
    """What the files of a folder take, in pages of 4 KiB."""
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    return sum(4 * -(-size // 4096) for size in sizes)


def test_a_run_goes_on_when_its_full_disk_has_space_again(
    recipe: Path, unbroken: Path, small_disk: SmallDisk
) -> None:
    small_disk.resize(kib=16384)
    run = begun_like(unbroken, small_disk.folder / "run")
    own_kib = 12  # journal, recipe and search space
    done_kib = sum(kib_of(unbroken / stage) for stage in MEASURED) + own_kib
    for stage in ("library", "score", "solve", "build", "distill"):
        own_kib = kib_of(unbroken / stage)
        small_disk.resize(kib=done_kib + own_kib // 2)
        with pytest.raises(InputError, match=r"[Nn]o space") as caught:
            run_recipe(read_recipe(recipe), run)
        assert "run the" in caught.value.remedy
        assert (run / stage).exists()
        assert not (run / stage / "done.json").exists()
        done_kib += own_kib
    small_disk.resize(kib=16384)
    run_recipe(read_recipe(recipe), run)
    assert artefacts(run) == artefacts(unbroken)
