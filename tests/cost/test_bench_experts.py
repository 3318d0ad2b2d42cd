"""The closed form of experts against published timings of mixtures, which it never saw."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    file = REPOSITORY / "bench" / "cost_model_experts.py"
    spec = importlib.util.spec_from_file_location("cost_model_experts", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cost_model_experts"] = module
    spec.loader.exec_module(module)
    return module


def test_errors_on_hopper(bench: ModuleType) -> None:
    pytest.importorskip("aiconfigurator_core")
    rows = {(row["engine"], row["dtype"], row["tokens"]): row for row in bench.compare("h100")}
    assert len(rows) == 3 * 3 + 3 * 3 + 2 * 3
    for (engine, dtype, tokens), row in rows.items():
        # vLLM's FP8 experts with one scale a matrix run another kernel, timed four times slower.
        if (engine, dtype) == ("vllm", "fp8"):
            assert row["ratio_median"] < 0.3
        else:
            assert row["error_median"] < (0.18 if tokens == "balanced" else 0.27), row
            assert 0.8 < row["ratio_median"] < 1.1, row
