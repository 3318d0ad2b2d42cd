"""Score tables: what they mean, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from puzzle_search.arch import ParentConfig
from puzzle_search.errors import InputError
from puzzle_search.files import value_hash
from puzzle_search.solve import ScoreRow, ScoreTable
from puzzle_search.solve.problem.score_table import parse_metric
from tests.solve.helpers import SIDECAR, rows_of, tiny_config

HEADER = "first_layer,last_layer,attention,ffn,metric,value,stderr,tokens"
CONFIG = tiny_config(2)


def table(values: dict[tuple[int, str, str], float]) -> ScoreTable:
    return ScoreTable(rows_of(values), SIDECAR)


# --- meaning ------------------------------------------------------------------------------------

SINGLES = {(0, "gqa_1", ""): 0.25, (0, "", "mlp_16"): 0.5}


def test_the_parents_own_block_is_free() -> None:
    assert table({}).block_damage(0, "gqa_4", "mlp_64", CONFIG, {"kl": 1.0}) == 0


def test_singles_add_up() -> None:
    assert table(SINGLES).block_damage(0, "gqa_1", "mlp_16", CONFIG, {"kl": 1.0}) == 0.75


def test_a_single_stands_for_itself() -> None:
    assert table(SINGLES).block_damage(0, "gqa_1", "mlp_64", CONFIG, {"kl": 1.0}) == 0.25
    assert table(SINGLES).block_damage(0, "gqa_4", "mlp_16", CONFIG, {"kl": 1.0}) == 0.5


@pytest.mark.parametrize("joint", [0.1, 0.0, 2.0, -0.3])
def test_a_composed_row_wins_over_the_sum(joint: float) -> None:
    both = table(SINGLES | {(0, "gqa_1", "mlp_16"): joint})
    assert both.block_damage(0, "gqa_1", "mlp_16", CONFIG, {"kl": 1.0}) == joint
    assert both.block_damage(0, "gqa_1", "mlp_64", CONFIG, {"kl": 1.0}) == 0.25


def test_a_composed_row_needs_no_singles() -> None:
    only = table({(0, "no_op", "no_op"): 0.9})
    assert only.block_damage(0, "no_op", "no_op", CONFIG, {"kl": 1.0}) == 0.9


@pytest.mark.parametrize(
    ("layer", "attention", "ffn", "missing"),
    [
        (1, "gqa_1", "mlp_64", "gqa_1"),
        (0, "gqa_1", "mlp_32", "mlp_32"),
        (0, "no_op", "mlp_16", "no_op"),
    ],
)
def test_a_missing_row_names_layer_and_variant(
    layer: int, attention: str, ffn: str, missing: str
) -> None:
    with pytest.raises(InputError, match=f"layer {layer}, {missing}"):
        table(SINGLES).block_damage(layer, attention, ffn, CONFIG, {"kl": 1.0})


def test_an_unknown_metric_names_those_there_are() -> None:
    with pytest.raises(InputError) as caught:
        table(SINGLES).block_damage(0, "gqa_1", "mlp_16", CONFIG, {"loss": 1.0})
    assert "loss" in caught.value.message
    assert "kl" in caught.value.remedy


def test_metrics_are_kept_apart() -> None:
    rows = rows_of(SINGLES) + rows_of({(0, "gqa_1", ""): 7.0}, metric="loss")
    both = ScoreTable(rows, SIDECAR)
    assert both.block_damage(0, "gqa_1", "mlp_64", CONFIG, {"loss": 1.0}) == 7.0
    assert both.block_damage(0, "gqa_1", "mlp_64", CONFIG, {"kl": 1.0}) == 0.25


def test_a_mix_of_metrics_is_their_weighted_sum() -> None:
    rows = rows_of(SINGLES) + rows_of({k: 10 * v for k, v in SINGLES.items()}, metric="loss")
    both = ScoreTable(rows, SIDECAR)
    assert both.block_damage(0, "gqa_1", "mlp_16", CONFIG, parse_metric("kl + 0.1*loss")) == (
        pytest.approx(0.75 + 0.75)
    )


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("kl", {"kl": 1}),
        ("0.7*kl + 0.3 * lm_loss", {"kl": 0.7, "lm_loss": 0.3}),
        ("2e-1*kl", {"kl": 0.2}),
    ],
)
def test_metrics_are_parsed(text: str, weights: dict[str, float]) -> None:
    assert parse_metric(text) == weights


@pytest.mark.parametrize("text", ["", "kl +", "-1*kl", "kl*2", "kl + kl", "1..2*kl", "k l", "2"])
def test_what_is_no_metric_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_metric(text)


# --- files --------------------------------------------------------------------------------------


def write(folder: Path, *rows: str, header: str = HEADER, **sidecar: object) -> Path:
    file = folder / "scores.csv"
    file.write_text("\n".join((header, *rows)) + "\n")
    (folder / "scores.yaml").write_text(yaml.safe_dump(SIDECAR | sidecar))
    return file


GOOD = "0,0,gqa_1,,kl,0.5,0.01,100"


def test_a_good_file_is_read(tmp_path: Path) -> None:
    read = ScoreTable.from_file(write(tmp_path, GOOD))
    assert read.rows == [
        ScoreRow(
            first_layer=0,
            last_layer=0,
            attention="gqa_1",
            ffn="",
            metric="kl",
            value=0.5,
            stderr=0.01,
            tokens=100,
        )
    ]
    assert read.evidence == "reconstructed"


@pytest.mark.parametrize(
    "row",
    [
        "1,1,gqa_1,,kl,nan,0,1",
        "1,1,gqa_1,,kl,inf,0,1",
        "1,1,gqa_1,,kl,-inf,0,1",
        "1,1,gqa_1,,kl,much,0,1",
        "1,1,gqa_1,,kl,,0,1",
        "1,1,gqa_1,,kl,0.5,nan,1",
        "1,1,gqa_1,,kl,0.5,0,1.5",
        "1,1,gqa_1,,kl,0.5,0,-1",
        "-1,-1,gqa_1,,kl,0.5,0,1",
        "one,one,gqa_1,,kl,0.5,0,1",
        "0.5,0.5,gqa_1,,kl,0.5,0,1",
        "1,1,gqa_0,,kl,0.5,0,1",
        "1,1,mlp_16,,kl,0.5,0,1",
        "1,1,,gqa_1,kl,0.5,0,1",
        "1,1,,mlp,kl,0.5,0,1",
        "2,1,gqa_1,,kl,0.5,0,1",
        "1,1,gqa_1,,kl,0.5,0",
        "1,1,gqa_1,,kl,0.5,0,1,2",
        GOOD,
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: str) -> None:
    file = write(tmp_path, GOOD, row)
    with pytest.raises(InputError) as caught:
        ScoreTable.from_file(file)
    assert str(file) in caught.value.message
    assert "row 3" in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    "header",
    [HEADER.replace("value", "score"), HEADER + ",more", HEADER.removesuffix(",tokens"), ""],
)
def test_a_wrong_header_is_refused(tmp_path: Path, header: str) -> None:
    file = write(tmp_path, GOOD, header=header)
    with pytest.raises(InputError, match="columns") as caught:
        ScoreTable.from_file(file)
    assert str(file) in caught.value.message


def test_a_missing_table_or_sidecar_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    file.with_suffix(".yaml").unlink()
    with pytest.raises(InputError, match=r"scores\.yaml"):
        ScoreTable.from_file(file)
    with pytest.raises(InputError, match=r"absent\.csv"):
        ScoreTable.from_file(tmp_path / "absent.csv")


def test_a_sidecar_with_other_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="colour"):
        ScoreTable.from_file(write(tmp_path, GOOD, colour="red"))
    file = write(tmp_path, GOOD)
    kept = {key: value for key, value in SIDECAR.items() if key != "evidence"}
    file.with_suffix(".yaml").write_text(yaml.safe_dump(kept))
    with pytest.raises(InputError, match="evidence"):
        ScoreTable.from_file(file)


finite = st.floats(min_value=-1e17, max_value=1e17)
keys = st.tuples(
    st.integers(0, 200),
    st.sampled_from(["", "gqa_8", "gqa_1", "linear", "no_op"]),
    st.sampled_from(["", "mlp_28672", "mlp_1", "linear", "no_op"]),
    st.sampled_from(["kl", "loss, mean", 'say "x"']),
)


errors = st.floats(min_value=0, max_value=1e17)


@given(values=st.dictionaries(keys, st.tuples(finite, errors, st.integers(0, 2**53)), max_size=9))
def test_what_is_written_is_read(
    scratch: Path, values: dict[tuple[int, str, str, str], tuple[float, float, int]]
) -> None:
    rows = [
        ScoreRow(
            first_layer=layer,
            last_layer=layer,
            attention=attention,
            ffn=ffn,
            metric=metric,
            value=value,
            stderr=stderr,
            tokens=tokens,
        )
        for (layer, attention, ffn, metric), (value, stderr, tokens) in values.items()
    ]
    file = scratch / "round.csv"
    ScoreTable(rows, SIDECAR).write(file)
    once = ScoreTable.from_file(file)
    assert once.rows == rows
    # And again: what was read can be written.
    once.write(file)
    assert ScoreTable.from_file(file).rows == rows


def test_a_table_made_by_hand_needs_only_what_its_maker_knows(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text(f"{HEADER}\n0,0,no_op,,kl,0.5,,0\n")
    (tmp_path / "scores.yaml").write_text(
        "format: puzzle-search.scores/1\nparent: mine\nevidence: measured\ndata: my own\n"
    )
    (row,) = ScoreTable.from_file(tmp_path / "scores.csv").rows
    assert (row.value, row.stderr) == (0.5, None)


def test_scores_of_another_parent_are_refused() -> None:
    table = ScoreTable([], dict(SIDECAR))
    table.check_parent(tiny_config(), "scores.csv")
    other = ParentConfig.from_dict(dict(tiny_config(5).raw), name="other")
    with pytest.raises(InputError, match=r"scores\.csv holds scores of tiny, not of other"):
        table.check_parent(other, "scores.csv")
    # A copy of the folder under another name: the config tells that it is the same model.
    known = ScoreTable([], SIDECAR | {"parent_config": value_hash(dict(other.raw))})
    known.check_parent(other, "scores.csv")
