"""A few rows of published tables of whole models: output tokens/s per GPU, FP8, TensorRT-LLM.

Facts, transcribed from NVIDIA's blog of 2024-09 on Llama-3.1-Nemotron-51B and from the performance
overviews of TensorRT-LLM 0.14 and 0.17 (Apache-2.0): release, GPU, input and output length, TP, and
rate. All are of Llama-3.1-70B. Each release has one scalar, which these rows do not determine.
"""

from __future__ import annotations

ROWS = (
    ("blog-2024-09", "h100", 128, 1024, 1, 1274.0),
    ("blog-2024-09", "h100", 128, 1024, 4, 2975.0),
    ("blog-2024-09", "h100", 128, 2048, 4, 2786.0),
    ("blog-2024-09", "h100", 2048, 128, 1, 300.0),
    ("blog-2024-09", "h100", 2048, 128, 4, 339.0),
    ("blog-2024-09", "h100", 2048, 2048, 4, 1336.0),
    ("0.17", "h100", 128, 2048, 2, 3084.79),
    ("0.17", "h100", 1000, 1000, 2, 2195.26),
    ("0.17", "h100", 1000, 1000, 4, 1857.75),
    ("0.17", "h100", 1000, 1000, 8, 1431.39),
    ("0.17", "h100", 2048, 128, 4, 325.65),
    ("0.17", "h100", 20000, 2000, 8, 189.07),
    ("0.17", "h200", 128, 128, 1, 4020.75),
    ("0.17", "h200", 128, 2048, 1, 4165.68),
    ("0.17", "h200", 1000, 1000, 1, 2823.45),
    ("0.17", "h200", 1000, 1000, 2, 2582.38),
    ("0.17", "h200", 1000, 1000, 4, 2227.82),
    ("0.17", "h200", 1000, 1000, 8, 1647.65),
    ("0.17", "h200", 5000, 500, 2, 512.69),
    ("0.14.0", "h100", 500, 2000, 8, 1638.68),
    ("0.14.0", "h200", 2048, 2048, 2, 1759.04),
    ("0.14.0", "h200", 1000, 1000, 4, 1901.88),
)
SCALARS = {"blog-2024-09": 1.0, "0.17": 1.01, "0.14.0": 1.15}
"""How much slower each release is than the blog's, over all rows (`bench/cost_model.py`)."""

# Sums of measured kernels, Llama-3.1-70B FP8, 1000/1000, batch 1, ms per output token, by TP:
# tables of aiconfigurator (ai-dynamo, Apache-2.0), without host costs.
KERNEL_TPOT_MS = {
    "h100": {1: 28.3, 2: 16.1, 4: 9.8, 8: 6.8},
    "h200": {1: 20.8, 2: 12.3, 4: 8.0, 8: 5.9},
}
