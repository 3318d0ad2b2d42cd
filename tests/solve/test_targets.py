"""Targets made of profiles: batch sizes, what they cover, TP groups."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puzzle_search.arch import ParentConfig, SearchSpace
from puzzle_search.cost import Profile, Scenario
from puzzle_search.cost.modelled.hardware import load_cost_model
from puzzle_search.errors import InputError
from puzzle_search.solve import Limits, Workload, formulate, solve
from puzzle_search.solve.question.answer import Answer
from puzzle_search.solve.question.device import find_target
from puzzle_search.solve.question.targets import cost_table, profile_target
from tests.cost.steps import prefill_us, step
from tests.cost.synthetic_profile import GROUPS, RAW, whole_profile
from tests.solve.helpers import random_scores

CONFIG = ParentConfig.from_dict(RAW, name="pico")
SPACE = SearchSpace.uniform(
    CONFIG, attention=["gqa_2", "gqa_1", "linear", "no_op"], ffn=["mlp_128", "mlp_64", "no_op"]
)
H200: dict[str, Any] = {
    "device": {"kind": "cuda", "name": "NVIDIA H200", "memory_bytes": 150_109_880_320}
}


def test_batches_are_the_usual_ones_within_the_measured() -> None:
    batches = profile_target(whole_profile()).batches
    assert batches[:12] == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
    assert batches[-1] == 100
    assert {16, 100} <= set(batches)


def test_a_table_stops_where_the_profile_does() -> None:
    profile = whole_profile()
    target = profile_target(profile)
    table = cost_table(CONFIG, SPACE, target, Scenario.parse("20/20"))
    # FFNs were measured up to 100 tokens a step, heads and attention up to batch 16.
    assert [point.batch for point in table.points] == [b for b in target.batches if b <= 16]
    index = [point.batch for point in table.points].index(6)
    # Chunks of 100 tokens hold five prompts of 20.
    expected = 10 + 100 / 4 + 10 + 20 / 4
    assert table.ffn.prefill_us[index, 0] == pytest.approx(expected)
    assert table.ffn.decode_us[index, 0] == pytest.approx(19 * (10 + 6 / 4))
    # The 19 decode steps see contexts of 21 to 39.
    assert table.attention.decode_us[index, 0] == pytest.approx(19 * (20 + 2 * 6 * 30 / 100))


def test_a_gap_of_one_variant_ends_the_table() -> None:
    whole = whole_profile()
    rows = [
        known
        for known in whole.rows
        if not (known.variant == "gqa_2" and known.batch > 4 and known.context > 10)
    ]
    cut = Profile(rows, whole.memory, GROUPS, whole.sidecar)
    table = cost_table(CONFIG, SPACE, profile_target(cut), Scenario.parse("60/20"))
    assert max(point.batch for point in table.points) == 4
    whole_table = cost_table(CONFIG, SPACE, profile_target(whole), Scenario.parse("60/20"))
    assert max(point.batch for point in whole_table.points) == 16


def answer_on(profile: Profile) -> Answer:
    """The least damage on a profile, with nothing asked but its memory."""
    table = cost_table(CONFIG, SPACE, profile_target(profile), Scenario.parse("60/20"))
    scores = random_scores(CONFIG, SPACE, np.random.default_rng(0))
    problem = formulate(CONFIG, SPACE, scores, [Workload.on_device(table, Limits())])
    return Answer(solution=solve(problem), config=CONFIG)


def test_batch_sizes_that_were_not_measured_are_told() -> None:
    whole = whole_profile()
    [told] = answer_on(whole).remarks  # its FFNs were measured to 100
    assert told.startswith("60/20: batch sizes 17 to 100 were not measured for every variant")
    # The parent's attention stops at batch 4, as where its cache does not fit beyond.
    rows = [
        known
        for known in whole.rows
        if not (known.variant == "gqa_2" and known.batch > 4 and known.context > 10)
    ]
    [told] = answer_on(Profile(rows, whole.memory, GROUPS, whole.sidecar)).remarks
    assert told.startswith("60/20: batch sizes 5 to 100 were not measured for every variant")


def test_a_scenario_that_no_batch_covers_says_what_is_missing() -> None:
    with pytest.raises(InputError, match=r"gqa_2, tp 1: batch.*outside the measured"):
        cost_table(CONFIG, SPACE, profile_target(whole_profile()), Scenario.parse("100/900"))


def test_shards_are_joined_by_the_all_reduce_of_the_devices_cost_model() -> None:
    profile = whole_profile(degrees=(1, 2, 4), **H200)
    single = profile_target(profile)
    assert (single.tp_degrees, single.latency.evidence) == ((1,), "measured")
    joined = profile_target(profile, tp=(1, 2, 4, 8))
    assert (joined.tp_degrees, joined.latency.evidence) == ((1, 2, 4), "published")

    lines = next(iter(load_cost_model("h200").engines.values())).all_reduce
    assert lines is not None

    def message_us(tokens: int, tp: int) -> float:
        """A line between the sizes timed, in logarithms; at least what a link takes."""
        line, size = lines.by_tp[tp], tokens * 64 * 2
        timed = np.exp(np.interp(np.log(size), np.log(line.message_bytes), np.log(line.us)))
        return float(max(timed, size * (tp - 1) / tp / 450e3))

    at = {"tokens": 1, "context": 50}
    for tp in (2, 4):
        us = joined.latency.subblock_us("attention", "gqa_2", step("decode", batch=4, tp=tp, **at))
        assert us == pytest.approx(20 + 2 * 4 * 50 / 100 + message_us(4, tp))
        outside = joined.latency.outside_us(step("decode", batch=4, tokens=1, tp=tp))
        assert outside == pytest.approx(2 + 4 / 50 + 9 + 44 + message_us(4, tp))
        assert joined.latency.subblock_us("ffn", "no_op", step("decode", batch=4, tp=tp, **at)) == 0
    # Two chunks of one prompt, 100 and 40 tokens.
    us = prefill_us(joined.latency, "ffn", "mlp_64", batch=1, tokens=140, tp=2)
    assert us == pytest.approx((10 + 25) + (10 + 10) + message_us(100, 2) + message_us(40, 2))
    alone = joined.latency.subblock_us("ffn", "mlp_64", step("decode", batch=4, tp=1, **at))
    assert alone == pytest.approx(11)
    table = cost_table(CONFIG, SPACE, joined, Scenario.parse("20/20"), (1, 2))
    assert {point.tp for point in table.points} == {1, 2}


def test_without_a_cost_model_shards_are_not_joined() -> None:
    profile = whole_profile(degrees=(1, 2))
    assert profile_target(profile, tp=(1, 2, 4, 8)).tp_degrees == (1,)
    with pytest.raises(InputError, match=r"abacus.*all-reduce is not known") as caught:
        profile_target(profile, tp=(2,))
    assert caught.value.remedy == "use --tp 1"
    with pytest.raises(InputError, match="no shards of TP 8"):
        profile_target(profile, tp=(8,))


def test_a_profile_folder_is_a_target_for_its_own_shapes(tmp_path: Path) -> None:
    whole_profile().write(tmp_path)
    target = find_target(str(tmp_path), replace(CONFIG, name="other", num_layers=80))
    assert (target.gpu, target.engine, target.dtype.name) == ("abacus", "test", "bf16")
    assert np.isfinite(target.latency.outside_us(step("decode", batch=1, tokens=1, tp=1)))
    with pytest.raises(InputError, match="profile of pico, whose shape differs from wide"):
        find_target(str(tmp_path), replace(CONFIG, name="wide", hidden_size=128))


def test_four_bits_are_asked_for() -> None:
    assert "nvfp4" in load_cost_model("b200").engine("trtllm").dtypes
    for gpu, dtype in (("b200", "fp8"), ("h100", "fp8"), ("a100", "bf16"), ("cpu", "fp32")):
        assert find_target(gpu, CONFIG).dtype.name == dtype
    assert find_target("b200", CONFIG, dtype="nvfp4").dtype.name == "nvfp4"
