"""Profiles: what they predict inside the measured, and files read strictly."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from puzzle_search.cost import Profile
from puzzle_search.errors import InputError
from puzzle_search.files import file_hash
from tests.cost.steps import prefill_us, step
from tests.cost.synthetic_profile import (
    GROUPS,
    attention_rows,
    curve_rows,
    row,
    sidecar,
    whole_profile,
)

OUTSIDE = ("embedding", "head", "step")


def decode(profile: Profile, batch: Any, context: Any, variant: str = "gqa_2") -> np.ndarray:
    return profile.subblock_us(
        "attention", variant, step("decode", batch=batch, tokens=1, context=context, tp=1)
    )


def prefill(profile: Profile, subblock: Any, variant: str, batch: Any, tokens: Any) -> np.ndarray:
    return prefill_us(profile, subblock, variant, batch=batch, tokens=tokens)


# --- inside the measured ------------------------------------------------------------------------


def test_decode_attention_lies_between_its_points() -> None:
    measured = whole_profile()
    np.testing.assert_allclose(
        decode(measured, np.array([[1], [3], [16]]), np.array([10, 77, 300])),
        [[20 + 2 * b * n / 100 for n in (10, 77, 300)] for b in (1, 3, 16)],
    )


def test_ffns_depend_on_the_tokens_of_a_step_alone() -> None:
    measured = whole_profile()
    at = {"tokens": 1, "context": np.array([1, 9999]), "tp": 1}
    us = measured.subblock_us("ffn", "mlp_64", step("decode", batch=40, **at))
    np.testing.assert_allclose(us, [20, 20])  # 10 + 40 / 4
    assert prefill(measured, "ffn", "mlp_64", 4, 10) == pytest.approx(20)
    assert prefill(measured, "attention", "linear", 1, 40) == pytest.approx(20)


def test_rows_of_both_phases_make_one_curve() -> None:
    rows = curve_rows("ffn", "mlp_64", (1, 10), lambda m: float(m))
    rows += [row("ffn", "mlp_64", "prefill", 1, 10, 10, 12.0)]
    rows += [row("ffn", "mlp_64", "prefill", 2, 10, 10, 21.0)]
    measured = Profile(rows, [], GROUPS, sidecar())
    at = {"tokens": 1, "context": 1, "tp": 1}
    us = measured.subblock_us(
        "ffn", "mlp_64", step("decode", batch=np.array([1, 10, 15, 20]), **at)
    )
    np.testing.assert_allclose(us, [1, 11, 16, 21])  # the mean of 10 and 12 at ten tokens


def test_a_prefill_is_the_sum_of_its_chunks() -> None:
    measured = whole_profile()
    # Chunks of 100 tokens: 3 prompts of 30 at a time, 7 prompts in 3 + 3 + 1.
    ffn = 2 * (10 + 90 / 4) + (10 + 30 / 4)
    assert prefill(measured, "ffn", "mlp_128", 7, 30) == pytest.approx(ffn)
    attention = 2 * (20 + 2 * 100 / 10) + (20 + 2 * 50 / 10)
    assert prefill(measured, "attention", "gqa_2", 5, 50) == pytest.approx(attention)
    np.testing.assert_allclose(
        prefill(measured, "ffn", "mlp_128", np.array([3, 6, 600]), 30),
        np.array([1, 2, 200]) * (10 + 90 / 4),
    )


def test_a_long_prompt_attends_to_its_history() -> None:
    measured = whole_profile()

    # 240 tokens as 100, 100 over 200, 40 over 240; history adds 10 + heads (h/5 - 10) to a chunk of
    # 100 new tokens, by the rows, and 40% of that to one of 40.
    def added(history: int) -> float:
        known = {0: 0.0}
        for past in (100, 200):
            known[past] = (30 + 2 * past / 5) - (20 + 2 * 100 / 10)
        return float(np.interp(history, list(known), list(known.values())))

    plain = 2 * (20 + 2 * 100 / 10) + (20 + 2 * 40 / 10)
    expected = plain + added(100) + 0.4 * added(200)
    assert prefill(measured, "attention", "gqa_2", 1, 240) == pytest.approx(expected)
    assert prefill(measured, "attention", "gqa_2", 3, 240) == pytest.approx(3 * expected)
    with pytest.raises(InputError, match="outside"):
        prefill(measured, "attention", "gqa_2", 1, 340)  # 40 new tokens over a history of 300


def test_outside_the_blocks_the_head_runs_where_prompts_end() -> None:
    measured = whole_profile()
    decoded = measured.outside_us(step("decode", batch=np.array([1, 16]), tokens=1, tp=1))
    np.testing.assert_allclose(decoded, [2 + 1 / 50 + 7.5 + 41, 2 + 16 / 50 + 7 + 8 + 56])
    whole = prefill(measured, "outside", "", 2, 50)
    assert whole == pytest.approx((2 + 100 / 50) + (7 + 1) + (40 + 2))
    cut = prefill(measured, "outside", "", 1, 240)
    assert cut == pytest.approx(2 * (2 + 2) + (2 + 40 / 50) + 7.5 + 3 * 41)


def test_steps_of_a_phase_are_its_own_where_it_has_some() -> None:
    rows = [row("outside", "embedding", "decode", m, 1, 1, 1.0) for m in (1, 100)]
    rows += [row("outside", "head", "decode", 1, 1, 1, 1.0)]
    rows += [row("outside", "step", "decode", 1, 1, 1, 50.0)]
    both = [*rows, row("outside", "step", "prefill", 1, 10, 10, 90.0)]
    for given_rows, expected_us in ((rows, 52), (both, 92)):
        measured = Profile(given_rows, [], GROUPS, sidecar())
        assert measured.outside_us(step("decode", batch=1, tokens=1, tp=1)) == 52
        assert measured.outside_us(step("prefill", batch=1, tokens=20, tp=1)) == expected_us


def test_a_type_of_weights_has_rows_of_its_own_or_is_the_serving_precision() -> None:
    rows = curve_rows("ffn", "mlp_64", (1, 10), lambda m: 10.0 + m)
    rows += curve_rows("ffn", "mlp_64@q8_0", (1, 10), lambda m: 5.0 + m)
    measured = Profile(rows, [], GROUPS, sidecar(dtype="bf16"))
    at = step("decode", batch=4, tokens=1, context=1, tp=1)
    names = ("mlp_64", "mlp_64@bf16", "mlp_64@q8_0")
    assert [float(measured.subblock_us("ffn", name, at)) for name in names] == [14, 14, 9]
    with pytest.raises(InputError, match="ffn mlp_64@q4_0"):
        measured.subblock_us("ffn", "mlp_64@q4_0", at)


def test_a_no_op_takes_no_time() -> None:
    assert (decode(whole_profile(), np.array([1, 2]), 10, variant="no_op") == 0).all()


# --- outside the measured -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask",
    [
        lambda p: decode(p, 17, 100),
        lambda p: decode(p, np.array([1, 0.5]), 100),
        lambda p: decode(p, 1, np.array([10, 301])),
        lambda p: decode(p, 1, 9),
        lambda p: prefill(p, "attention", "gqa_2", 1, 9),  # shorter than any prompt
        lambda p: prefill(p, "attention", "gqa_2", 1, 105),  # a rest of 5
        lambda p: p.outside_us(step("decode", batch=17, tokens=1, tp=1)),
    ],
)  # fmt: skip
def test_outside_the_measured_nothing_is_guessed(ask: Callable[[Profile], object]) -> None:
    with pytest.raises(InputError, match="outside the measured") as caught:
        ask(whole_profile())
    assert caught.value.remedy


@pytest.mark.parametrize(("batch", "context"), [(3, 16), (5, 16), (4, 15), (4, 17)])
def test_a_single_knot_stands_for_itself_only(batch: int, context: int) -> None:
    rows = attention_rows("gqa_2", "decode", [(4, 16)], lambda b, n: 8.0)
    measured = Profile(rows, [], GROUPS, sidecar())
    assert decode(measured, 4, 16) == 8.0
    with pytest.raises(InputError, match="outside"):
        decode(measured, batch, context)


def test_lattices_of_variants_may_differ_and_have_gaps() -> None:
    wide = list(itertools.product((1, 4), (10, 40)))
    rows = attention_rows("gqa_1", "decode", [*wide, (16, 10)], lambda b, n: float(b * n))
    rows += attention_rows("gqa_2", "decode", wide[:3], lambda b, n: 2.0 * b * n)
    measured = Profile(rows, [], GROUPS, sidecar())
    assert decode(measured, 16, 10, "gqa_1") == 160
    assert decode(measured, 8, 20, "gqa_1") == pytest.approx(160)  # the far corner by a power law
    assert decode(measured, 4, 40) == pytest.approx(2 * 160)
    rows += [row("outside", part, "decode", b, 1, 1, 1.0) for part in OUTSIDE for b in (1, 16)]
    measured = Profile(rows, [], GROUPS, sidecar())
    asked = step("decode", batch=np.array([1, 4, 16]), context=20, tp=1)
    covered = measured.covers([("attention", "gqa_2")], asked)
    assert covered.tolist() == [True, True, False]


def test_what_was_not_measured_is_refused() -> None:
    measured = whole_profile()
    with pytest.raises(InputError, match="attention gqa_4, decode") as caught:
        decode(measured, 1, 10, variant="gqa_4")
    assert caught.value.remedy
    with pytest.raises(InputError, match="ffn mlp_32, tp 1"):
        prefill(measured, "ffn", "mlp_32", 1, 10)
    with pytest.raises(InputError, match="tp 2"):
        measured.outside_us(step("decode", batch=1, tokens=1, tp=2))
    no_head = [known for known in measured.rows if known.variant != "step"]
    with pytest.raises(InputError, match="outside step"):
        Profile(no_head, [], GROUPS, sidecar()).outside_us(step("decode", batch=1, tokens=1, tp=1))


# --- files --------------------------------------------------------------------------------------


@given(us=st.lists(st.floats(100, 1e9), min_size=4, max_size=4))
def test_what_is_written_is_read(scratch: Path, us: list[float]) -> None:
    whole = whole_profile()
    rows = [replace(known, latency_us=us[i % 4]) for i, known in enumerate(whole.rows)]
    rows[0] = replace(rows[0], steady=False)
    device = replace(
        GROUPS[0], sm_clock_mhz=1980, memory_clock_mhz=3201, temperature_c=41, power_watts=612.5,
        throttle="sw_power_cap+hw_slowdown", other_processes=0,
    )  # fmt: skip
    Profile(rows, whole.memory, [device], whole.sidecar).write(scratch / "profile")
    read = Profile.from_folder(scratch / "profile")
    assert (read.rows, read.memory, read.groups) == (rows, whole.memory, [device])
    assert (read.batches, read.tp_degrees) == ([1, 4, 16, 100], [1])
    assert (read.config.name, read.config.hidden_size, read.dtype.name) == ("pico", 64, "bf16")
    # And again: what was read can be written.
    read.write(scratch / "again")
    assert Profile.from_folder(scratch / "again").rows == rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    whole_profile().write(tmp_path / "profile")
    return tmp_path / "profile"


def vouch(folder: Path) -> None:
    """Let the sidecar vouch for edited tables."""
    sidecar = yaml.safe_load((folder / "profile.yaml").read_text())
    for table in ("latency", "memory", "groups"):
        sidecar[f"{table}_sha256"] = file_hash(folder / f"{table}.csv")
    (folder / "profile.yaml").write_text(yaml.safe_dump(sidecar))


@pytest.mark.parametrize("table", ["latency", "memory", "groups"])
def test_an_edited_table_is_refused(folder: Path, table: str) -> None:
    file = folder / f"{table}.csv"
    file.write_text(file.read_text().rstrip("\n") + "\n\n")
    with pytest.raises(InputError, match=rf"{table}\.csv is not the table"):
        Profile.from_folder(folder)


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("memory", "tp", "0"),
        ("groups", "throttle", "\x1b[2J"),
        ("latency", "repeats", "9" * 30),
        ("latency", "latency_us", "nan"),
        ("latency", "latency_us", "inf"),
        ("latency", "latency_us", "-1"),
        ("latency", "latency_us", "0"),
        ("latency", "latency_us", "fast"),
        ("latency", "latency_us_p90", "nan"),
        ("latency", "latency_us_p10", ""),
        ("latency", "batch", "1.5"),
        ("latency", "batch", "0"),
        ("latency", "tokens", "2"),  # in a decode step
        ("latency", "context", "x"),
        ("latency", "context", "0"),
        ("latency", "repeats", ""),
        ("latency", "steady", "yes"),
        ("latency", "phase", "warmup"),
        ("latency", "subblock", "mixer"),
        ("latency", "variant", "gqa_x"),
        ("latency", "variant", "no_op"),
        ("latency", "group", ""),
        ("memory", "kv_bytes_per_token", "nan"),
        ("memory", "workspace_rows", "-1"),
        ("groups", "seconds", "0"),
        ("groups", "power_watts", "hot"),
        ("groups", "other_processes", "some"),
    ],
)
def test_a_wrong_value_is_named_with_file_and_row(
    folder: Path, table: str, column: str, value: str
) -> None:
    file = folder / f"{table}.csv"
    header, first, *rest = file.read_text().splitlines()
    cells = first.split(",")
    cells[header.split(",").index(column)] = value
    file.write_text("\n".join((header, ",".join(cells), *rest)) + "\n")
    vouch(folder)
    with pytest.raises(InputError) as caught:
        Profile.from_folder(folder)
    assert f"{file}, row 2" in caught.value.message
    assert repr(value)[1:-1] in caught.value.message
    assert caught.value.remedy


def test_duplicates_unknown_groups_and_batched_histories_are_named(folder: Path) -> None:
    file = folder / "latency.csv"
    whole = file.read_text().splitlines(keepends=True)
    wrong = {
        rf"row {len(whole) + 1}: attention gqa_2, decode, tp 1, batch 1, 1 tokens": whole[1],
        "group 7 is not in": "ffn,mlp_64,decode,2,1,1,1,9,9,9,5,1,7\n",
        "batch is 2": "attention,gqa_2,prefill,2,50,90,1,9,9,9,5,1,0\n",
    }  # fmt: skip
    for message, line in wrong.items():
        file.write_text("".join([*whole, line]))
        vouch(folder)
        with pytest.raises(InputError, match=message) as caught:
            Profile.from_folder(folder)
        assert str(folder) in caught.value.message


@pytest.mark.parametrize(
    ("name", "column"), [("latency", "variant"), ("memory", "variant"), ("groups", "throttle")]
)
def test_unknown_columns_and_short_rows_are_refused(folder: Path, name: str, column: str) -> None:
    file = folder / f"{name}.csv"
    whole = file.read_text()
    file.write_text(whole.replace(column, "flavour", 1))
    vouch(folder)
    with pytest.raises(InputError, match="columns") as caught:
        Profile.from_folder(folder)
    assert str(file) in caught.value.message
    file.write_text(whole.rstrip("\n").rsplit(",", 1)[0] + "\n")
    vouch(folder)
    with pytest.raises(InputError, match=rf"{name}\.csv, row .*columns"):
        Profile.from_folder(folder)


@pytest.mark.parametrize("name", ["latency.csv", "memory.csv", "groups.csv", "profile.yaml"])
def test_missing_files_are_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        Profile.from_folder(folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mood": "good"}, "mood"),
        ({"device": None}, "device"),
        ({"device": {"memory_bytes": 1}}, "device"),
        ({"device": {"name": "abacus"}}, "memory_bytes"),
        ({"dtype": "int3"}, "int3"),
        ({"engine": 7}, "engine"),
        ({"memory_limit_bytes": 0}, "memory_limit_bytes"),
        ({"prefill_chunk_tokens": 1.5}, "prefill_chunk_tokens"),
        ({"parent_config": "llama"}, "parent_config"),
        ({"parent_config": {"model_type": "llama"}}, "parent_config"),
        ({"ceilings": {}}, "copy_bytes_per_second"),
        ({"ceilings": {"copy_bytes_per_second": 1, "matmul_flops_per_second": 1}}, "matmul"),
        ({"ceilings": {"copy_bytes_per_second": -1, "matmul_flops_per_second": {}}}, "copy"),
        ({"skipped": "none"}, "skipped"),
        ({"skipped": [{"point": "x"}]}, "why"),
        ({"interpolation": {"points": 3}}, "interpolation"),
        ({"interpolation": {"points": 3, "median": 0, "p90": 0, "worst": None}}, "worst"),
    ],
)
def test_the_sidecar_is_strict(folder: Path, changes: dict[str, Any], named: str) -> None:
    file = folder / "profile.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))
    with pytest.raises(InputError, match=named) as caught:
        Profile.from_folder(folder)
    assert caught.value.remedy
