"""Products in FP8 against float64 of the rounded operands; scales; precisions."""

from __future__ import annotations

import pytest
import torch

from puzzle_search.errors import InputError
from puzzle_search.runtime import calibrating, precision_on
from puzzle_search.runtime.linear import ServingLinear

CPU = torch.device("cpu")


def to_fp8(x: torch.Tensor) -> torch.Tensor:
    """Nearest float8_e4m3fn of a number, by a search over all of them."""
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    numbers = numbers[numbers.isfinite()].unique()
    below = torch.searchsorted(numbers, x.double().clamp(-448, 448)).clamp(1, len(numbers) - 1)
    low, high = numbers[below - 1], numbers[below]
    return torch.where(x - low < high - x, low, high)


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_a_product_in_fp8(rows: int) -> None:
    torch.manual_seed(rows)
    x, weight, bias = torch.randn(rows, 64), torch.randn(48, 64), torch.randn(48)
    linear = ServingLinear(48, 64, precision_on("fp8", CPU), bias=True)
    linear.load(weight, bias)
    with calibrating(linear):
        linear(x.bfloat16())
    x = x.bfloat16().double()
    scale_x, scale_w = x.abs().max().float() / 448, weight.abs().max() / 448
    assert linear.input_scale == scale_x
    exact = to_fp8(x / scale_x) @ to_fp8(weight / scale_w).T * scale_x.double() * scale_w.double()
    exact = exact + bias.bfloat16().double()
    found = linear(x.bfloat16()).double()
    assert ((found - exact).norm() / exact.norm()) < 0.005  # bf16 results round at 1/512


def test_larger_inputs_than_calibrated_saturate() -> None:
    linear = ServingLinear(16, 16, precision_on("fp8", CPU))
    linear.load(torch.eye(16))
    with calibrating(linear):
        linear(torch.ones(1, 16).bfloat16())
    out = linear(torch.full((1, 16), 1000.0).bfloat16())
    torch.testing.assert_close(out, torch.ones(1, 16).bfloat16(), rtol=0.01, atol=0)


def test_a_scale_is_of_the_largest_input_of_all() -> None:
    linear = ServingLinear(16, 16, precision_on("fp8", CPU))
    linear.load(torch.eye(16))
    with calibrating(linear):
        assert linear.fused_scale is None
        for size in (1.0, 7.0, 2.0):
            linear(torch.full((3, 16), size).bfloat16())
    assert linear.fused_scale is linear.input_scale
    assert float(linear.input_scale) == pytest.approx(7 / 448)


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_other_precisions_have_no_scales(name: str) -> None:
    linear = ServingLinear(5, 3, precision_on(name, CPU))
    linear.randomise()
    assert linear.fused_scale is None
    assert not list(linear.buffers())
    assert 0.005 < float(linear.weight.float().std()) < 0.05


def test_unknown_precision() -> None:
    with pytest.raises(InputError, match="'int4' is not known") as raised:
        precision_on("int4", CPU)
    assert "fp8, bf16, fp32" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "capability", "works"),
    [("fp8", (9, 0), True), ("fp8", (8, 9), True), ("fp8", (8, 0), False), ("bf16", (7, 5), False)],
)
def test_precisions_that_a_gpu_lacks(
    monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int], works: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Old")
    if works:
        assert precision_on(name, torch.device("cuda")).name == name
        return
    with pytest.raises(InputError, match=f"NVIDIA Old does not compute in {name}"):
        precision_on(name, torch.device("cuda"))
