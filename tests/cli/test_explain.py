"""``explain`` and ``compare`` as users see them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from puzzle_search.arch import ArchitectureSpec, parse_variant
from puzzle_search.arch.change import SubblockChange
from puzzle_search.cli.layer_map import glyph, layer_map, legend, shows_bars
from puzzle_search.errors import InputError
from tests.pico import run_here

HEAVY = [("gqa_8", "mlp_28672")] * 77
FIRST = [("gqa_2", "mlp_14336"), ("linear", "mlp_28672"), ("no_op", "mlp_7168"), *HEAVY]
SECOND = [("gqa_2", "mlp_14336"), ("linear", "mlp_7168"), ("no_op", "mlp_28672"), *HEAVY]


@pytest.fixture
def specs(tmp_path: Path) -> tuple[Path, Path]:
    for name, pairs in (("first", FIRST), ("second", SECOND)):
        ArchitectureSpec.of("llama-3.1-70b", pairs).write(tmp_path / f"{name}.yaml")
    return tmp_path / "first.yaml", tmp_path / "second.yaml"


def shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: Any,
    columns: int = 80,
) -> list[str]:  # fmt: skip
    monkeypatch.setenv("COLUMNS", str(columns))
    run_here(*arguments)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    return [line.rstrip() for line in lines]


def test_explain_shows_map_savings_scenarios_and_evidence(
    specs: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = shown(capsys, monkeypatch, "explain", specs[0], "--scenario", "128/128")
    [attention, _] = [line for line in lines if line.startswith("attention   ")]
    assert attention.startswith("attention   ▂~·███████ ██████████ ")
    [ffn, _] = [line for line in lines if line.startswith("ffn ")]
    assert ffn.startswith("ffn         ▄█▂███████ ")
    rows = {line.split()[0]: line.split() for line in lines if line}
    assert rows["0"][1:3] == ["gqa_2", "mlp_14336"]
    assert rows["1"][1:3] == ["linear", "kept"]
    assert rows["3-79"] == ["3-79", "kept", "kept"]
    assert rows["128/128"] == ["128/128", "parent", "child", "ratio"]
    assert len(rows["tok/s/GPU"]) == 5
    assert any("scores: reconstructed" in line for line in lines)
    assert any("cost: published (h100)" in line for line in lines)
    assert len(lines) < 40


def test_explain_at_other_widths_and_as_json(
    specs: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = [("gqa_4", "mlp_14336"), ("gqa_8", "mlp_28672")] * 40
    ArchitectureSpec.of("llama-3.1-70b", changed).write(specs[0])
    narrow = shown(capsys, monkeypatch, "explain", specs[0])
    wide = shown(capsys, monkeypatch, "explain", specs[0], columns=120)
    assert len(wide) < len(narrow) - 35  # two columns of layers
    run_here("explain", specs[0], "--json")
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert len(json.loads(out)["blocks"]) == 80


def test_explain_says_when_the_costs_are_not_those_of_the_answer(
    specs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    solved = {"input_len": 128, "output_len": 128, "gpu": "h100", "tp": 1, "batch": 8}
    ArchitectureSpec.of(
        "llama-3.1-70b", FIRST, scenarios=[solved | {"tokens_per_second_per_gpu": 12.5}]
    ).write(specs[0])
    run_here("explain", specs[0])
    said = "128/128 was predicted at 12 tok/s/GPU when it was solved"
    assert said in capsys.readouterr().out
    run_here("explain", specs[0], "--json")
    [scenario] = json.loads(capsys.readouterr().out)["scenarios"]
    assert scenario["child_tokens_per_second_per_gpu_when_solved"] == 12.5
    now = scenario["child"]["tokens_per_second_per_gpu"]
    solution = [solved | {"tokens_per_second_per_gpu": now}]
    ArchitectureSpec.of("llama-3.1-70b", FIRST, scenarios=solution).write(specs[0])
    run_here("explain", specs[0])
    assert "was predicted" not in capsys.readouterr().out


def test_compare_shows_what_differs(
    specs: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = shown(capsys, monkeypatch, "compare", *specs)
    assert lines[0] == "1: first, 2: second, children of llama-3.1-70b"
    assert lines[1] == "the same attention in 80 of 80 layers, the same FFN in 78 of 80"
    assert "2 of 80 layers differ:" in lines
    assert "1      linear, mlp_28672  linear, mlp_7168" in lines
    rows = {line[:20].strip(): line.split() for line in lines if line}
    assert rows["ffn mlp_28672"][-2:] == ["78", "78"]
    run_here("compare", *specs, "--json")
    assert json.loads(capsys.readouterr().out)["agreement"] == {"attention": 80, "ffn": 78}


def test_compare_takes_the_same_file_twice(
    specs: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_here("compare", specs[0], specs[0])
    assert "0 of 80 layers differ" in capsys.readouterr().out


def test_parents_that_differ_need_a_model(
    specs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ArchitectureSpec.of("llama-3.3-70b", SECOND).write(specs[1])
    with pytest.raises(InputError, match="give --model"):
        run_here("compare", *specs)
    run_here("compare", *specs, "--model", "llama-3.1-70b")
    assert "2 of 80 layers differ" in capsys.readouterr().out


def test_names_that_are_not_known_are_refused(specs: tuple[Path, Path]) -> None:
    for option, value in (
        ("--gpu", "abacus"), ("--model", "gpt-9"), ("--tp", "3"),
        ("--engine", "abacus"), ("--scenario", "128x8"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=value):
            run_here("explain", specs[0], option, value)
    short = specs[0].parent / "short.yaml"
    ArchitectureSpec.of("llama-3.1-70b", FIRST[:3]).write(short)
    with pytest.raises(InputError, match="covers 3 layers"):
        run_here("explain", short)


def change(fraction: float) -> SubblockChange:
    return SubblockChange(variant="", change="reduced", size=1, fraction=fraction)


def test_bars_round_up_to_eighths() -> None:
    assert [glyph(change(f)) for f in (0.01, 0.125, 0.2, 0.5, 0.75, 1.0)] == list("▁▁▂▄▆█")


def test_a_window_is_shown_whatever_heads_are_left() -> None:
    for heads in (8, 2):
        windowed = SubblockChange.of(parse_variant("attention", f"gqa_{heads}_window_64"), 8)
        assert (windowed.change, windowed.size) == ("windowed", heads)
        assert glyph(windowed) == glyph(windowed, plain=True) == "w"
    assert "w window" in legend()


def test_plain_bars_are_the_eighths() -> None:
    fractions = (0.01, 0.125, 0.2, 0.5, 0.75, 1.0)
    assert [glyph(change(f), plain=True) for f in fractions] == list("112468")
    assert shows_bars("utf-8")
    assert not shows_bars("latin-1")


@pytest.mark.parametrize(("width", "lines"), [(10, 4), (32, 4), (33, 2), (200, 2)])
def test_the_map_wraps_at_tens(width: int, lines: int) -> None:
    drawn = layer_map({"ffn": [change(1.0)] * 13}, width)
    # 13 layers in tens: two groups, side by side or one below the other, each under its numbers.
    assert len(drawn) == lines
    assert sum(line.plain.count("█") for line in drawn) == 13
