"""Libraries and scores are the same bits wherever their jobs run, and whoever dies meanwhile."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from puzzle_search.cost import LatencyRow, MemoryRow, Profile
from puzzle_search.files import file_hash
from tests.pico import LENGTH, Pico, command_line, environment, run_here


def library(pico: Pico, out: Path, *extra: object) -> list[object]:
    return [
        "library", "--parent", pico.parent, "--space", pico.space_file, "--data", pico.corpus,
        "--out", out, "--tokens", 2048, "--held-out-tokens", 512, "--calibration-tokens", 1024,
        "--length", LENGTH, *extra,
    ]  # fmt: skip


def score(pico: Pico, folder: Path, out: Path, *extra: object) -> list[object]:
    return [
        "score", "--parent", pico.parent, "--library", folder, "--space", pico.space_file,
        "--data", pico.corpus, "--tokens", 512, "--length", LENGTH, "--out", out, *extra,
    ]  # fmt: skip


def weights(folder: Path) -> dict[str, str]:
    files = sorted(folder.rglob("*.safetensors"))
    return {str(file.relative_to(folder)): file_hash(file) for file in files}


@pytest.fixture(scope="module")
def alone(pico: Pico, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Library and scores of one process with one thread."""
    folder = tmp_path_factory.mktemp("alone")
    run_here(*library(pico, folder / "library"))
    run_here(*score(pico, folder / "library", folder / "scores.csv"))
    return folder


def test_two_local_processes_give_the_same_bits(pico: Pico, alone: Path, tmp_path: Path) -> None:
    run_here(*library(pico, tmp_path / "library", "--workers", 2))
    assert weights(tmp_path / "library") == weights(alone / "library")
    run_here(*score(pico, alone / "library", tmp_path / "scores.csv", "--workers", 2))
    assert (tmp_path / "scores.csv").read_bytes() == (alone / "scores.csv").read_bytes()


@pytest.mark.slow
def test_a_cluster_that_loses_a_node_gives_the_same_bits(
    head: Any, pico: Pico, alone: Path, tmp_path: Path
) -> None:
    doomed = head.add_node(num_cpus=1)
    head.wait_for_nodes()
    where = ["--executor", "ray", "--address", head.address]
    process = subprocess.Popen(
        command_line(*library(pico, tmp_path / "library", *where)),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 240
    while busy_processors(head) < 2:
        assert process.poll() is None, "ended before a node could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    head.remove_node(doomed, allow_graceful=False)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors.decode()
    assert weights(tmp_path / "library") == weights(alone / "library")


@pytest.mark.slow
def test_a_cluster_profiles_what_one_process_does(head: Any, pico: Pico, tmp_path: Path) -> None:
    def profile(out: Path, *where: object) -> Profile:
        run_here(
            "profile", "--model", pico.parent, "--space", pico.space_file, "--out", out,
            "--batches", "1,4", "--contexts", "8,16", "--prompts", "8", "--max-minutes", 0, *where,
        )  # fmt: skip
        return Profile.from_folder(out)

    there = profile(tmp_path / "there", "--executor", "ray", "--address", head.address, "--jobs", 2)
    here = profile(tmp_path / "here")
    for table in ("rows", "memory"):
        assert [point(row) for row in getattr(there, table)] == [
            point(row) for row in getattr(here, table)
        ]
    assert {row.group for row in there.rows} == {group.group for group in there.groups}
    assert [group.group for group in there.groups] == list(range(len(there.groups)))
    assert not (tmp_path / "there.journal.jsonl").exists()


def point(row: LatencyRow | MemoryRow) -> tuple[object, ...]:
    """What a row is of, without what was measured."""
    names = ("subblock", "variant", "tp", "phase", "batch", "tokens", "context", "weight_bytes")
    return tuple(getattr(row, name, None) for name in names)


def busy_processors(cluster: Any) -> float:
    """Of both nodes together, as the cluster itself says."""
    import ray

    with ray.init(address=cluster.address, log_to_driver=False):
        return float(
            ray.cluster_resources().get("CPU", 0) - ray.available_resources().get("CPU", 0)
        )
