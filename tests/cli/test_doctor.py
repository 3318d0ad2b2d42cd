"""``doctor``: what this machine has, by what the machine itself says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch
import transformers

from puzzle_search.pipeline.recipes import machine
from puzzle_search.profile.hardware import products
from tests.pico import environment, run_here


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_SECONDS", 0.0)
    monkeypatch.setattr(products, "_MATRIX_SIZE", {"cpu": 64, "cuda": 64})


def test_doctor_says_what_the_machine_has(capsys: pytest.CaptureFixture[str]) -> None:
    run_here("doctor", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["threads"] == 1
    assert 0 < found["available_bytes"] <= found["memory_bytes"]
    assert found["packages"]["core"]["transformers"] == transformers.__version__
    speeds = [(s["dtype"], s["rows"]) for s in found["products"]["cpu"]]
    assert speeds == [("fp32", 1), ("fp32", 64), ("bf16", 1), ("bf16", 64)]
    assert all(
        s["flops_per_second"] == pytest.approx(2 * s["rows"] * 64**2 / (s["us"] * 1e-6))
        for s in found["products"]["cpu"]
    )
    run_here("doctor")
    said = capsys.readouterr().out
    assert f"torch {torch.__version__}" in said
    assert said.count(" rows times 64 x 64: fp32 ") == 1
    assert said.splitlines()[-1].startswith("next: puzzle-search init")


def test_a_gpu_that_torch_does_not_see_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: dict[str, Any] = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlSystemGetDriverVersion": "570.1",
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetHandleByIndex": object(),
        "nvmlDeviceGetName": "NVIDIA H100 80GB HBM3",
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=85_520_809_984, free=80_000_000_000),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run_here("doctor")
    said = capsys.readouterr().out
    assert "gpu        NVIDIA H100 80GB HBM3, 80.0 GB of 85.5 GB free, driver 570.1" in said
    assert "note: there is a GPU that torch does not use" in said


def test_more_threads_than_cores_are_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    # `run_here` sets the number of threads back to what it is told here.
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    run_here("doctor")
    assert "set OMP_NUM_THREADS=2" in capsys.readouterr().out


def test_the_memory_of_a_container_is_its_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("123456789\n")
    monkeypatch.setattr(machine, "_CGROUP_LIMIT", limit)
    found = machine.examine()
    assert found.memory_bytes == 123456789
    assert found.available_bytes <= 123456789


def test_doctor_works_where_torch_is_absent() -> None:
    start = """\
import sys
from tests.cli.ask import Absent
sys.meta_path.insert(0, Absent({"torch", "pynvml"}))
from puzzle_search.cli.main import app
app(["doctor"], standalone_mode=False)
"""
    ended = subprocess.run(
        [sys.executable, "-c", start],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "note: torch is not installed" in ended.stdout
    assert "none (nvidia-ml-py is not installed)" in ended.stdout
