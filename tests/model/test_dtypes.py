"""Which precision is taken where that is left open."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from puzzle_search.choices import ComputeDtype
from puzzle_search.cli.compute import computed_in
from puzzle_search.model import dtypes
from tests.pico import Pico


def slower(monkeypatch: pytest.MonkeyPatch, times: float) -> None:
    """Let a product in bf16 take so many times its time in fp32."""
    seconds = {torch.float32: 1e-3, torch.bfloat16: 1e-3 * times}
    monkeypatch.setattr(dtypes, "_least_seconds", seconds.__getitem__)


@pytest.mark.parametrize(
    ("times", "name"), [(0.25, "bf16"), (0.74, "bf16"), (1.0, "fp32"), (22.0, "fp32")]
)
def test_auto_is_what_multiplies_faster(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], times: float, name: str
) -> None:
    slower(monkeypatch, times)
    assert computed_in("auto", "cpu") == name
    [line] = capsys.readouterr().err.splitlines()
    assert line == (
        f"computing in {name}: products in bf16 take {times:.2f} of fp32's time on this processor"
    )


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_what_is_asked_for_is_obeyed_in_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: ComputeDtype
) -> None:
    slower(monkeypatch, 0.1 if asked == "fp32" else 10)
    assert computed_in(asked, "cpu") == asked
    assert capsys.readouterr().err == ""


def test_processes_that_train_together_do_not_each_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    slower(monkeypatch, 0.1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert computed_in("auto", "cpu") == "fp32"


def test_the_products_are_really_timed() -> None:
    assert 0 < dtypes._least_seconds(torch.float32) < 1


LOADED = """
import sys
from puzzle_search.cli.compute import let_threads_sleep

let_threads_sleep()
from puzzle_search.checkpoint import load_decoder
from puzzle_search.model import generate
import os, torch

decoder = load_decoder(sys.argv[1], dtype=torch.bfloat16)
assert len(list(generate(decoder, torch.tensor([[1, 2, 3]]), max_new_tokens=2))) == 2
print("torch._dynamo" in sys.modules, os.environ["OMP_WAIT_POLICY"])
"""


@pytest.mark.parametrize(("policy", "kept"), [(None, "passive"), ("active", "active")])
def test_a_model_loads_without_torchs_compiler_and_threads_sleep(
    pico: Pico, monkeypatch: pytest.MonkeyPatch, policy: str | None, kept: str
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    said = subprocess.check_output([sys.executable, "-c", LOADED, pico.parent], text=True)
    assert said.split() == ["False", kept]
