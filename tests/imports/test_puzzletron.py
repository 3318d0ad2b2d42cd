"""The tables of Puzzletron, by hand-made files in their shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from puzzle_search.cost.block_costs import BlockCost, BlockCosts
from puzzle_search.errors import InputError
from puzzle_search.imports import Measurement, import_puzzletron
from puzzle_search.solve import ScoreTable
from puzzle_search.solve.question.tables import TableLimits, table_problem
from tests.imports.puzzletron import (
    REPLACEMENTS,
    SCORES,
    library,
    replacement,
    stats,
    write_puzzle,
)
from tests.pico import run_here


def test_costs_and_scores_are_those_of_the_source(tmp_path: Path) -> None:
    tables = import_puzzletron(write_puzzle(tmp_path / "run", [stats(4)]))
    tables.write(tmp_path / "out")
    costs = BlockCosts.from_file(tmp_path / "out" / "block_costs.csv")
    assert len(costs.rows) == 6
    assert costs.rows[-2] == BlockCost(
        first_layer=1,
        last_layer=1,
        attention="gqa_4",
        ffn="mlp_128",
        memory_bytes=12582912,  # (2.5 x 4 + 2) MiB
        runtime_us=5500.0,  # 4 + 1.5 ms
        parameters=1150,
    )
    assert costs.parent == ("gqa_4", "mlp_256")
    assert (costs.batch, costs.sequence_length, costs.dtype) == (4, 24, "bfloat16")
    assert costs.outside.memory_bytes == 1572864
    assert (costs.outside.runtime_us, costs.outside.parameters) == (750.0, 60)

    table = ScoreTable.from_file(tmp_path / "out" / "scores.csv")
    value = {(row.metric, row.first_layer, row.attention, row.ffn): row.value for row in table.rows}
    assert len(value) == 18
    assert value["kl", 0, "no_op", "mlp_256"] == 2.0
    assert value["lm_loss", 1, "gqa_4", "mlp_128"] == 3.25
    # More hits are better, and in a score table lower is.
    assert value["one_minus_token_accuracy_top_1", 1, "no_op", "mlp_256"] == 0.25
    # The parent is at no distance from itself, and has a loss of its own.
    assert value["kl", 1, "gqa_4", "mlp_256"] == 0.0
    assert value["lm_loss", 1, "gqa_4", "mlp_256"] == 2.75
    assert value["one_minus_token_accuracy_top_1", 0, "gqa_4", "mlp_256"] == 0.125


def test_runtimes_that_the_source_lacks_stay_unknown(tmp_path: Path) -> None:
    source = write_puzzle(tmp_path / "run", [stats(4, timed=False)])
    import_puzzletron(source).write(tmp_path / "out")
    costs = BlockCosts.from_file(tmp_path / "out" / "block_costs.csv")
    assert not costs.has_runtime
    assert costs.gpu is None
    assert "no runtimes" in costs.notes


def test_one_of_several_measurements_is_chosen(tmp_path: Path) -> None:
    several = [stats(4), stats(8), stats(8, dtype="torch.int8"), stats(8, generation=64)]
    source = write_puzzle(tmp_path / "run", several)
    with pytest.raises(InputError, match="4 of 4 measurements fit") as raised:
        import_puzzletron(source)
    assert "batch_size=8, generation_seq_len=16, weights_dtype=torch.int8" in raised.value.message
    assert "prefill_seq_len" not in raised.value.message  # the same in all
    with pytest.raises(InputError, match=r"none of 4 measurements fit \(batch_size=5\)"):
        import_puzzletron(source, Measurement(batch=5))
    picked = import_puzzletron(source, Measurement(batch=4)).costs
    assert picked.rows[0].memory_bytes == 14680064  # (2.5 x 4 + 4) MiB
    picked = import_puzzletron(
        source, Measurement(batch=8, others={"weights_dtype": "torch.int8"})
    ).costs
    assert picked.dtype == "weights int8, activations int8, KV bfloat16"
    assert import_puzzletron(source, Measurement(generation_len=64)).costs.sequence_length == 72


def test_the_command_picks_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several = [stats(4), stats(8), stats(8, dtype="torch.int8")]
    source = write_puzzle(tmp_path / "run", several)
    run_here(
        "import", "puzzletron", source, "--out", tmp_path / "out", "--batch", 8, "--prefill", 8,
        "--generation", 16, "--where", "weights_dtype=torch.bfloat16",
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert "6 blocks of 2 layers, batch 8, 24 tokens, bfloat16, on NVIDIA H100" in shown
    assert "lm_loss, one_minus_token_accuracy_top_1, kl" in shown


def edit(file: Path, *keys: str | int, value: Any) -> None:
    """Set one place of a JSON file."""
    data = json.loads(file.read_text())
    place = data
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    file.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("file", "keys", "value", "named"),
    [
        ("replacement_library.json", (0, "parent_layer_indices"), [0, 1], "one layer by one block"),
        (
            "replacement_library.json",
            (2, "child_block_configs", 0, "ffn", "moe"),
            {"num_local_experts": 8},
            "moe",
        ),
        (
            "replacement_library.json",
            (2, "child_block_configs", 0, "ffn", "intermediate_size"),
            64,
            "is not in replacement_library.json",
        ),
        ("subblock_stats.json", (0, "subblocks", 0, "parent_layer_index"), 7, "no such attention"),
        ("subblock_stats.json", (0, "subblocks", 0, "memory_mib"), None, "memory_mib is None"),
        ("subblock_stats.json", (0, "subblocks", 0, "runtime_ms"), None, "some have none"),
        ("subblock_stats.json", (0, "subblocks", 0, "subblock_config_class"), "Mamba", "'Mamba'"),
        (f"{SCORES}/solution_1.json", ("kl_div", "avg"), float("nan"), "avg is nan"),
        (f"{SCORES}/solution_1.json", ("kl_div",), None, "lack kl"),
        (f"{SCORES}/solution_1.json", ("puzzle_solution",), None, "puzzle_solution"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, file: str, keys: tuple[str | int, ...], value: Any, named: str
) -> None:
    source = write_puzzle(tmp_path / "run", [stats(4)])
    edit(source / file, *keys, value=value)
    with pytest.raises(InputError, match=r"\.json") as raised:
        import_puzzletron(source)
    assert named in raised.value.message


def test_scores_must_be_complete(tmp_path: Path) -> None:
    source = write_puzzle(tmp_path / "run", [stats(4)])
    (source / SCORES / "solution_3.json").unlink()
    with pytest.raises(InputError, match="layer 1 has 2 blocks without a score") as raised:
        import_puzzletron(source)
    assert "no_op and mlp_256" in raised.value.message
    for file in (source / SCORES).iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"holds no solution_<n>\.json"):
        import_puzzletron(source)


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    source = write_puzzle(tmp_path / "run", [stats(4)])
    (source / "replacement_library.json").write_text('{"version": 2, "entries": []}')
    with pytest.raises(InputError, match=r"replacement_library\.json is not a JSON list"):
        import_puzzletron(source)


@pytest.mark.parametrize("layers", [[1], [0, 1]])
def test_a_missing_score_is_not_taken_for_the_parents(tmp_path: Path, layers: list[int]) -> None:
    source = write_puzzle(tmp_path / "run", [stats(4)])
    # The library lacks the parent's block of these layers, and one replacement has no score.
    kept = [entry for entry in library() if entry not in [replacement(n, 4, 256) for n in layers]]
    (source / "replacement_library.json").write_text(json.dumps(kept))
    for number, (layer, heads, _, _) in enumerate(REPLACEMENTS):
        if layer in layers and heads is None:
            (source / SCORES / f"solution_{number}.json").unlink()
    with pytest.raises(InputError, match="has no score for no_op and mlp_256, which is not"):
        import_puzzletron(source)


def test_tables_of_two_parents_are_not_mixed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        import_puzzletron(write_puzzle(tmp_path / name, [stats(4)])).write(tmp_path / f"of-{name}")
    (tmp_path / "of-two" / "scores.yaml").replace(tmp_path / "of-one" / "scores.yaml")
    with pytest.raises(InputError, match=r"scores\.csv is of two, .* of one"):
        table_problem(tmp_path / "of-one", TableLimits())
