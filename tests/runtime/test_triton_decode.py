from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
TRITON = Version(version("triton")) if importlib.util.find_spec("triton") else Version("0")

# Half a unit in the last place of an output up to 4, and what 16-bit factors add.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 4e-3}


def case(**changes: Any) -> dict[str, Any]:
    return {
        "dtype": "float32",
        "kv_dtype": "float32",
        "lengths": [5, 70, 33],
        "max_length": 72,
        "kv_heads": 2,
        "group": 3,
        "head_dim": 32,
        "splits": 1,
        "seed": 0,
    } | changes


def random_cases(count: int) -> list[dict[str, Any]]:
    draw = random.Random(0)
    cases = []
    for seed in range(count):
        kv_dtype = draw.choice(["float32", "bfloat16", "float16", "float8_e4m3fn"])
        longest = draw.randint(1, 200)
        cases.append(
            case(
                dtype="bfloat16" if kv_dtype == "float8_e4m3fn" else kv_dtype,
                kv_dtype=kv_dtype,
                lengths=[draw.randint(1, longest) for _ in range(draw.randint(1, 3))],
                max_length=longest,
                kv_heads=draw.choice([1, 2, 4]),
                group=draw.choice([1, 3, 8, 20]),
                head_dim=draw.choice([16, 64, 80, 128]),
                splits=draw.randint(1, 7),
                seed=seed,
            )
        )
    return cases


@pytest.mark.slow
@pytest.mark.skipif(
    Version("3.9") > TRITON and Version(version("numpy")) >= Version("2.4"),
    reason="the interpreter of Triton 3.6 fails with NumPy 2.4",
)
def test_interpreted_kernels_attend_as_float64_does() -> None:
    cases = [
        case(splits=1),
        case(splits=7),  # shares without a block
        case(lengths=[1], max_length=1, splits=2),
        case(head_dim=256, kv_heads=1, splits=2),
        case(dtype="float32", kv_dtype="float8_e4m3fn", splits=3),
        case(dtype="bfloat16", kv_dtype="float8_e4m3fn", head_dim=16, splits=None),
        *random_cases(16),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.interpreted"],
        input=json.dumps(cases),
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout)
    for one, difference in zip(cases, differences, strict=True):
        assert difference < TOLERANCE[one["dtype"]], one


@pytest.mark.parametrize(
    ("programs", "blocks", "multiprocessors", "splits"),
    [
        (8, 1, 132, 1),  # nothing to part
        (8, 16, 132, 16),  # one block each, all at once
        (132 * 3, 64, 132, 1),  # one full wave
        (132 * 3 * 4, 64, 132, 1),  # four
        (1, 4096, 132, 128),  # as many as can be joined
    ],
)
def test_a_context_is_parted_until_the_device_is_full(
    programs: int, blocks: int, multiprocessors: int, splits: int
) -> None:
    from puzzle_search.runtime.attention.triton_decode import choose_splits

    assert choose_splits(programs, blocks, multiprocessors) == splits


def compiled(
    kernel: Any, pointers: dict[str, str], constants: dict[str, Any], **options: int
) -> Any:
    """A kernel for Hopper, without one; pointers and strides are multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "i32" for name in names} | pointers | dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        kernel,
        signature | ({"scale_log2": "fp32"} if "scale_log2" in names else {}),
        {(names.index(name),): value for name, value in constants.items()},
        {
            (number,): [["tt.divisibility", 16]]
            for number, name in enumerate(names)
            if name in pointers or "_stride_" in name
        },
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


@pytest.mark.parametrize("split", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "head_dim", [128, *(pytest.param(size, marks=pytest.mark.slow) for size in (64, 256))]
)
@pytest.mark.parametrize("kv_dtype", ["bfloat16", "float8_e4m3fn"])
def test_attending_compiles_for_hopper(kv_dtype: str, head_dim: int, split: bool) -> None:
    import triton.language as tl

    from puzzle_search.runtime.attention import triton_decode, triton_kernels

    pairs = kv_dtype == "float8_e4m3fn"
    block, stages = triton_decode._tile(head_dim * (1 if pairs else 2))
    kernel = compiled(
        triton_kernels.attend,
        {
            "q_ptr": "*bf16",
            "keys_ptr": "*i16" if pairs else "*bf16",
            "values_ptr": "*i16" if pairs else "*bf16",
            "lengths_ptr": "*i32",
            "out_ptr": "*fp32" if split else "*bf16",
            "log_sums_ptr": "*fp32" if split else "*bf16",
        },
        {
            "GROUP": 8,
            "GROUP_ROWS": 16,
            "HEAD_DIM": head_dim,
            "HEAD_COLUMNS": head_dim,
            "BLOCK": block,
            "PAIRS": pairs,
            "SPLIT": split,
            "DOT_DTYPE": tl.float16 if pairs else tl.bfloat16,
        },
        num_warps=4,
        num_stages=stages,
    )
    # NVIDIA's tuning guide for Hopper: 228 KB of shared memory an SM, 1 KB of it each block's own.
    assert triton_decode._RESIDENT * (kernel.metadata.shared + 1024) <= 228 * 1024
    ptx = kernel.asm["ptx"]
    assert "cp.async" in ptx
    assert "mma.sync" in ptx
    assert "ld.shared.b8" not in ptx


@pytest.mark.slow
def test_joining_compiles_for_hopper() -> None:
    from puzzle_search.runtime.attention import triton_decode, triton_kernels

    kernel = compiled(
        triton_kernels.join,
        {"parts_ptr": "*fp32", "log_sums_ptr": "*fp32", "out_ptr": "*bf16"},
        {"HEAD_DIM": 128, "HEAD_COLUMNS": 128, "MAX_SPLITS": triton_decode._MAX_SPLITS},
        num_warps=8,
    )
    assert "ex2.approx" in kernel.asm["ptx"]
