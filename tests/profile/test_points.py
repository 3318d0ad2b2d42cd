"""What is measured of a subblock, with which inputs, in which order."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from puzzle_search.arch import ArchitectureSpec, Gqa, parse_variant
from puzzle_search.cost import Profile, parse_dtype
from puzzle_search.profile import measure_profile, open_device
from puzzle_search.profile.points import subjects
from puzzle_search.profile.points.plan import ProfilePlan
from puzzle_search.profile.points.point import Point
from puzzle_search.profile.points.step_inputs import Heads, StepInputs
from puzzle_search.profile.sampling import session
from puzzle_search.profile.sampling.readings import Reading, Readings
from puzzle_search.runtime import ServingDecoder, make_serving_subblock, precision_on
from puzzle_search.runtime.cache import LayerSlots
from tests.pico import Pico
from tests.profile.small import GRID, measure


@pytest.fixture(scope="module")
def profile(pico: Pico) -> Profile:
    return measure(pico)


def test_a_stack_has_the_weights_of_a_model_or_more_than_a_cache_holds(pico: Pico) -> None:
    precision = precision_on("fp32", torch.device("cpu"))
    stacked = parse_variant("attention", "gqa_1")
    module = make_serving_subblock(stacked, pico.config, precision)
    assert module is not None
    of_copy = sum(weights.nbytes for weights in module.parameters())
    parent = ServingDecoder.random(
        pico.config, ArchitectureSpec.identity(pico.config), precision, torch.device("cpu")
    )
    of_model = sum(weights.nbytes for weights in parent.blocks.parameters())
    for cache_bytes, stack_bytes in {50 << 20: of_model, of_copy: 3 * of_copy, 1: 0}.items():
        device = dataclasses.replace(open_device("cpu"), cache_bytes=cache_bytes)
        stack = subjects.SubblockStack(StepInputs(pico.config, device, precision), stacked, 1)
        assert stack.copies == max(2, math.ceil(stack_bytes / of_copy))
        assert stack.caches == min(stack.copies, pico.config.num_layers)
        assert stack.weight_bytes == stack.copies * of_copy


def test_caches_are_cooled_before_each_step_of_the_bare_engine(
    pico: Pico, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = StepInputs(pico.config, open_device("cpu"), precision_on("fp32", torch.device("cpu")))
    cooled = []
    monkeypatch.setattr(inputs, "cool", lambda: cooled.append(0))
    stack = subjects.OutsideStack(inputs, 1)
    stack.open()
    run = stack.run("step", Point(phase="decode", batch=1, tokens=1, context=1), None)
    run.sample_us()
    assert len(cooled) == run.passes


def test_what_was_visited_least_is_visited_next(
    pico: Pico, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reading, "steady", False)
    device, number = open_device("cpu"), parse_dtype("fp32")
    inputs = StepInputs(pico.config, device, precision_on("fp32", device.torch_device))
    series = ProfilePlan(pico.config, pico.space, inputs, number, GRID).series
    readings = Readings(None, {})
    with torch.inference_mode():
        lattice = session.Session(device, readings, seconds=0)
        lattice.open(series)
        places = sum(len(group.samples) for group in lattice.measure(series))
        # Each of these ends with its first group, as one that is out of time does.
        visited: list[Any] = []
        while len(visited) + 16 <= places:
            again = session.Session(device, readings, seconds=60)
            group = next(iter(again.measure(series)))
            visited += group.samples
    assert len(visited) >= 32
    assert len(set(visited)) == len(visited)


def test_shards_of_the_same_shape_are_measured_once(pico: Pico) -> None:
    profile = measure(pico, dataclasses.replace(GRID, tp=(1, 2)))

    def rows(subblock: str, variant: str, tp: int) -> list[Any]:
        return [
            dataclasses.replace(row, variant="", tp=0)
            for row in profile.rows
            if (row.subblock, row.variant, row.tp) == (subblock, variant, tp)
        ]

    # Half of 512 channels, and of 4 query heads with 1 or 2 KV heads: one is replicated.
    assert rows("ffn", "mlp_512", 2) == rows("ffn", "mlp_256", 1) != []
    assert rows("attention", "gqa_2", 2) == rows("attention", "gqa_1", 2) != []
    assert rows("attention", "gqa_2", 2) != rows("attention", "gqa_2", 1)
    assert rows("outside", "step", 2) == rows("outside", "step", 1) != []
    assert rows("outside", "head", 2) != rows("outside", "head", 1)


def test_decode_steps_whose_caches_cannot_fit_are_not_asked(pico: Pico) -> None:
    # One layer in four keeps the parent's 2 KV heads of 16 numbers: 256 bytes a token.
    device = dataclasses.replace(open_device("cpu"), memory_limit_bytes=256 * 18 * 100)
    grid = dataclasses.replace(GRID, batches=(1, 100), contexts=(9, 18, 36))
    number = parse_dtype("fp32")
    profile = measure_profile(pico.config, pico.space, device, number, grid, max_minutes=0)
    decode = {(r.batch, r.context) for r in profile.rows if r.variant == "gqa_1" and r.tokens == 1}
    assert (1, 36) in decode
    assert (100, 36) not in decode
    skipped = profile.sidecar["skipped"]
    assert [entry["why"] for entry in skipped] == ["keys and values do not fit in memory"] * 2
    assert "gqa_2, tp 1: decode, batch x context above" in skipped[0]["point"]


def test_attention_in_a_window_is_measured_by_itself_and_keeps_the_window(pico: Pico) -> None:
    inputs = StepInputs(pico.config, open_device("cpu"), precision_on("fp32", torch.device("cpu")))
    whole, windowed = (subjects.SubblockStack(inputs, Gqa(2, window), 1) for window in (None, 4))
    assert whole.key != windowed.key
    point = Point(phase="decode", batch=3, tokens=1, context=16)
    assert windowed.kv_numbers(point) * 4 == whole.kv_numbers(point)


def test_keys_and_values_lie_as_in_the_engine_and_each_copy_has_its_own(pico: Pico) -> None:
    precision = precision_on("fp32", torch.device("cpu"))
    inputs = StepInputs(pico.config, open_device("cpu"), precision)
    point = Point(phase="decode", batch=2, tokens=1, context=5)
    layers = inputs.slots(point, Heads(query=4, kv=2, window=None), copies=3)
    cache = LayerSlots(
        2, 16, slots=2, max_length=5, dtype=torch.float32, device=torch.device("cpu")
    )
    tensors = [t for layer in layers for t in (layer.keys_BSKE, layer.values_BSKE)]
    for tensor in tensors:
        assert tensor.shape == cache.keys_BSKE.shape == (2, 5, 2, 16)
        assert tensor.stride() == cache.keys_BSKE.stride()
        tensor.zero_()
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    assert [float(t.mean()) for t in tensors] == [0, 1, 2, 3, 4, 5]
