"""Profiles: interpolation inside the grid, and files read strictly."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from puzzle_search.cost import LatencyRow, MemoryRow, Profile
from puzzle_search.cost.profile import OUTSIDE
from puzzle_search.errors import InputError
from puzzle_search.files import file_hash

SIDECAR: dict[str, Any] = {
    "format": "puzzle-search.profile/1",
    "package_version": "0.1.0",
    "evidence": "measured",
    "date": "2026-01-01",
    "device": {"name": "test"},
    "engine": "torch",
    "dtype": "bf16",
    "model": "tiny",
    "memory_limit_bytes": 10**9,
}
MEMORY = [
    MemoryRow(subblock="attention", variant="gqa_4", tp=1, weight_bytes=10, kv_bytes_per_token=4)
]


def row(subblock: str, variant: str, phase: str, batch: int, length: int, us: float) -> LatencyRow:
    prefill = phase == "prefill"
    return LatencyRow(
        subblock=subblock,  # type: ignore[arg-type]
        variant=variant,
        phase=phase,  # type: ignore[arg-type]
        batch=batch,
        tokens=length if prefill else 1,
        context=length,
        tp=1,
        latency_us=us,
        latency_us_p10=us,
        latency_us_p90=us,
        repeats=5,
    )


def rows(
    batches: list[int], lengths: list[int], a: float = 1.0, b: float = 0.5, c: float = 0.1
) -> list[LatencyRow]:
    """Rows of an operator that costs a + b * batch + c * length."""
    grid = list(itertools.product(batches, lengths))
    return [
        row("attention", "gqa_4", phase, batch, length, a + b * batch + c * length)
        for phase in ("prefill", "decode")
        for batch, length in grid
    ]


def profile(*args: Any, **kwargs: Any) -> Profile:
    return Profile(rows(*args, **kwargs), MEMORY, SIDECAR)


def decode(profile: Profile, batch: Any, context: Any, variant: str = "gqa_4") -> np.ndarray:
    return profile.subblock_us(
        "attention", variant, "decode", batch=batch, tokens=1, context=context, tp=1
    )


# --- interpolation ------------------------------------------------------------------------------

axis = st.lists(st.integers(1, 5000), min_size=1, max_size=5, unique=True)
positive = st.floats(0.01, 100)


@given(
    batches=axis, lengths=axis, a=positive, b=positive, c=positive,
    u=st.floats(0, 1), v=st.floats(0, 1),
)  # fmt: skip
def test_affine_latencies_are_exact(
    batches: list[int], lengths: list[int], a: float, b: float, c: float, u: float, v: float
) -> None:
    measured = profile(batches, lengths, a, b, c)
    batch = min(batches) + u * (max(batches) - min(batches))
    length = min(lengths) + v * (max(lengths) - min(lengths))
    expected = a + b * batch + c * length
    assert decode(measured, batch, length) == pytest.approx(expected, rel=1e-9)
    prefill = measured.subblock_us(
        "attention", "gqa_4", "prefill", batch=batch, tokens=length, context=length, tp=1
    )
    assert prefill == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("batches", "lengths"), [([4], [16]), ([4], [1, 16]), ([1, 4], [16])])
def test_single_knots_and_measured_points_are_exact(batches: list[int], lengths: list[int]) -> None:
    measured = profile(batches, lengths)
    for known in measured.rows:
        if known.phase == "decode":
            assert decode(measured, known.batch, known.context) == known.latency_us


def test_between_four_points() -> None:
    values = {(1, 10): 1.0, (1, 20): 3.0, (5, 10): 5.0, (5, 20): 15.0}
    measured = Profile(
        [row("attention", "gqa_4", "decode", b, s, us) for (b, s), us in values.items()],
        [],
        SIDECAR,
    )
    assert decode(measured, 3, 15) == pytest.approx(6.0)
    assert decode(measured, 2, 10) == pytest.approx(2.0)
    np.testing.assert_allclose(
        decode(measured, np.array([[1], [5]]), np.array([10, 15, 20])),
        [[1.0, 2.0, 3.0], [5.0, 10.0, 15.0]],
    )


@pytest.mark.parametrize(
    ("batch", "context"), [(0, 10), (9, 10), (2, 9), (2, 101), (8.001, 10), ([2, 9], 10)]
)
def test_outside_the_grid_nothing_is_guessed(batch: Any, context: Any) -> None:
    with pytest.raises(InputError, match="outside"):
        decode(profile([1, 8], [10, 100]), np.array(batch), context)


@pytest.mark.parametrize(("batch", "context"), [(3, 16), (5, 16), (4, 15), (4, 17)])
def test_a_single_knot_stands_for_itself_only(batch: int, context: int) -> None:
    with pytest.raises(InputError, match="outside"):
        decode(profile([4], [16]), batch, context)


def test_what_was_not_measured_is_refused() -> None:
    measured = profile([1, 8], [10, 100])
    with pytest.raises(InputError, match="gqa_2") as caught:
        decode(measured, 1, 10, variant="gqa_2")
    assert caught.value.remedy
    with pytest.raises(InputError, match="tp 2"):
        measured.subblock_us("attention", "gqa_4", "decode", batch=1, tokens=1, context=10, tp=2)


def test_a_no_op_takes_no_time() -> None:
    assert (decode(profile([1], [10]), np.array([1, 2]), 10, variant="no_op") == 0).all()


def test_outside_the_blocks_only_new_tokens_count() -> None:
    measured = Profile(
        [row("outside", OUTSIDE, "decode", batch, 77, 2.0 * batch) for batch in (1, 4)], [], SIDECAR
    )
    assert measured.outside_us("decode", batch=3, tokens=1, tp=1) == pytest.approx(6.0)


# --- files --------------------------------------------------------------------------------------


@given(us=st.lists(st.floats(1e-3, 1e9), min_size=4, max_size=4))
def test_what_is_written_is_read(scratch: Path, us: list[float]) -> None:
    grid = itertools.product((1, 2), (8, 9))
    table = [row("ffn", "mlp_64", "prefill", *at, us[i]) for i, at in enumerate(grid)]
    Profile(table, MEMORY, SIDECAR).write(scratch / "profile")
    read = Profile.from_folder(scratch / "profile")
    assert (read.rows, read.memory) == (table, MEMORY)
    assert (read.batches, read.tp_degrees) == ([1, 2], [1])
    # And again: what was read can be written.
    read.write(scratch / "again")
    assert Profile.from_folder(scratch / "again").rows == table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    profile([1, 2], [8, 9]).write(tmp_path / "profile")
    return tmp_path / "profile"


def vouch(folder: Path) -> None:
    """Let the sidecar vouch for an edited table."""
    sidecar = yaml.safe_load((folder / "profile.yaml").read_text())
    sidecar["latency_sha256"] = file_hash(folder / "latency.csv")
    (folder / "profile.yaml").write_text(yaml.safe_dump(sidecar))


def test_an_edited_table_is_refused(folder: Path) -> None:
    file = folder / "latency.csv"
    file.write_text(file.read_text().replace("5\n", "6\n", 1))
    with pytest.raises(InputError, match=r"latency\.csv is not the table"):
        Profile.from_folder(folder)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("latency_us", "nan"),
        ("latency_us", "inf"),
        ("latency_us", "-1"),
        ("latency_us", "0"),
        ("latency_us", "fast"),
        ("latency_us_p90", "nan"),
        ("latency_us_p10", ""),
        ("batch", "1.5"),
        ("batch", "-1"),
        ("context", "x"),
        ("repeats", ""),
        ("phase", "warmup"),
        ("subblock", "mixer"),
    ],
)
def test_a_wrong_value_is_named_with_file_and_row(folder: Path, column: str, value: str) -> None:
    file = folder / "latency.csv"
    header, first, second, *rest = file.read_text().splitlines()
    cells = second.split(",")
    cells[header.split(",").index(column)] = value
    file.write_text("\n".join((header, first, ",".join(cells), *rest)) + "\n")
    vouch(folder)
    with pytest.raises(InputError) as caught:
        Profile.from_folder(folder)
    assert f"{file}, row 3" in caught.value.message
    assert column in caught.value.message
    assert caught.value.remedy


def test_duplicates_and_gaps_are_named(folder: Path) -> None:
    file = folder / "latency.csv"
    whole = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*whole, whole[1]]))
    vouch(folder)
    with pytest.raises(InputError, match=f"row {len(whole) + 1}.*batch 1, length 8") as caught:
        Profile.from_folder(folder)
    assert str(file) in caught.value.message
    file.write_text("".join([*whole[:2], *whole[3:]]))
    vouch(folder)
    with pytest.raises(InputError, match="attention gqa_4, prefill has gaps") as caught:
        Profile.from_folder(folder)
    assert str(file) in caught.value.message


@pytest.mark.parametrize("name", ["latency.csv", "memory.csv"])
def test_unknown_columns_and_short_rows_are_refused(folder: Path, name: str) -> None:
    file = folder / name
    whole = file.read_text()
    file.write_text(whole.replace("variant", "flavour", 1))
    vouch(folder)
    with pytest.raises(InputError, match="columns") as caught:
        Profile.from_folder(folder)
    assert str(file) in caught.value.message
    file.write_text(whole.rstrip("\n").rsplit(",", 1)[0] + "\n")
    vouch(folder)
    with pytest.raises(InputError, match=f"{name}, row .*columns"):
        Profile.from_folder(folder)


def test_memory_is_whole(folder: Path) -> None:
    file = folder / "memory.csv"
    file.write_text(file.read_text().replace(",10,4", ",10,nan"))
    with pytest.raises(InputError, match=r"memory\.csv, row 2: kv_bytes_per_token"):
        Profile.from_folder(folder)


@pytest.mark.parametrize("name", ["latency.csv", "memory.csv", "profile.yaml"])
def test_missing_files_are_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        Profile.from_folder(folder)


def test_the_sidecar_is_strict(folder: Path) -> None:
    file = folder / "profile.yaml"
    sidecar = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(sidecar | {"mood": "good"}))
    with pytest.raises(InputError, match="mood"):
        Profile.from_folder(folder)
    del sidecar["device"]
    file.write_text(yaml.safe_dump(sidecar))
    with pytest.raises(InputError, match="device"):
        Profile.from_folder(folder)
