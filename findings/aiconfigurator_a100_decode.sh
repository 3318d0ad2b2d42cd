#!/usr/bin/env bash
# aiconfigurator-core 0.12.0, timings of decode attention on the A100 (SXM, 80 GB) with TensorRT-LLM
# 1.0.0, KV cache in bf16: 346 of the 1,255 rows that read 100 MB of cache or more are faster than the
# memory, whose peak is 2,039 GB/s (NVIDIA's data sheet), by up to 1.69 times: 64 sequences of 16,384
# tokens with 8 KV heads of 128, 4.3 GB, in 1.24 ms. The L2 cache holds 40 MB. Of the same GPU's rows
# with vLLM 0.14.0 and SGLang 0.5.10 none is, and the best reaches 0.85 and 0.66 of the peak.
# Costs read off the table alone promise the A100 long contexts that it cannot serve.
#
# Seen on 2026-11-28:
#   trtllm 1.0.0: 346 of 1255 rows over the peak, best 1.69 of it
#   vllm 0.14.0: 0 of 969 rows over the peak, best 0.85 of it
#   sglang 0.5.10: 0 of 1069 rows over the peak, best 0.66 of it
#
# Ends with 0 while that is so, with 1 once it is not.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    aiconfigurator-core==0.12.0 pandas==3.0.5 pyarrow==26.0.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from pathlib import Path

import aiconfigurator_core
import pandas as pd

PEAK = 2.039e12
attention = Path(aiconfigurator_core.__path__[0], "systems", "data", "a100_sxm", "attention")
seen = {}
for engine, version in (("trtllm", "1.0.0"), ("vllm", "0.14.0"), ("sglang", "0.5.10")):
    rows = pd.read_parquet(attention / engine / version / "generation_attention_perf.parquet")
    rows = rows[rows["kv_cache_dtype"] == "bfloat16"]
    assert set(rows["device"]) == {"NVIDIA A100-SXM4-80GB"}, set(rows["device"])
    # Keys and values of every cached token, 2 bytes each; one layer, milliseconds.
    tokens = rows["batch_size"] * (rows["isl"] + rows["step"])
    read_bytes = 2 * 2 * tokens * rows["num_key_value_heads"] * rows["head_dim"]
    share = (read_bytes / (rows["latency"] * 1e-3) / PEAK)[read_bytes >= 100e6]
    over = int((share > 1).sum())
    print(f"{engine} {version}: {over} of {len(share)} rows over the peak, best {share.max():.2f} of it")
    seen[engine] = over
sys.exit(seen != {"trtllm": 346, "vllm": 0, "sglang": 0})
PYTHON
