"""Ceilings of a device."""

from __future__ import annotations

import pytest
import torch

from puzzle_search.profile.hardware.ceilings import best, measure_ceilings
from puzzle_search.runtime import precision_on


@pytest.mark.parametrize(
    ("dtype", "rates"), [("fp32", ["fp32"]), ("bf16", ["bf16"]), ("fp8", ["fp8", "bf16"])]
)
def test_rates_of_matrices_and_of_the_head_are_measured(dtype: str, rates: list[str]) -> None:
    device = torch.device("cpu")
    ceilings = measure_ceilings(precision_on(dtype, device), device)
    assert set(ceilings["matmul_flops_per_second"]) == set(rates)
    assert all(rate > 1e6 for rate in ceilings["matmul_flops_per_second"].values())
    assert 1e8 < ceilings["copy_bytes_per_second"] < 1e13


def test_the_best_of_two_is_the_higher_of_each() -> None:
    first = {"copy_bytes_per_second": 5, "matmul_flops_per_second": {"fp8": 1, "bf16": 4}}
    second = {"copy_bytes_per_second": 3, "matmul_flops_per_second": {"fp8": 2, "bf16": 3}}
    assert best(first, second) == {
        "copy_bytes_per_second": 5, "matmul_flops_per_second": {"fp8": 2, "bf16": 4}
    }  # fmt: skip
