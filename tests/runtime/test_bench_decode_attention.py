from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_bench_runs_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "bench/decode_attention.py", "--pico", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == json.loads(out.read_text())
    assert [row["kv_dtype"] for row in result["rows"]] == ["bf16", "fp8"]
    for row in result["rows"]:
        # Keys and values, two sequences of 32 tokens, two heads of 16.
        kv_bytes = 2 * 2 * 32 * 2 * 16 * {"bf16": 2, "fp8": 1}[row["kv_dtype"]]
        assert abs(row["bytes_per_s"] * row["call_us"] / 1e6 - kv_bytes) < 1e-6 * kv_bytes
