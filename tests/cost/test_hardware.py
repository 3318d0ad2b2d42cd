"""The files of cost models: what ships, strict reading, and constants carried to other devices."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from puzzle_search.cost.memory import EXPERTS_ALONE
from puzzle_search.cost.modelled.hardware import (
    CostModel,
    device_cost_model,
    find_cost_model,
    known_gpus,
    load_cost_model,
)
from puzzle_search.cost.modelled.operators import gemm_us
from puzzle_search.errors import InputError

MIB = 2**20


@pytest.mark.parametrize(
    ("gpu", "mib", "bytes_per_second", "bf16", "fp8", "link"),
    [
        # Memory as nvidia-smi shows it; dense peaks and bandwidths of NVIDIA's data sheets.
        ("h100", 81559, 3.35e12, 989.4e12, 1978.9e12, 450e9),
        ("h200", 143771, 4.8e12, 989.4e12, 1978.9e12, 450e9),
        ("a100", 81920, 2.039e12, 312e12, None, 300e9),
        ("l40s", 46068, 0.864e12, 362.05e12, 733e12, 32e9),
        ("b200", 183359, 7.672e12, 2250e12, 4500e12, 900e9),
        ("rtx4090", 24564, 1.008e12, 165.2e12, 330.3e12, 32e9),
        # What the sheet of the package says, in one place or another of NVIDIA's data sheets too.
        ("b300", 275040, 7.75e12, 2250e12, 4500e12, 900e9),
        ("gb200", 189471, 8e12, 2500e12, 5000e12, 900e9),
        ("gb300", 284208, 8e12, 2500e12, 5000e12, 900e9),
        ("rtx_pro_6000", 97887, 1.792e12, 467.8e12, 935.6e12, 64e9),
        ("b60", 24576, 0.456e12, 98.304e12, 98.304e12, 28.4e9),
    ],
)
def test_sheets(
    gpu: str, mib: int, bytes_per_second: float, bf16: float, fp8: float | None, link: float
) -> None:
    sheet = load_cost_model(gpu).sheet
    assert sheet.hbm_bytes == mib * MIB
    assert sheet.hbm_bytes_per_second == bytes_per_second
    assert sheet.flops_per_second["bf16"] == pytest.approx(bf16, rel=1e-5)
    assert sheet.flops_per_second.get("fp8") == (fp8 and pytest.approx(fp8, rel=1e-5))
    assert sheet.link_bytes_per_second == link
    assert sheet.provenance.evidence == "datasheet"


def test_every_model_ships_with_constants() -> None:
    nvidia = ["h100", "h200", "l40s", "rtx4090", "rtx_pro_6000"]
    assert known_gpus() == ["a100", "b200", "b300", "b60", "cpu", "gb200", "gb300", *nvidia]
    for gpu in known_gpus():
        model = load_cost_model(gpu)
        for name, engine in model.engines.items():
            # Experts in 4 bits are beside, where they were timed.
            assert set(engine.dtypes) - set(EXPERTS_ALONE) == set(engine.gemm)
            timed = gpu not in ("a100", "cpu", "rtx4090") and name in ("vllm", "sglang")
            assert bool(engine.experts) == (timed and (gpu, name) != ("rtx_pro_6000", "sglang"))
            # What is timed on a GPU is what its sheet has; of the H100's, rtx4090 has all.
            assert set(engine.gemm) == set(model.sheet.flops_per_second)
            groups = (*engine.gemm.values(), *engine.experts.values(), engine.step)
            for group in (*groups, *engine.decode_attention.values()):
                provenance = group.provenance
                assert provenance.source
                fitted = provenance.evidence in ("measured", "published", "derived")
                assert (provenance.error_median is not None) == fitted


def test_a_gpu_has_its_long_name_too() -> None:
    assert find_cost_model("H100_SXM") == find_cost_model("h100")
    assert find_cost_model("rtx_pro_6000_server") == find_cost_model("rtx_pro_6000")


@pytest.mark.parametrize(
    ("name", "mib", "gpu"),
    [
        ("NVIDIA H100 80GB HBM3", 81559, "h100"),
        ("NVIDIA GB200", 189471, "gb200"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 97887, "rtx_pro_6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 97887, None),
        ("NVIDIA GeForce RTX 4090", 24564, "rtx4090"),
        ("NVIDIA H100 PCIe", 81559, None),
    ],
)
def test_a_device_is_known_by_the_name_of_its_driver(name: str, mib: int, gpu: str | None) -> None:
    model = device_cost_model(name, mib * MIB)
    assert (model.gpu if model else None) == gpu


def test_files_are_small() -> None:
    sizes = [find_cost_model(gpu).stat().st_size for gpu in known_gpus()]
    assert max(sizes) < 160 * 1024
    assert sum(sizes) < 1.5 * 1024**2


def test_constants_are_carried_by_the_ratios_of_the_sheets() -> None:
    base, other = load_cost_model("h100"), load_cost_model("rtx4090")
    assert other.based_on == "h100"
    ours, theirs = other.engine("vllm"), base.engine("vllm")
    assert ours.gemm["fp8"].launch_us == theirs.gemm["fp8"].launch_us
    assert str(ours.gemm["fp8"].ratios) == str(theirs.gemm["fp8"].ratios)
    ours, theirs = other.engine("trtllm"), base.engine("trtllm")
    assert ours.decode_attention["fp8"].head_dims[128].us_per_stream == pytest.approx(
        132 / 128 * theirs.decode_attention["fp8"].head_dims[128].us_per_stream
    )
    assert ours.all_reduce is not None
    assert theirs.all_reduce is not None
    # What the link adds to the smallest message takes 450 / 32 as long.
    theirs_us, ours_us = (of.all_reduce.by_tp[2].us for of in (theirs, ours))
    np.testing.assert_allclose(
        ours_us - ours_us.min(), 450 / 32 * (theirs_us - theirs_us.min()), rtol=1e-6
    )
    # A long product in bf16 is bound by compute: 165.2 against 989.4 TFLOP/s.
    slow, fast = (
        float(gemm_us(8192, 8192, 8192, dtype="bf16", sheet=model.sheet, constants=gemm))
        for model, gemm in ((other, ours.gemm["bf16"]), (base, theirs.gemm["bf16"]))
    )
    assert slow / fast == pytest.approx(989.4 / 165.2, rel=0.1)


def test_memory_limit_and_name(tmp_path: Path) -> None:
    assert load_cost_model("H100").memory_limit_bytes == 81_480_000_000
    assert find_cost_model("H100") == find_cost_model("h100")
    with pytest.raises(InputError, match=r"no cost model for GPU 'abacus'(?s:.)*h100"):
        find_cost_model("abacus")
    own = tmp_path / "Own.yaml"
    with pytest.raises(InputError, match="does not exist"):
        find_cost_model(str(own))
    own.write_text(find_cost_model("h100").read_text())
    assert find_cost_model(str(own)) == own


@pytest.mark.parametrize("gpu", ["h100", "cpu", "b200", "rtx4090"])
def test_a_written_model_reads_back(tmp_path: Path, gpu: str) -> None:
    file = tmp_path / "copy.yaml"
    file.write_text(load_cost_model(gpu).to_yaml())
    copy = CostModel.from_file(file)
    assert copy.to_yaml() == load_cost_model(gpu).to_yaml()
    assert list(copy.engines) == list(load_cost_model(gpu).engines)


def test_reading_is_quick() -> None:
    path = find_cost_model("h100")
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        CostModel.from_file(path)
        seconds.append(time.perf_counter() - start)
    # 27 ms on one core of a shared virtual machine; `solve` has to start in well under a second.
    assert min(seconds) < 0.1


GEMM = "engines.trtllm.gemm.fp8"
DECODE = "engines.trtllm.decode_attention.fp8.head_dims.128"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sheet.hbm_bytes", -1, r"sheet\.hbm_bytes is negative"),
        ("sheet.reserve_bytes", 10**12, "leaves no memory"),
        ("sheet.flops_per_second.fp8", 0, r"flops_per_second\.fp8 is 0"),
        ("sheet.flops_per_second", {"bf16": 1e15}, "no rate for fp8"),
        ("sheet.flops_per_second", {"int3": 1e15}, "'int3' is not known"),
        ("sheet.link_bytes_per_second", None, "no rate for all_reduce"),
        ("sheet.evidence", "rumour", r"sheet\.evidence is 'rumour'"),
        (f"{GEMM}.launch_us", float("nan"), r"gemm\.fp8\.launch_us is nan"),
        (f"{GEMM}.launch_us", True, r"gemm\.fp8\.launch_us is True"),
        (f"{GEMM}.compute_fraction", 1.2, "beats the hardware"),
        (f"{GEMM}.colour", 1, "'colour' is not known"),
        (f"{GEMM}.error_p90", None, r"error_p90 is missing"),
        (f"{GEMM}.source", "", r"gemm\.fp8\.source is ''"),
        (f"{GEMM}.ratios.axes.rows", "4 1", r"axes\.rows does not rise"),
        (f"{GEMM}.ratios.axes.rows", "0 1", r"axes\.rows does not rise from above 0"),
        (f"{GEMM}.ratios.tables", {"rows": "1"}, "has a table 'rows'"),
        (f"{GEMM}.ratios.tables", {"rows depth": "1"}, "has a table 'rows depth'"),
        (f"{GEMM}.ratios.axes", {"rows": "1 2"}, "'columns', 'inner', 'weights' are missing"),
        ("sheet.vendor", "", r"sheet\.vendor is ''"),
        ("engines.trtllm.all_reduce.by_tp.2.us", "1 2", "has 2 latencies for"),
        ("engines.trtllm.step.engine_scalar", 0.9, "beats the hardware"),
        (f"{DECODE}.ratios.tables", {"group streams": "1.0 2.0\n"}, "no table of 7 rows of 8"),
        (f"{DECODE}.ratios.tables", {"group streams": "one"}, "could not convert"),
        (f"{DECODE}.ratios.tables", {"group streams": ("0 " * 8 + "\n") * 7}, "not positive"),
        ("engines.trtllm.gemm", {}, "at least one entry"),
        ("engines.trtllm.prefill_attention", {}, "at least one entry"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, path: str, value: object, message: str) -> None:
    data = yaml.safe_load(find_cost_model("h100").read_text())
    entry = data
    *parents, last = path.split(".")
    for key in parents:
        entry = entry[int(key) if key.isdecimal() else key]
    entry[last] = value
    refused(tmp_path, data, message)


@pytest.mark.parametrize("missing", ["gemm", "prefill_attention", "decode_attention"])
def test_a_dtype_is_whole_or_absent(tmp_path: Path, missing: str) -> None:
    data = yaml.safe_load(find_cost_model("h100").read_text())
    del data["engines"]["trtllm"][missing]["bf16"]
    refused(tmp_path, data, "bf16 constants are incomplete")


def test_missing_evidence_is_an_error(tmp_path: Path) -> None:
    data = yaml.safe_load(find_cost_model("h100").read_text())
    del data["engines"]["trtllm"]["gemm"]["bf16"]["evidence"]
    refused(tmp_path, data, "'evidence' is missing")


def test_what_a_model_may_be_based_on(tmp_path: Path) -> None:
    data = yaml.safe_load(find_cost_model("rtx4090").read_text())
    refused(tmp_path, data | {"based_on": "rtx4090"}, "itself based on h100")
    refused(tmp_path, data | {"based_on": "abacus"}, "no cost model for GPU 'abacus'")
    refused(tmp_path, data | {"based_on": "broken"}, "based on itself")
    refused(tmp_path, data | {"engines": {}}, "'engines' is not known")
    sheet = data["sheet"] | {"vendor": "amd"}
    refused(tmp_path, data | {"sheet": sheet}, "h100, a chip of nvidia, not of amd")


def test_a_sheet_without_engines_says_so(tmp_path: Path) -> None:
    data = yaml.safe_load(find_cost_model("h100").read_text()) | {"engines": {}}
    file = tmp_path / "sheet.yaml"
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match="no engine 'trtllm'") as caught:
        CostModel.from_file(file).engine("trtllm")
    assert "calibrate" in caught.value.remedy


def refused(tmp_path: Path, data: dict[str, Any], message: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match=message) as caught:
        CostModel.from_file(file)
    assert caught.value.remedy
