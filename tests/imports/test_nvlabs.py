"""The block library of NVlabs/puzzle, by hand-made files in its shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from puzzle_search.cost.block_costs import BlockCost, BlockCosts
from puzzle_search.errors import InputError
from puzzle_search.imports import import_nvlabs
from puzzle_search.solve import ScoreTable
from tests.imports.nvlabs import library, write_library
from tests.pico import run_here

PARENT = "attention = 4 kv heads (parent * 100%)\t&&\tffn = intermediate size 1e3 (parent * 100%)"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    import_nvlabs(write_library(tmp_path / "toy-model")).write(tmp_path / "out")
    return tmp_path / "out"


def test_costs_are_those_of_the_source(written: Path) -> None:
    costs = BlockCosts.from_file(written / "block_costs.csv")
    assert len(costs.rows) == 12
    assert [row.first_layer for row in costs.rows] == [0] * 4 + [1] * 4 + [2] * 4
    assert costs.rows[5] == BlockCost(
        first_layer=1,
        last_layer=1,
        attention="gqa_4",
        ffn="mlp_512",
        memory_bytes=9699328,  # 9.25 x 1048576
        runtime_us=5000.0,
        parameters=3000,
    )
    assert {(row.attention, row.ffn) for row in costs.rows} == {
        ("gqa_4", "mlp_1024"), ("gqa_4", "mlp_512"), ("linear", "no_op"), ("no_op", "no_op"),
    }  # fmt: skip
    assert (costs.batch, costs.sequence_length, costs.gpu) == (16, 1200, "NVIDIA H100")
    assert (costs.dtype, costs.num_layers, costs.evidence) == ("fp8", 3, "measured")
    assert costs.parent == ("gqa_4", "mlp_1024")
    assert (costs.outside.memory_bytes, costs.outside.runtime_us) == (0, 0)
    assert sorted(costs.inputs) == [
        "block_library.json", "measurement_info.json", "parent_block_stats.json"
    ]  # fmt: skip


def test_scores_have_both_metrics_of_every_block(written: Path) -> None:
    table = ScoreTable.from_file(written / "scores.csv")
    value = {(row.metric, row.first_layer, row.attention, row.ffn): row.value for row in table.rows}
    assert len(value) == 24
    assert value["kl", 2, "gqa_4", "mlp_512"] == 1.0
    assert value["kl", 0, "no_op", "no_op"] == 9.0
    assert value["kl", 1, "gqa_4", "mlp_1024"] == 0.0
    assert value["lm_loss", 1, "linear", "no_op"] == 2.5
    assert table.sidecar["parent"] == "toy-model"
    assert table.evidence == "measured"


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_library(tmp_path / "toy-model")
    for _ in range(2):  # an earlier import is replaced
        run_here("import", "nvlabs", source, "--out", tmp_path / "out")
        shown = capsys.readouterr().out
    assert "12 blocks of 3 layers, batch 16, 1200 tokens, fp8, on NVIDIA H100" in shown
    assert "kl, lm_loss" in shown
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "scores.csv", "scores.yaml", "block_costs.csv", "block_costs.yaml"
    }  # fmt: skip


def broken(change: str) -> dict[str, Any]:
    blocks = library()
    block = blocks["layer_1"][PARENT]
    match change:
        case "nan":
            block["metrics"]["kl_div"] = float("nan")
        case "negative":
            block["stats"]["runtime_ms"] = -1.0
        case "no runtime":
            del block["stats"]["runtime_ms"]
        case "no width":
            block["stats"]["ffn_intermediate_size"] = 0
        case "words":
            blocks["layer_1"]["full attention"] = block
        case "twice":
            blocks["layer_1"][PARENT.replace("100%", "99%")] = block
        case "metric":
            del block["metrics"]["lm_loss"]
        case "layer":
            blocks["layer_7"] = blocks.pop("layer_2")
        case "name":
            blocks["block_2"] = blocks.pop("layer_2")
        case "lacking parent":
            del blocks["layer_1"][PARENT]
    return blocks


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("nan", "kl_div is nan"),
        ("negative", "runtime_us is -1000.0"),
        ("no runtime", "runtime_ms is None"),
        ("no width", "ffn_intermediate_size is 0"),
        ("words", "full attention"),
        ("twice", "gqa_4 and mlp_1024 stand twice"),
        ("metric", "layer 1, gqa_4 and mlp_1024 lack lm_loss"),
        ("layer", "layers 7 to 7 are not within 0-2"),
        ("name", "block_2 is not a layer"),
        ("lacking parent", "layer 1 lacks the parent's own block, gqa_4 and mlp_1024"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: str, named: str) -> None:
    source = write_library(tmp_path / "toy", broken(change))
    with pytest.raises(InputError, match=r"block_library\.json") as raised:
        import_nvlabs(source)
    assert named in raised.value.message


def test_a_missing_file_and_a_foreign_folder_are_refused(tmp_path: Path) -> None:
    source = write_library(tmp_path / "toy")
    tables = import_nvlabs(source)
    (source / "measurement_info.json").unlink()
    with pytest.raises(InputError, match=r"measurement_info\.json does not exist"):
        import_nvlabs(source)
    with pytest.raises(InputError, match="holds other files"):
        tables.write(source)
    assert (source / "block_library.json").exists()
