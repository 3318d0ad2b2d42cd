"""Bytes, against sums done by hand."""

from __future__ import annotations

import torch

from puzzle_search.profile.hardware.memory import check_allocation, peak_bytes, storage_bytes

CPU = torch.device("cpu")


def test_memory_behind_tensors_counts_once_and_whole() -> None:
    base = torch.zeros(100)
    assert storage_bytes([base]) == 400
    assert storage_bytes([base[:10], base, base.view(10, 10)]) == 400
    assert storage_bytes([base, torch.zeros(3, dtype=torch.bfloat16)]) == 406


def test_the_peak_counts_what_is_alive_at_once() -> None:
    given = torch.zeros(1000)

    def work() -> torch.Tensor:
        a = given + 1  # 4000 bytes
        b = a.view(10, 100) * 2  # and 4000
        del a
        b.add_(1)  # in place: nothing
        return b.double()  # and 8000, without a

    assert peak_bytes(work, CPU) == 12_000


def test_the_peak_is_the_same_in_inference() -> None:
    given = torch.zeros(1000)
    with torch.inference_mode():
        assert peak_bytes(lambda: (given + 1) * 2, CPU) == 8000


def test_a_module_is_made_as_it_is_on_a_cpu() -> None:
    module = check_allocation(lambda: torch.nn.Linear(2, 3), CPU)
    assert storage_bytes(module.parameters()) == 4 * (6 + 3)
