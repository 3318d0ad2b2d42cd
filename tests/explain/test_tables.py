"""Explanations by block costs, against the hand-made figures of tests/imports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.errors import InputError
from puzzle_search.explain.tables import Usage, explain_problem
from puzzle_search.imports import import_nvlabs, import_puzzletron
from tests.imports.nvlabs import write_library
from tests.imports.puzzletron import stats, write_puzzle
from tests.pico import run_here

MIB = 1048576
CHILD = [("gqa_4", "mlp_1024"), ("gqa_4", "mlp_512"), ("linear", "no_op")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    import_nvlabs(write_library(tmp_path / "toy")).write(tmp_path / "problem")
    return tmp_path / "problem"


def test_figures_are_those_of_the_table(folder: Path) -> None:
    explained = explain_problem(ArchitectureSpec.of("toy", CHILD), folder)
    same, narrower, last = explained.blocks
    assert same.unchanged
    assert (same.saved_us, same.saved_bytes, same.damage) == (0, 0, 0)
    assert narrower.ffn.fraction == 0.5
    assert narrower.saved_us == pytest.approx(3000)  # 8 less 5 ms
    assert narrower.saved_bytes == 3.25 * MIB
    assert (narrower.saved_parameters, narrower.damage) == (2000, 0.25)
    assert (last.attention.change, last.ffn.change) == ("linear", "dropped")
    assert (last.saved_us, last.damage) == (pytest.approx(7500), 3.0)
    assert explained.score == 3.25
    assert explained.parent == Usage(
        memory_bytes=int(37.5 * MIB), runtime_us=pytest.approx(24_000), parameters=15_000
    )
    assert explained.child == Usage(
        memory_bytes=22 * MIB, runtime_us=pytest.approx(13_500), parameters=8_100
    )
    other = explain_problem(ArchitectureSpec.of("toy", CHILD), folder, metric="lm_loss")
    assert other.score == pytest.approx(1.5 + 1.55 + 2.75)


def test_totals_hold_the_part_outside_and_runtimes_may_be_missing(tmp_path: Path) -> None:
    source = write_puzzle(tmp_path / "run", [stats(4, timed=False)])
    import_puzzletron(source).write(tmp_path / "problem")
    spec = ArchitectureSpec.of("run", [("gqa_4", "mlp_128"), ("gqa_4", "mlp_256")])
    explained = explain_problem(spec, tmp_path / "problem")
    assert explained.child == Usage(
        memory_bytes=int((12 + 14 + 1.5) * MIB), runtime_us=None, parameters=1150 + 1600 + 60
    )
    assert explained.blocks[0].saved_us is None
    assert json.dumps(explained.as_dict())


def test_a_spec_that_the_tables_do_not_hold_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"no row for layers 1-1, gqa_2 and mlp_512"):
        explain_problem(
            ArchitectureSpec.of("toy", [CHILD[0], ("gqa_2", "mlp_512"), CHILD[2]]), folder
        )
    with pytest.raises(InputError, match="covers 2 layers"):
        explain_problem(ArchitectureSpec.of("toy", CHILD[:2]), folder)
    sidecar = folder / "block_costs.yaml"
    text = sidecar.read_text()
    own = "parent:\n  attention: gqa_4\n  ffn: mlp_1024\n"
    for other in ("parent: null\n", "parent:\n  attention: no_op\n  ffn: no_op\n"):
        assert own in text
        sidecar.write_text(text.replace(own, other))
        with pytest.raises(InputError, match="names no attention and FFN"):
            explain_problem(ArchitectureSpec.of("toy", CHILD), folder)


def test_the_command_shows_layers_and_totals(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = folder.parent / "child.yaml"
    ArchitectureSpec.of("toy", CHILD).write(spec)
    run_here("explain", spec, "--problem", folder)
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    assert rows["1"] == ["1", "kept", "mlp_512", "0.25000", "3.0", "3.2"]
    assert rows["sum"] == ["sum", "3.25000", "10.5", "15.5"]
    assert rows["runtime,"] == ["runtime,", "ms", "24.0", "13.5", "0.56", "x"]
    assert rows["memory,"] == ["memory,", "MiB", "37.5", "22.0", "0.59", "x"]
    run_here("explain", spec, "--problem", folder, "--json")
    assert json.loads(capsys.readouterr().out)["score"] == 3.25
    with pytest.raises(InputError, match="--problem has costs and scores of its own"):
        run_here("explain", spec, "--problem", folder, "--gpu", "h100")
