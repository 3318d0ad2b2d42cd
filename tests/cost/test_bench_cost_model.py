"""Distance of the shipped cost models from measurements and from published throughput."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from puzzle_search.cost.modelled.hardware import CostModel, load_cost_model

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = REPOSITORY.parent / "shared" / "data"
PUBLISHED = pytest.mark.skipif(
    not (DATA / "published_throughput.csv").exists(),
    reason="the published throughput is not beside the repository",
)
pytest.importorskip("aiconfigurator_core")
GPUS = ("h100", "b60")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "bench" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    load("cost_model_throughput")
    load("cost_model_variants")
    return load("cost_model")


@pytest.fixture(scope="module")
def tables(bench: ModuleType) -> Any:
    return bench.read_tables(GPUS)


@pytest.fixture(scope="module")
def models() -> dict[str, CostModel]:
    return {gpu: load_cost_model(gpu) for gpu in GPUS}


LIMITS = {
    "GEMM": (0.06, 0.27),
    "prefill attention": (0.08, 0.2),
    "decode attention": (0.08, 0.4),
    "all-reduce": (0.15, 0.3),
}


def test_held_out_operators(bench: ModuleType, tables: Any, models: dict[str, CostModel]) -> None:
    for gpu, model in models.items():
        for error in bench.table_errors(model, tables[gpu]):
            found = error.as_dict()
            if found["operator"] in LIMITS:
                median, p90 = LIMITS[found["operator"]]
                assert found["median"] <= median, found
                assert found["p90"] <= p90, found
            # The sheet alone is several times further off.
            assert found["datasheet_median"] > 3 * found["median"], found
    assert bench.faster_than_hardware(models, tables) == 0


def test_kv_heads(bench: ModuleType, tables: Any, models: dict[str, CostModel]) -> None:
    for row in bench.operator_table(models, tables):
        for heads, (median, _) in row["by_kv_heads"].items():
            assert heads in (1, 2, 4, 8)
            assert median <= 0.08, row


def test_the_order_of_the_variants(
    bench: ModuleType, tables: Any, models: dict[str, CostModel]
) -> None:
    rows = bench.variants_table(models, tables)
    # The B60 was timed at too few shapes to compare.
    assert len(rows) == 6
    for row in rows:
        assert row["tau_least"] >= 0.95, row
        assert row["points_p90"] <= 4, row
        assert row["datasheet_tau_least"] < row["tau_least"]


@PUBLISHED
def test_published_throughput(bench: ModuleType) -> None:
    found = bench.throughput(DATA, {gpu: load_cost_model(gpu) for gpu in ("h100", "h200")})
    every = found["all"]
    assert every["rows"] == 143
    assert every["mape"] <= 0.06
    assert set(every["mean_error_by_tp"]) == {1, 2, 4, 8}
    assert max(map(abs, every["mean_error_by_tp"].values())) <= 0.04
    assert abs(every["parent_on_one_h100"]) <= 0.1
