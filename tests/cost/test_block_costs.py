"""Block costs on disk: what is written is read, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from puzzle_search.cost.block_costs import BlockCosts, OutsideCost
from puzzle_search.errors import InputError

CSV = """\
first_layer,last_layer,attention,ffn,memory_bytes,runtime_us,parameters
0,0,gqa_2,mlp_64,1000,20.5,300
0,0,no_op,mlp_64,600,12,200
1,1,gqa_2,mlp_64,1000,20.5,300
"""
YAML = """\
format: puzzle-search.block-costs/1
package_version: 0.1.0
source: by hand
inputs: {table.json: 0123abcd}
evidence: measured
gpu: an abacus
dtype: fp8
batch: 4
sequence_length: 100
num_layers: 2
parent: {attention: gqa_2, ffn: mlp_64}
outside: {memory_bytes: 50, runtime_us: 1.5, parameters: 40}
"""


def write(folder: Path, text: str = CSV, sidecar: str = YAML) -> Path:
    (folder / "block_costs.csv").write_text(text)
    (folder / "block_costs.yaml").write_text(sidecar)
    return folder / "block_costs.csv"


def test_what_is_in_the_files_is_read(tmp_path: Path) -> None:
    costs = BlockCosts.from_file(write(tmp_path))
    assert [(row.attention, row.memory_bytes, row.runtime_us) for row in costs.rows] == [
        ("gqa_2", 1000, 20.5), ("no_op", 600, 12.0), ("gqa_2", 1000, 20.5),
    ]  # fmt: skip
    assert costs.outside == OutsideCost(memory_bytes=50, runtime_us=1.5, parameters=40)
    assert (costs.gpu, costs.dtype, costs.batch) == ("an abacus", "fp8", 4)
    assert (costs.sequence_length, costs.num_layers) == (100, 2)
    assert costs.parent == ("gqa_2", "mlp_64")
    assert costs.inputs == {"table.json": "0123abcd"}
    assert costs.has_runtime


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    costs = BlockCosts.from_file(write(tmp_path))
    costs.write(tmp_path / "again" / "block_costs.csv")
    assert BlockCosts.from_file(tmp_path / "again" / "block_costs.csv") == costs
    lines = (tmp_path / "again" / "block_costs.csv").read_text().splitlines()
    assert lines[1] == "0,0,gqa_2,mlp_64,1000,20.5,300"


def test_rows_may_stand_for_several_layers_and_lack_runtimes(tmp_path: Path) -> None:
    text = CSV.splitlines()[0] + "\n0,1,gqa_2,mlp_64,1000,,300\n"
    sidecar = YAML.replace("{attention: gqa_2, ffn: mlp_64}", "null").replace("an abacus", "null")
    costs = BlockCosts.from_file(write(tmp_path, text, sidecar))
    assert costs.rows[0].last_layer == 1
    assert not costs.has_runtime
    assert costs.gpu is None


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("0,0,no_op,mlp_64,600,12,", "0,0,no_op,mlp_64,600,nan,", "row 3: runtime_us is 'nan'"),
        ("0,0,no_op,mlp_64,600,12,", "0,0,no_op,mlp_64,-6,12,", "row 3: memory_bytes is '-6'"),
        ("0,0,no_op,mlp_64,600,12,", "0,0,no_op,mlp_64,0.5,12,", "row 3: memory_bytes is '0.5'"),
        ("0,0,no_op,mlp_64,600,12,", "0,0,no_op,mlp_64,600,,", "row 3: some rows have a runtime"),
        ("0,0,no_op,mlp_64", "0,0,gqa_2,mlp_64", "row 3: layers 0-0, gqa_2 and mlp_64 stand twice"),
        ("0,0,no_op,mlp_64", "0,0,noop,mlp_64", "row 3: 'noop' is not a variant of attention"),
        ("0,0,no_op,mlp_64", "0,0,no_op,", "row 3: '' is not a variant of ffn"),
        ("1,1,gqa_2", "2,2,gqa_2", "row 4: layers 2 to 2 are not within 0-1"),
        ("1,1,gqa_2", "1,0,gqa_2", "row 4: layers 1 to 0 are not within 0-1"),
        ("1,1,gqa_2,mlp_64,1000,20.5,300\n", "", "no row for layer 1"),
        ("1,1,gqa_2", "1,1,gqa_1", "layer 1 lacks the parent's own block"),
        ("1000,20.5,300\n0,", "1000,20.5\n0,", "row 2: wrong number of columns"),
        ("runtime_us", "runtime_ms", "columns are"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, old: str, new: str, named: str) -> None:
    assert CSV.count(old) == 1 or old == "runtime_us"
    file = write(tmp_path, CSV.replace(old, new))
    with pytest.raises(InputError, match=r"block_costs\.csv") as raised:
        BlockCosts.from_file(file)
    assert named in raised.value.message


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("batch: 4", "batch: 0", "batch is 0"),
        ("batch: 4", "batch: four", "batch is 'four'"),
        ("batch: 4", "batch: true", "batch is True"),
        ("dtype: fp8", "dtype: 8", "dtype is 8"),
        ("gpu: an abacus", "gpu: ''", "gpu is ''"),
        ("memory_bytes: 50", "memory_bytes: -1", "outside.memory_bytes is -1"),
        ("memory_bytes: 50, ", "", "'memory_bytes' is missing"),
        (
            "inputs: {table.json: 0123abcd}",
            "inputs: none",
            "inputs is 'none', but should be a mapping",
        ),
        ("ffn: mlp_64", "fnn: mlp_64", "'fnn' is not known"),
        ("source: by hand", "sauce: by hand", "'sauce' is not known"),
        ("block-costs/1", "block-costs/2", "puzzle-search.block-costs/2"),
    ],
)
def test_a_wrong_sidecar_is_named(tmp_path: Path, old: str, new: str, named: str) -> None:
    file = write(tmp_path, sidecar=YAML.replace(old, new))
    with pytest.raises(InputError, match=r"block_costs\.yaml") as raised:
        BlockCosts.from_file(file)
    assert named in raised.value.message
