"""Distance of the shipped cost models from measurements and from published throughput."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from puzzle_search.cost.modelled.hardware import CostModel, find_cost_model, load_cost_model

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = REPOSITORY.parent / "shared" / "data"
pytestmark = pytest.mark.skipif(
    not (DATA / "operators").is_dir(), reason="the calibration data is not beside the repository"
)


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
    return bench.read_tables(DATA)


@pytest.fixture(scope="module")
def models() -> dict[str, CostModel]:
    return {gpu: load_cost_model(gpu) for gpu in ("h100", "h200")}


@pytest.mark.slow
def test_shipped_constants_are_the_fitted_ones(bench: ModuleType, tables: Any) -> None:
    def numbers(value: object) -> list[float]:
        if isinstance(value, dict):
            return [number for item in value.values() for number in numbers(item)]
        if isinstance(value, list):
            return [number for item in value for number in numbers(item)]
        if isinstance(value, str) and "\n" in value:
            return [float(item) for item in value.split()]
        return [float(value)] if isinstance(value, int | float) else []

    for gpu, refitted in bench.fit(DATA, tables).items():
        shipped = yaml.safe_load(find_cost_model(gpu).read_text())
        # Least squares stops at slightly different points on different machines.
        np.testing.assert_allclose(
            numbers(yaml.safe_load(refitted.to_yaml())), numbers(shipped), rtol=0.05, atol=0.05
        )


LIMITS = {
    "GEMM": (0.05, 0.15),
    "prefill attention": (0.07, 0.16),
    "decode attention": (0.07, 0.16),
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
            assert found["datasheet_median"] > 3 * found["median"]
    assert bench.faster_than_hardware(models, tables) == 0


def test_kv_heads(bench: ModuleType, tables: Any, models: dict[str, CostModel]) -> None:
    for row in bench.operator_table(models, tables):
        for heads, (median, p90) in row["by_kv_heads"].items():
            assert heads in (1, 2, 4, 8)
            assert median <= 0.07, row
            assert p90 <= 0.16, row


def test_the_order_of_the_variants(
    bench: ModuleType, tables: Any, models: dict[str, CostModel]
) -> None:
    rows = bench.variants_table(models, tables)
    assert len(rows) == 8
    for row in rows:
        assert row["tau_least"] >= 0.95, row
        assert row["points_p90"] <= 3, row
        assert row["datasheet_tau_least"] < row["tau_least"]


def test_published_throughput(bench: ModuleType, models: dict[str, CostModel]) -> None:
    found = bench.throughput(DATA, models)
    every = found["all"]
    assert every["rows"] == 143
    assert every["mape"] <= 0.06
    assert set(every["mean_error_by_tp"]) == {1, 2, 4, 8}
    assert max(map(abs, every["mean_error_by_tp"].values())) <= 0.04
    assert abs(every["parent_on_one_h100"]) <= 0.1
