"""``puzzle-search calibrate``: tables and profiles to a cost model, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from puzzle_search.cli.main import main
from puzzle_search.cost.modelled.hardware import CostModel, find_cost_model, load_cost_model
from puzzle_search.cost.modelled.operators import gemm_us
from tests.cost.synthetic_profile import whole_profile

ROOT = Path(__file__).resolve().parents[2]
PROFILE = ROOT / "profiles" / "amd-epyc-avx512-2-threads" / "stdlib-lm"


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> str:
    monkeypatch.setattr(sys, "argv", ["puzzle-search", "calibrate", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    return capsys.readouterr().out


def refuse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> str:
    monkeypatch.setattr(sys, "argv", ["puzzle-search", "calibrate", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert shown.err.count("\n  remedy: ") == 1
    assert "Traceback" not in shown.err
    return shown.err


def write_tables(folder: Path, *, gpus: tuple[str, ...] = ("toy",)) -> Path:
    """Timings of a GPU that reaches 80% of an H100's peaks after 5 us: known constants to find."""
    folder.mkdir()
    common = {"fw": "engine", "ver": "1.0", "kernel_source": "made"}
    gemm, prefill, decode, reduce = [], [], [], []
    for gpu in gpus:
        for m in (1, 8, 64, 256, 1024, 4096):
            for n, k in ((1024, 8192), (4096, 8192), (8192, 8192), (8192, 2048)):
                us = 5 + max(
                    2 * m * n * k / (0.8 * 989.4e6), 2 * (m * k + n * k + m * n) / (0.8 * 3.35e6)
                )
                shape = {"gpu": gpu, "gemm_dtype": "bfloat16", "m": m, "n": n, "k": k}
                gemm.append(common | shape | {"latency_ms": us / 1e3})
        kinds = {"attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16", "gpu": gpu}
        for heads, kv_heads in ((64, 8), (32, 8), (16, 2), (8, 1)):
            shape = kinds | {"num_heads": heads, "num_key_value_heads": kv_heads}
            for batch in (1, 4, 16, 64):
                for length in (128, 512, 2048):
                    flops = 4 * 128 * batch * heads * length * (length + 1) / 2
                    us = 10 + flops / (0.5 * 989.4e6)
                    row = shape | {"batch_size": batch, "isl": length, "latency_ms": us / 1e3}
                    prefill.append(common | row)
                for length in (64, 256, 1024, 4096, 16384):
                    us = 8 + 4 * 128 * batch * kv_heads * length / (0.7 * 3.35e6)
                    row = shape | {"batch_size": batch, "kv_len": length, "latency_ms": us / 1e3}
                    decode.append(common | row)
        for gpus_joined in (2, 4):
            for size in 2 ** np.arange(8, 24):
                us = 3 + 2 * size / 2**20 * 6
                shape = {"gpu": gpu, "num_gpus": gpus_joined, "message_size": int(size)}
                reduce.append(common | shape | {"latency_ms": us / 1e3})
    for name, rows in (
        ("gemm", gemm),
        ("attn_prefill", prefill),
        ("attn_decode", decode),
        ("allreduce", reduce),
    ):
        pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)
    return folder


def numbers(value: object) -> list[float]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    if isinstance(value, str) and "\n" in value:
        return [float(item) for item in value.split()]
    return [float(value)] if isinstance(value, int | float) else []


def test_known_constants_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "toy.yaml"
    told = run(
        monkeypatch,
        capsys,
        write_tables(tmp_path / "tables"),
        *("--sheet", "h100", "--out", out, "--json"),
    )
    summary = json.loads(told)
    assert summary["out"] == str(out)
    errors = {(row["operator"], row["dtype"]): row for row in summary["errors"]}
    assert set(errors) == {
        ("GEMM", "bf16"),
        ("prefill attention", "bf16"),
        ("decode attention", "bf16"),
        ("all-reduce", "bf16"),
    }
    for name, row in errors.items():
        assert 0 < row["held_out"] < row["points"]
        assert row["median"] < 0.08, (name, row)
        assert row["datasheet_median"] > row["median"]
    model = CostModel.from_file(out)
    engine = model.engine("engine")
    assert engine.dtypes == ("bf16",)
    # A long product, a short one, and one that waits for memory.
    for m, n, k in ((4096, 8192, 8192), (1, 1024, 8192), (64, 8192, 8192)):
        timed_us = 5 + max(
            2 * m * n * k / (0.8 * 989.4e6), 2 * (m * k + n * k + m * n) / (0.8 * 3.35e6)
        )
        us = gemm_us(m, n, k, dtype="bf16", sheet=model.sheet, constants=engine.gemm["bf16"])
        assert float(us) == pytest.approx(timed_us, rel=0.05)
    assert engine.all_reduce is not None
    assert set(engine.all_reduce.by_tp) == {2, 4}
    # Whole models were not timed: the step constants are those of the sheet's first engine.
    assert engine.step.provenance.evidence == "reconstructed"
    assert engine.step.max_batch == load_cost_model("h100").engine("trtllm").step.max_batch


@pytest.mark.slow
@pytest.mark.parametrize("gpu", ["h100", "b60"])
def test_the_shipped_models_come_out_of_the_command(
    gpu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("aiconfigurator_core")
    monkeypatch.chdir(tmp_path)
    told = run(monkeypatch, capsys, "--silicon", gpu)
    assert "vllm decode attention, fp8" in told
    shipped = yaml.safe_load(find_cost_model(gpu).read_text())
    found = yaml.safe_load((tmp_path / f"{gpu}.yaml").read_text())
    np.testing.assert_allclose(numbers(found), numbers(shipped), rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_the_cpu_model_comes_out_of_the_shipped_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out, plots = tmp_path / "cpu.yaml", tmp_path / "plots"
    told = run(
        monkeypatch,
        capsys,
        PROFILE,
        *("--sheet", "cpu", "--out", out, "--plots", plots),
    )
    assert "torch whole subblocks, decode, fp32" in told
    picture = plots / "residuals-torch.png"
    assert str(picture) in told
    assert picture.read_bytes().startswith(b"\x89PNG")
    shipped = yaml.safe_load(find_cost_model("cpu").read_text())
    np.testing.assert_allclose(
        numbers(yaml.safe_load(out.read_text())), numbers(shipped), rtol=0.1, atol=0.05
    )


def test_plots_need_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    out = tmp_path / "toy.yaml"
    told = refuse(
        monkeypatch,
        capsys,
        write_tables(tmp_path / "tables"),
        *("--sheet", "h100", "--out", out, "--plots", tmp_path / "plots"),
    )
    assert "matplotlib is not installed" in told
    assert "puzzle-search[plots]" in told
    assert not out.exists()


def test_what_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = write_tables(tmp_path / "tables", gpus=("toy", "doll"))
    out = tmp_path / "out.yaml"
    common: tuple[Any, ...] = ("--sheet", "h100", "--out", out)

    told = refuse(monkeypatch, capsys, tables, *common)
    assert "holds timings of doll, toy" in told
    assert "not of abacus" in refuse(monkeypatch, capsys, tables, "--gpu", "abacus", *common)
    told = refuse(monkeypatch, capsys, tables, "--gpu", "toy", "--engine", "other", *common)
    assert "no rows of toy with other" in told
    told = refuse(monkeypatch, capsys, tables, "--gpu", "toy", "--sheet", "x", "--out", out)
    assert "no cost model for GPU 'x'" in told
    assert "has no gemm.csv.gz or gemm.csv" in refuse(monkeypatch, capsys, tmp_path, *common)
    told = refuse(monkeypatch, capsys, tables, "--gpu", "toy", "--out", out)
    assert "operator tables do not name a data sheet" in told
    profile = tmp_path / "profile"
    whole_profile().write(profile)
    told = refuse(monkeypatch, capsys, profile, "--sheet", "cpu", "--out", out)
    assert "the sheet of cpu has no bf16 peak" in told
    told = refuse(monkeypatch, capsys, profile, "--out", out)
    assert "no cost model ships for abacus" in told

    gemm = pd.read_csv(tables / "gemm.csv")
    gemm.drop(columns="latency_ms").to_csv(tables / "gemm.csv", index=False)
    told = refuse(monkeypatch, capsys, tables, "--gpu", "toy", *common)
    assert "no column latency_ms" in told
    gemm.assign(latency_ms=-gemm["latency_ms"]).to_csv(tables / "gemm.csv", index=False)
    told = refuse(monkeypatch, capsys, tables, "--gpu", "toy", *common)
    assert "gemm.csv, row 2 has a size or time that is no positive number" in told
    assert not out.exists()


def test_one_gpu_is_derived_from_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "derived.yaml"
    words = ("--derive-from", "h200", "--sheet", "h100", "--out", out)
    told = run(monkeypatch, capsys, *words)
    assert "h100, derived from h200\ntrtllm: bf16, fp8; whole models derived" in told
    assert "vllm: bf16, fp8; whole models reconstructed" in told
    model = CostModel.from_file(out)
    assert model.gpu == "h100"
    assert model.based_on is None
    assert model.sheet == load_cost_model("h100").sheet
    assert model.engine("trtllm").gemm["fp8"].provenance.evidence == "derived"
    summary = json.loads(run(monkeypatch, capsys, *words, "--json"))
    assert summary["derived_from"] == "h200"
    assert summary["out"] == str(out)
    assert summary["engines"][0] == {
        "engine": "trtllm",
        "dtypes": ["bf16", "fp8"],
        "evidence": "derived",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--sheet h100", "there is nothing to calibrate from"),
        ("tables --derive-from h200 --sheet h100", "takes no measurements of the device"),
        ("--derive-from h200 --sheet h100 --gpu h100_sxm", "takes no measurements of the device"),
        ("--derive-from h200 --sheet h200", "h200 would be derived from itself"),
        ("--derive-from rtx4090 --sheet h100", "nothing was measured on rtx4090"),
        ("--derive-from h200 --sheet cpu", "cpu is a chip of amd, h200 of nvidia"),
        ("--derive-from abacus --sheet h100", "no cost model for GPU 'abacus'"),
    ],
)
def test_what_cannot_be_derived(
    words: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.yaml"
    assert message in refuse(monkeypatch, capsys, *words.split(), "--out", out)
    assert not out.exists()
