"""Rows that beat the hardware, and bytes that are not those of the shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from puzzle_search.arch import ParentConfig
from puzzle_search.cost import LatencyRow, MemoryRow, Profile, parse_dtype
from puzzle_search.cost.measured.hardware_limit import check_latency
from puzzle_search.cost.measured.memory_check import check_memory
from puzzle_search.cost.modelled.hardware import device_cost_model
from puzzle_search.errors import InputError
from tests.arch.configs import CONFIGS
from tests.cost.synthetic_profile import memory_rows, row, whole_profile

LLAMA = ParentConfig.from_dict(CONFIGS["Llama-3.1-70B"], name="llama-3.1-70b")
H200 = {"name": "NVIDIA H200", "memory_bytes": 150_109_880_320}
FILE = Path("latency.csv")


@pytest.mark.parametrize(
    ("name", "memory_bytes", "gpu"),
    [
        ("NVIDIA H200", 150_109_880_320, "h200"),
        ("NVIDIA H100 80GB HBM3", 85_028_765_696, "h100"),
        ("NVIDIA A100-SXM4-80GB", 85_094_170_624, "a100"),
        ("NVIDIA L40S", 47_676_391_424, "l40s"),
        ("NVIDIA B200", 191_500_000_000, "b200"),
        ("NVIDIA GeForce RTX 4090", 25_393_692_672, "rtx4090"),
        # Other bandwidth, other memory, other machine.
        ("NVIDIA H100 PCIe", 85_028_765_696, None),
        ("NVIDIA H100 NVL", 100_300_000_000, None),
        ("NVIDIA H200 NVL", 150_109_880_320, None),
        ("NVIDIA A100-SXM4-40GB", 42_400_000_000, None),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 42_300_000_000, None),
        ("NVIDIA GH200 480GB", 101_500_000_000, None),
        ("AMD EPYC", 25_276_510_208, None),
    ],
)
def test_devices_are_known_by_name_and_memory(
    name: str, memory_bytes: int, gpu: str | None
) -> None:
    model = device_cost_model(name, memory_bytes)
    assert (model.gpu if model else None) == gpu


def check(measured: LatencyRow, dtype: str = "fp8", **sidecar: Any) -> None:
    described = {"device": H200, "ceilings": {"matmul_flops_per_second": {}}} | sidecar
    check_latency([measured], LLAMA, parse_dtype(dtype), described, FILE)


# Bytes / 4.8 TB/s and FLOPs / 1978.9 TFLOP/s, in microseconds.
FFN_WEIGHTS_US = 3 * 8192 * 28672 / 4.8e6
PREFILL_US = 2 * 8192 * 3 * 8192 * 28672 / 1978.9e6
CACHE_US = (2 * 8192 * 8192 + 2 * 1024 * 8192 + 256 * 4096 * 2048) / 4.8e6
HEAD_US = 128256 * 8192 * 2 / 4.8e6


@pytest.mark.parametrize(
    ("subblock", "variant", "phase", "batch", "tokens", "context", "least_us", "bound"),
    [
        ("ffn", "mlp_28672", "decode", 1, 1, 1, FFN_WEIGHTS_US, "memory traffic"),
        ("ffn", "mlp_28672", "prefill", 1, 8192, 8192, PREFILL_US, "compute"),
        ("attention", "gqa_8", "decode", 256, 1, 4096, CACHE_US, "memory traffic"),
        ("outside", "head", "decode", 1, 1, 1, HEAD_US, "memory traffic"),
    ],
)
def test_no_row_beats_the_data_sheet(
    subblock: str, variant: str, phase: str, batch: int, tokens: int, context: int, least_us: float,
    bound: str,
) -> None:  # fmt: skip
    at = (subblock, variant, phase, batch, tokens, context)
    check(row(*at, least_us * 1.001))
    with pytest.raises(InputError, match=f"{bound} can be by the data sheet of the h200") as caught:
        check(row(*at, least_us * 0.999))
    assert "latency.csv, row 2" in caught.value.message
    assert f"{variant} in " in caught.value.message


def test_elsewhere_the_measured_ceiling_limits_compute_with_a_tolerance() -> None:
    elsewhere = {
        "device": {"name": "AMD EPYC", "memory_bytes": 10**10},
        "ceilings": {"matmul_flops_per_second": {"fp32": 1e11}},
    }
    least_us = 2 * 64 * 3 * 8192 * 28672 / 1.5e5
    at = ("ffn", "mlp_28672", "decode", 64, 1, 1)
    check(row(*at, least_us * 1.001), "fp32", **elsewhere)
    with pytest.raises(InputError, match=r"1\.5 x the profile's measured matmul ceiling"):
        check(row(*at, least_us * 0.999), "fp32", **elsewhere)
    # Caches may hold what a step reads: bytes are not limited.
    check(row("attention", "gqa_8", "decode", 1, 1, 4096, 3100.0), "fp32", **elsewhere)


def test_a_profile_is_checked_when_it_is_read(tmp_path: Path) -> None:
    measured = whole_profile()
    measured.write(tmp_path / "true")
    Profile.from_folder(tmp_path / "true")
    index = next(i for i, known in enumerate(measured.rows) if known.variant == "mlp_128")
    rows = list(measured.rows)
    rows[index] = replace(rows[index], latency_us=1e-3)
    Profile(rows, measured.memory, measured.groups, measured.sidecar).write(tmp_path / "fast")
    with pytest.raises(InputError, match=rf"latency\.csv, row {index + 2}: ffn mlp_128"):
        Profile.from_folder(tmp_path / "fast")
    heavier = [replace(measured.memory[0], weight_bytes=1), *measured.memory[1:]]
    Profile(measured.rows, heavier, measured.groups, measured.sidecar).write(tmp_path / "heavy")
    with pytest.raises(InputError, match=r"memory\.csv, row 2: weight_bytes"):
        Profile.from_folder(tmp_path / "heavy")


def test_bytes_are_those_of_the_shapes(pico_config: ParentConfig) -> None:
    bf16 = parse_dtype("bf16")
    known = memory_rows(pico_config, bf16, degrees=(1, 2))
    embedding = MemoryRow(
        subblock="outside", variant="embedding", tp=1, weight_bytes=96 * 64 * 2,
        kv_bytes_per_token=0, workspace_bytes=0, workspace_rows=1,
    )  # fmt: skip
    head = replace(embedding, variant="head", tp=2, weight_bytes=(96 * 64 // 2 + 64) * 2)
    check_memory([*known, embedding, head], pico_config, bf16, Path("memory.csv"))
    for field in ("weight_bytes", "kv_bytes_per_token"):
        wrong = replace(known[0], **{field: getattr(known[0], field) + 1})
        with pytest.raises(InputError, match=rf"memory\.csv, row 2: {field} of attention gqa_2"):
            check_memory([wrong], pico_config, bf16, Path("memory.csv"))
    with pytest.raises(InputError, match="row 3: attention gqa_2, tp 1 stands twice"):
        check_memory([known[0], known[0]], pico_config, bf16, Path("memory.csv"))
