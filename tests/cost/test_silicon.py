"""Published operator tables in Parquet: what is read, and what their folders only pretend."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from puzzle_search.cli.main import main
from puzzle_search.cost.fitting.calibrate import calibrate_tables
from puzzle_search.cost.fitting.calibration import table_errors
from puzzle_search.cost.fitting.silicon import Silicon
from puzzle_search.cost.modelled.hardware import CostModel, load_cost_model
from puzzle_search.errors import InputError

pytest.importorskip("pyarrow")

HEADS = ((64, 8), (64, 4), (32, 8), (16, 8), (8, 8))
STEPS = [2**i - 1 for i in range(4, 15)]  # past tokens


def write(folder: Path, name: str, rows: list[dict[str, Any]], *, version: str, of: str) -> None:
    """A file as the package has it, with the columns that every one has."""
    folder.mkdir(parents=True, exist_ok=True)
    common = {"framework": of, "version": version, "device": "toy", "kernel_source": "made"}
    pd.DataFrame([common | row for row in rows]).to_parquet(folder / f"{name}_perf.parquet")


def gemm_rows(launch_us: float, dtype: str = "bfloat16") -> list[dict[str, Any]]:
    """Launch, then 80% of an H100's bandwidth or peak, in milliseconds."""
    width, peak = (2, 989.4e6) if dtype == "bfloat16" else (1, 1978.9e6)
    return [
        {
            "gemm_dtype": dtype, "m": m, "n": n, "k": k,
            "latency": 1e-3 * (launch_us + max(
                2 * m * n * k / (0.8 * peak),
                (width * (m * k + n * k) + 2 * m * n) / (0.8 * 3.35e6),
            )),
        }
        for m in (1, 16, 64, 256, 1024, 4096)
        for n in (1024, 2048, 4096, 8192, 16384)
        for k in (1024, 2048, 4096, 8192, 16384)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One GPU, two engines, and the traps of the published tables."""
    root = tmp_path_factory.mktemp("systems") / "data"
    gpu = root / "toy_sxm"
    (root / "empty" / "gemm").mkdir(parents=True)
    # 0.9.2 is older than 0.10.1; a folder named after a newer version holds an older copy.
    write(gpu / "gemm/vllm/0.9.2", "gemm", gemm_rows(50), version="0.9.2", of="VLLM")
    new = gemm_rows(5) + gemm_rows(9, "fp8")
    write(gpu / "gemm/vllm/0.10.1", "gemm", new, version="0.10.1", of="VLLM")
    write(gpu / "gemm/vllm/0.30.0", "gemm", gemm_rows(70), version="0.9.2", of="VLLM")
    scaling = [
        {"quant_dtype": "fp8", "m": m, "k": k, "latency": 1e-3 * (4 + 1e-6 * m * k)}
        for m in (1, 64, 4096)
        for k in (1024, 16384)
    ]
    write(gpu / "quantize/vllm/0.10.1", "computescale", scaling, version="0.10.1", of="VLLM")
    prefill: list[dict[str, Any]] = []
    decode: list[dict[str, Any]] = []
    for kind in ("bfloat16", "fp8"):
        for heads, kv_heads in HEADS:
            for batch in (1, 4, 16, 64):
                shape = {
                    "kv_cache_dtype": kind, "attn_dtype": "bfloat16", "num_heads": heads,
                    "num_key_value_heads": kv_heads, "head_dim": 128, "window_size": 0,
                    "beam_width": 1, "batch_size": batch,
                }  # fmt: skip
                for length in (128, 512, 2048, 8192):
                    us = 10 + 2 * 128 * batch * heads * length**2 / (0.5 * 989.4e6)
                    prefill.append(shape | {"isl": length, "step": 0, "latency": us / 1e3})
                for step in STEPS:
                    width = 4 if kind == "bfloat16" else 2
                    us = 8 + width * 128 * batch * kv_heads * (step + 1) / (0.7 * 3.35e6)
                    decode.append(shape | {"isl": 1, "step": step, "latency": us / 1e3})
    # Of another back end and with a window: neither is what an engine does by default.
    other = {"kernel_source": "other"}
    decode += [row | other | {"latency": 10 * row["latency"]} for row in decode[:5]]
    decode += [row | {"window_size": 128, "latency": 1e-3} for row in decode[:5]]
    write(gpu / "attention/vllm/0.10.1", "context_attention", prefill, version="0.10.1", of="VLLM")
    write(
        gpu / "attention/vllm/0.10.1", "generation_attention", decode, version="0.10.1", of="VLLM"
    )
    reduce = [
        {"num_gpus": gpus, "message_size": 2**i, "latency": us(2 * 2**i) / 1e3, **source}
        for gpus in (2, 4)
        for i in range(8, 26)
        for us, source in (
            (lambda size: 3 + size / 300e3, {"kernel_source": "vLLM_custom_graph"}),
            (lambda size: 30 + size / 100e3, {"kernel_source": "vLLM_custom_eager"}),
        )
    ]
    write(gpu / "comm/vllm/0.10.1", "custom_allreduce", reduce, version="0.10.1", of="vLLM")
    # Another engine's file in this one's newest folder.
    stray = [{"num_gpus": 2, "message_size": 2**i, "latency": 1.0} for i in range(8, 12)]
    write(gpu / "comm/vllm/0.11.0", "custom_allreduce", stray, version="9.0.0", of="TRTLLM")
    return root


def test_what_is_read(root: Path) -> None:
    silicon = Silicon.from_folder(root, "toy", source="made")
    assert silicon.gpu == "toy_sxm"
    assert silicon.engines == ("vllm",)
    tables = silicon.tables("vllm")
    assert tables.version == "0.10.1"
    assert tables.dtypes == ("bf16", "fp8")
    assert tables.gemm["us"].min() < 10
    decode = tables.decode_rows("bf16")
    assert len(decode) == len(HEADS) * 4 * len(STEPS)
    assert set(decode["kv_len"]) == {step + 1 for step in STEPS}
    assert set(decode["kernel_source"]) == {"made"}
    assert tables.all_reduce is not None
    assert set(tables.all_reduce["kernel_source"]) == {"vLLM_custom_graph"}
    assert len(tables.all_reduce) == 2 * 18


def test_known_constants_are_found(root: Path, tmp_path: Path) -> None:
    tables = {"vllm": Silicon.from_folder(root, "toy", source="made").tables("vllm")}
    model = calibrate_tables(tables, load_cost_model("h100"), source="made")
    for error in table_errors(model, tables):
        told = error.as_dict()
        assert 0 < told["held_out"] < told["points"]
        assert told["median"] < 0.06, told
    engine = model.engine("vllm")
    # What dynamic scaling was timed at is told apart from the product.
    assert engine.gemm["fp8"].quantisation_us == pytest.approx(4, rel=0.02)
    assert engine.gemm["fp8"].quantisation_us_per_value == pytest.approx(1e-6, rel=0.02)
    assert engine.decode_attention["bf16"].head_dims[128].ceiling_fraction < 0.71
    assert engine.decode_attention["bf16"].provenance.evidence == "published"
    # Nothing whole was timed: what the engine adds is that of the sheet's model.
    assert engine.step == load_cost_model("h100").engine("vllm").step
    file = tmp_path / "toy.yaml"
    file.write_text(model.to_yaml())
    assert CostModel.from_file(file).engine("vllm").dtypes == ("bf16", "fp8")


def test_what_is_refused(root: Path) -> None:
    with pytest.raises(InputError, match=r"no timings of 'empty'(?s:.)*use one of toy_sxm"):
        Silicon.from_folder(root, "empty", source="made")
    with pytest.raises(InputError, match="no timings of toy_sxm with 'sglang'"):
        Silicon.from_folder(root, "toy", source="made").tables("sglang")
    tables = {"vllm": Silicon.from_folder(root, "toy", source="made").tables("vllm")}
    with pytest.raises(InputError, match="fp8 was timed with vllm, and the sheet of a100"):
        calibrate_tables(tables, load_cost_model("a100"), source="made")


@pytest.mark.parametrize("damage", ["text", "column", "version"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "data" / "toy" / "gemm" / "vllm" / "1"
    write(folder, "gemm", gemm_rows(5), version="1", of="VLLM")
    file = folder / "gemm_perf.parquet"
    for name in ("context_attention", "generation_attention"):
        write(tmp_path / "data/toy/attention/vllm/1", name, gemm_rows(5), version="1", of="VLLM")
    if damage == "text":
        file.write_text("no table")
    elif damage == "column":
        pd.read_parquet(file).drop(columns="latency").to_parquet(file)
    else:
        pd.read_parquet(file).assign(version="new-ish").to_parquet(file)
    message = {"text": "is no Parquet file", "column": "no column latency", "version": "new-ish"}
    with pytest.raises(InputError, match=message[damage]) as caught:
        Silicon.from_folder(tmp_path / "data", "toy", source="made").tables("vllm")
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--silicon abacus", "has no timings of 'abacus'"),
        ("--silicon b200 --engine mlx", "has no timings of b200_sxm with 'mlx'"),
        ("--silicon a100 --sheet cpu", "bf16 was timed with"),
        ("tables --silicon b200", "--silicon takes neither a folder nor --gpu"),
        ("", "aiconfigurator-core is not installed"),
    ],
)
def test_the_command_refuses(
    words: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if words:
        pytest.importorskip("aiconfigurator_core")
    else:
        words = "--silicon b200"
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *more: None if "aiconf" in name else found(name, *more),
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["puzzle-search", "calibrate", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in shown
    assert shown.count("\n  remedy: ") == 1
    assert not list(tmp_path.glob("*.yaml"))
