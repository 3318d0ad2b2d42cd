"""Profiles through vLLM: a stub engine's closed form is found again, and failures are told."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from puzzle_search.arch import ParentConfig, SearchSpace
from puzzle_search.cost import LatencyRow, Profile, parse_dtype
from puzzle_search.errors import InputError, MissingDependencyError
from puzzle_search.files import Journal
from puzzle_search.profile.engines import EngineGrid, measure_engine_profile
from puzzle_search.profile.engines.vllm import Vllm
from tests.cost.steps import step
from tests.profile.engine_stub import ENGINE_US, attention_us, ffn_us
from tests.profile.test_vllm_worker import LLAMA, parent

STUB = Path(__file__).with_name("engine_stub.py")
GRID = EngineGrid(
    batches=(1, 4, 16),
    prefill_tokens=(64, 256),
    decode_contexts=(128, 300),
    blocks=4,
    chunk_tokens=512,
)
Measure = Callable[..., Profile]


@pytest.fixture
def measure(tmp_path: Path) -> Measure:
    def run(grid: EngineGrid = GRID, config: ParentConfig | None = None, **mode: Any) -> Profile:
        config = config or parent()
        attention = ["gqa_2", "gqa_1", "linear", "no_op"]
        space = SearchSpace.uniform(config, attention=attention, ffn=["mlp_512", "mlp_256"])
        return measure_engine_profile(
            Vllm(),
            config,
            space,
            parse_dtype("bf16"),
            grid,
            journal=Journal(tmp_path / "journal.jsonl"),
            command=[sys.executable, str(STUB), json.dumps(mode)],
            answer_seconds=2,
        )

    return run


def true_us(row: LatencyRow, kv_heads: int | None = None, width: int | None = None) -> float:
    if row.subblock == "outside":
        return ENGINE_US
    size = int(row.variant.partition("_")[2])
    if row.subblock == "ffn":
        return ffn_us(width or size, row.batch * row.tokens)
    return attention_us(kv_heads or size, [(row.tokens, row.context)] * row.batch)


def lattice(profile: Profile, variant: str, phase: str) -> set[tuple[int, int, int]]:
    rows = [r for r in profile.rows if (r.variant, r.phase) == (variant, phase)]
    places = [(r.batch, r.tokens, r.context) for r in rows]
    assert len(places) == len(set(places))
    return set(places)


def test_the_closed_form_of_the_engine_is_found_again(measure: Measure) -> None:
    profile = measure()
    for row in profile.rows:
        # The context of a decode step is met within a token of 128.
        tolerance = 1e-6 if row.phase == "prefill" or row.subblock != "attention" else 0.01
        if row.subblock == "outside":
            tolerance = 0.02
        assert row.latency_us == pytest.approx(true_us(row), rel=tolerance, abs=1e-3), row
        assert row.latency_us_p10 <= row.latency_us <= row.latency_us_p90
        assert row.repeats >= 5
        assert row.tp == 1


def test_every_variant_is_measured_where_it_must_be(measure: Measure) -> None:
    profile = measure()
    for variant in ("gqa_2", "gqa_1"):
        decode = {(b, 1, c) for b in (1, 4, 16) for c in (128, 300)}
        assert lattice(profile, variant, "decode") == decode
        # Full chunks of 512 tokens are 8 prompts of 64 and 2 of 256.
        chunks = {(b, 64, 64) for b in (1, 2, 4, 8)} | {(1, 256, 256), (2, 256, 256)}
        assert lattice(profile, variant, "prefill") == chunks
    for variant in ("mlp_512", "mlp_256"):
        rows = [r.batch * r.tokens for r in profile.rows if r.variant == variant]
        assert sorted(rows) == [1, 4, 16, 64, 128, 256, 512]
    outside = {(r.variant, r.phase, r.batch) for r in profile.rows if r.subblock == "outside"}
    assert outside == {("step", "decode", b) for b in (1, 4, 16)} | {
        ("step", "prefill", b) for b in (1, 2, 4, 8)
    }
    linear = [s for s in profile.sidecar["skipped"] if s["point"] == "attention linear, tp 1"]
    assert [s["why"] for s in linear] == ["vLLM does not load this variant"]


def test_a_noisy_engine_is_found_within_its_noise_and_called_unsteady(measure: Measure) -> None:
    profile = measure(noise=0.1)
    assert not all(row.steady for row in profile.rows)
    for row in profile.rows:
        assert row.steady == (row.latency_us_p90 - row.latency_us_p10 <= 0.02 * row.latency_us)
        if row.subblock == "attention" and row.phase == "decode" and row.batch == 16:
            assert row.latency_us == pytest.approx(true_us(row), rel=0.15), row


def test_on_a_processor_both_children_run_in_turn(
    measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def children() -> list[tuple[str, int]]:
        lines = map(json.loads, (tmp_path / "journal.jsonl").read_text().splitlines()[1:])
        return [(line["stack"], line["blocks"]) for line in lines if "stack" in line]

    apart = measure().rows
    stack = "attention gqa_2, tp 1"
    points = children().count((stack, 4))
    assert children()[: 2 * points] == [(stack, 8)] * points + [(stack, 4)] * points
    (tmp_path / "journal.jsonl").unlink()
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    assert [row.latency_us for row in measure().rows] == pytest.approx(
        [row.latency_us for row in apart], rel=0.02
    )
    assert children()[: 2 * points] == [(stack, 8), (stack, 4)] * points


def test_a_quiet_engine_is_steady(measure: Measure) -> None:
    rows = measure(replace(GRID, prefill_tokens=(64,))).rows
    assert all(row.steady for row in rows if row.phase == "prefill")


def test_long_prompts_are_chunks_over_a_history(measure: Measure) -> None:
    profile = measure(replace(GRID, prefill_tokens=(64, 1024, 2048)))
    rows = [r for r in profile.rows if r.variant == "gqa_2" and r.context > r.tokens > 1]
    assert {(r.batch, r.tokens, r.context) for r in rows} == {(1, 512, 1024), (1, 512, 2048)}
    for row in rows:
        assert row.latency_us == pytest.approx(true_us(row), rel=1e-6)
    assert (1, 512, 512) in lattice(profile, "gqa_2", "prefill")
    with pytest.raises(InputError, match="1000 tokens ends inside a chunk of 512"):
        measure(replace(GRID, prefill_tokens=(1000,)))


def test_tensor_parallel_shards_have_local_shapes(measure: Measure) -> None:
    profile = measure(replace(GRID, tp_degrees=(1, 2)))
    shards = [row for row in profile.rows if row.tp == 2]
    # A KV head for each of two devices, and copies of one.
    local = {"gqa_2": 1, "gqa_1": 1}
    assert {r.variant for r in shards} == {"gqa_2", "gqa_1", "mlp_512", "step"}
    for row in shards:
        expected = true_us(row, kv_heads=local.get(row.variant), width=256)
        assert row.latency_us == pytest.approx(expected, rel=0.02), row
    why = {s["point"]: s["why"] for s in profile.sidecar["skipped"]}
    assert "multiple of 256" in why["ffn mlp_256, tp 2"]
    with pytest.raises(InputError, match=r"tp 8 does not divide num_attention_heads 4"):
        measure(replace(GRID, tp_degrees=(8,)))


def test_the_sidecar_names_engine_and_device(measure: Measure, tmp_path: Path) -> None:
    profile = measure()
    assert profile.sidecar["engine"] == "vllm 0.24.0"
    assert profile.sidecar["device"] == {
        "kind": "cuda", "name": "Stub GPU", "memory_bytes": 85 * 10**9, "vllm": "0.24.0",
    }  # fmt: skip
    assert profile.sidecar["prefill_chunk_tokens"] == 512
    profile.write(tmp_path / "profile")
    read = Profile.from_folder(tmp_path / "profile")
    assert read.rows == profile.rows
    assert read.sidecar == profile.sidecar
    whole = read.outside_us(step("decode", batch=4, tokens=1, tp=1))
    assert float(whole) == pytest.approx(ENGINE_US, rel=0.02)


def test_a_point_faster_than_the_hardware_is_left_out(measure: Measure, tmp_path: Path) -> None:
    # By hand: q and o are 2 x 12288 x 12288 bf16 numbers, which 3.35 TB/s move in 180 us; the stub
    # takes less than 42 us for any decode step. The 3 x 512 x 12288 numbers of an FFN take 11.3 us,
    # and 512 rows of it 19.5 us at 989 TFLOP/s; the stub takes 25.6 us and more.
    config = parent(hidden_size=12288, num_attention_heads=96)
    profile = measure(config=config, device="NVIDIA H100 80GB HBM3")
    kept = {(r.variant, r.phase) for r in profile.rows}
    assert {("mlp_512", "decode"), ("mlp_512", "prefill"), ("step", "decode")} <= kept
    assert not kept & {("gqa_2", "decode"), ("gqa_1", "decode")}
    lost = [s["why"] for s in profile.sidecar["skipped"] if "gqa_2, tp 1: decode" in s["point"]]
    assert len(lost) == 6
    assert all("faster than the hardware" in why for why in lost)
    profile.write(tmp_path / "profile")
    assert Profile.from_folder(tmp_path / "profile").rows == profile.rows


def test_a_worker_that_dies_is_told_and_the_profile_goes_on(
    measure: Measure, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="exit code 17") as caught:
        measure(dies_after=30)
    assert "illegal memory access" in caught.value.message
    kept = (tmp_path / "journal.jsonl").read_bytes()
    assert kept.count(b"seconds") > 2
    profile = measure()
    assert (tmp_path / "journal.jsonl").read_bytes().startswith(kept)
    again = measure(missing=True)  # all is there: no worker starts
    assert again.rows == profile.rows
    (tmp_path / "journal.jsonl").unlink()
    assert measure().rows == profile.rows


def test_results_of_another_engine_or_run_are_not_mixed(measure: Measure) -> None:
    with pytest.raises(InputError):
        measure(dies_after=30)
    with pytest.raises(InputError, match="results of another device and engine"):
        measure(vllm="0.25.0")
    with pytest.raises(InputError, match="another run: grid differ"):
        measure(replace(GRID, blocks=2))


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ({"hangs_after": 3}, "not answered for 2 s"),
        ({"junk_after": 3}, "answered not JSON"),
        ({"junk_after": 0, "answer": "[1]"}, r"answered \[1\]"),
        ({"junk_after": 0, "answer": '{"steps": []}'}, "answered"),
        ({"junk_after": 0, "answer": '{"steps": [["1", 2]]}'}, "answered"),
    ],
)
def test_a_worker_that_hangs_or_answers_junk(
    measure: Measure, mode: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        measure(**mode)
    assert caught.value.remedy


def test_without_vllm_it_says_how_to_install_it(measure: Measure) -> None:
    with pytest.raises(MissingDependencyError, match="has no vLLM") as caught:
        measure(missing=True)
    assert "pip install" in caught.value.remedy


def test_children_that_do_not_fit_are_halved(measure: Measure) -> None:
    profile = measure(blocks_that_fit=5)
    assert {"gqa_2", "gqa_1", "mlp_512", "mlp_256"} <= {row.variant for row in profile.rows}
    for row in profile.rows:
        assert row.latency_us == pytest.approx(true_us(row), rel=0.02), row


def test_nothing_that_fits_is_an_error(measure: Measure) -> None:
    with pytest.raises(InputError, match="no point of any variant"):
        measure(blocks_that_fit=0)


def test_points_beyond_the_cache_are_skipped_and_said_so(measure: Measure) -> None:
    profile = measure(kv_tokens=3000)
    assert (16, 1, 300) not in lattice(profile, "gqa_2", "decode")
    assert (4, 1, 300) in lattice(profile, "gqa_2", "decode")
    why = {s["point"]: s["why"] for s in profile.sidecar["skipped"]}
    skipped = why["attention gqa_2, tp 1: decode, batch 16, 1 tokens, context 300"]
    assert skipped.endswith("vLLM has 3000")


def test_points_out_of_memory_are_skipped_and_the_run_goes_on(measure: Measure) -> None:
    profile = measure(tokens_that_fit=2000)
    assert (16, 1, 128) not in lattice(profile, "gqa_2", "decode")
    assert (16, 1, 300) not in lattice(profile, "gqa_2", "decode")
    assert (4, 1, 300) in lattice(profile, "gqa_2", "decode")
    assert (8, 64, 64) in lattice(profile, "gqa_2", "prefill")
    why = {s["point"]: s["why"] for s in profile.sidecar["skipped"]}
    assert (
        why["attention gqa_2, tp 1: decode, batch 16, 1 tokens, context 128"]
        == "out of memory: CUDA out of memory"
    )


def test_what_vllm_cannot_serve_is_refused(measure: Measure, tmp_path: Path) -> None:
    qwen = ParentConfig.from_dict(LLAMA | {"model_type": "qwen3", "head_dim": 16}, name="qwen")
    with pytest.raises(InputError, match="without q/k norms"):
        measure(config=qwen)
    with pytest.raises(InputError, match="4096 positions"):
        measure(replace(GRID, decode_contexts=(4096,)))
    with pytest.raises(InputError, match="shorter than"):
        measure(replace(GRID, decode_contexts=(16,)))
    config = parent()
    space = SearchSpace.uniform(config, attention=[], ffn=[])
    journal = Journal(tmp_path / "other.jsonl")
    with pytest.raises(InputError, match="not profiled in q8_0"):
        measure_engine_profile(Vllm(), config, space, parse_dtype("q8_0"), GRID, journal=journal)
    with pytest.raises(InputError, match="cannot be started"):
        measure_engine_profile(
            Vllm(),
            config, space, parse_dtype("bf16"), GRID, journal=journal,
            command=[str(tmp_path / "no-python")],
        )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("vllm") is None,
    reason="needs an NVIDIA GPU and vLLM",
)
def test_a_small_parent_is_profiled_through_vllm_itself(tmp_path: Path) -> None:
    sizes = {"hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 8}
    config = parent(**sizes, intermediate_size=8192, vocab_size=32000)
    space = SearchSpace.uniform(config, attention=["gqa_2"], ffn=["mlp_4096"])
    grid = replace(GRID, blocks=16)
    journal = Journal(tmp_path / "journal.jsonl")
    profile = measure_engine_profile(
        Vllm(), config, space, parse_dtype("bf16"), grid, journal=journal
    )
    assert {r.variant for r in profile.rows} == {"gqa_8", "gqa_2", "mlp_8192", "mlp_4096", "step"}
    assert profile.sidecar["engine"].startswith("vllm ")
    wide, narrow = (
        next(r for r in profile.rows if (r.variant, r.phase, r.batch) == (ffn, "decode", 1))
        for ffn in ("mlp_8192", "mlp_4096")
    )
    assert wide.latency_us > 1.3 * narrow.latency_us
