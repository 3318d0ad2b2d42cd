"""Profiles through llama.cpp: the closed form of a stand-in, and the engine itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from puzzle_search.arch import ParentConfig, SearchSpace
from puzzle_search.cost import LatencyRow, Profile, parse_dtype
from puzzle_search.engines.process import Request, Worker, worker_command
from puzzle_search.errors import InputError
from puzzle_search.files import Journal
from puzzle_search.profile.engines import EngineGrid, measure_engine_profile
from puzzle_search.profile.engines.llama_cpp import LlamaCpp
from puzzle_search.profile.engines.slopes import Latency
from tests.profile.engine_stub import ENGINE_US, attention_us, ffn_us
from tests.profile.test_vllm_worker import parent

pytest.importorskip("gguf", reason="pip install gguf")
STUB = Path(__file__).with_name("engine_stub.py")
GRID = EngineGrid(
    batches=(1, 4),
    prefill_tokens=(64, 1024),
    decode_contexts=(128, 300),
    blocks=2,
    chunk_tokens=512,
    max_seconds=1,
)
Measure = Callable[..., Profile]


@pytest.fixture
def measure(tmp_path: Path) -> Measure:
    def run(grid: EngineGrid = GRID, config: ParentConfig | None = None, **mode: Any) -> Profile:
        config = config or parent()
        attention = ["gqa_2", "gqa_1", "no_op"]
        ffn = ["mlp_512", "mlp_256", "mlp_256@q4_0"]
        space = SearchSpace.uniform(config, attention=attention, ffn=ffn)
        return measure_engine_profile(
            LlamaCpp(),
            config,
            space,
            parse_dtype("q8_0"),
            grid,
            journal=Journal(tmp_path / "journal.jsonl"),
            command=[sys.executable, str(STUB), json.dumps(mode)],
            answer_seconds=20,
        )

    return run


def true_us(row: LatencyRow) -> float:
    if row.subblock == "outside":
        return ENGINE_US
    size = int(row.variant.partition("@")[0].partition("_")[2])
    if row.subblock == "ffn":
        return ffn_us(size, row.batch * row.tokens)
    return attention_us(size, [(row.tokens, row.context)] * row.batch)


def test_the_ffn_beside_an_attention_is_taken_off(measure: Measure) -> None:
    profile = measure()
    ffns = {"mlp_512", "mlp_256", "mlp_256@q4_0"}
    assert {row.variant for row in profile.rows} == {"gqa_2", "gqa_1", "step"} | ffns
    for row in profile.rows:
        # The context of a decode step is met within a few tokens.
        assert row.latency_us == pytest.approx(true_us(row), rel=0.02, abs=1e-3), row
    chunks = {(r.tokens, r.context) for r in profile.rows if r.context > r.tokens > 1}
    assert chunks == {(512, 1024)}
    assert profile.sidecar["skipped"] == []


def test_an_attention_whose_ffn_was_not_measured_is_told(measure: Measure) -> None:
    profile = measure(replace(GRID, prefill_tokens=(64,)), tokens_that_fit=600)
    why = {skipped["point"]: skipped["why"] for skipped in profile.sidecar["skipped"]}
    lost = why["attention gqa_2, tp 1: decode, batch 4, 1 tokens, context 300"]
    assert "out of memory" in lost


def test_what_llama_cpp_cannot_serve_is_refused(measure: Measure) -> None:
    with pytest.raises(InputError, match="on one processor"):
        measure(replace(GRID, tp_degrees=(2,)))
    config = parent()
    space = SearchSpace.uniform(config, attention=[], ffn=[])
    with pytest.raises(InputError, match="not profiled in bf16"):
        measure_engine_profile(
            LlamaCpp(), config, space, parse_dtype("bf16"), GRID, journal=Journal("unused.jsonl")
        )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Children of every kind of stack, four repeats each."""
    folder = tmp_path_factory.mktemp("children")
    config = parent()
    space = SearchSpace.uniform(
        config,
        attention=["gqa_1", "linear", "gqa_2@q4_0", "linear@q4_0"],
        ffn=["mlp_256", "linear", "no_op", "mlp_512@q4_0"],
    )
    stacks, skipped = LlamaCpp().stacks(config, space, (1,))
    assert not skipped
    for stack in stacks:
        for dtype in LlamaCpp.dtypes:
            number = parse_dtype(dtype)
            LlamaCpp().write(stack, 4, number, folder / f"{stack.subblock}-{stack.name}-{dtype}")
    return folder


def test_the_variant_alone_is_written_in_its_type(files: Path) -> None:
    from gguf import GGUFReader

    tensors = GGUFReader(files / "attention-gqa_2@q4_0-q8_0" / "model.gguf").tensors
    types = {t.tensor_type.name for t in tensors if "attn_" in t.name and "norm" not in t.name}
    beside = {t.tensor_type.name for t in tensors if "ffn_" in t.name and "norm" not in t.name}
    assert (types, beside) == ({"Q4_0"}, {"Q8_0"})


@pytest.mark.engines
@pytest.mark.parametrize("dtype", LlamaCpp.dtypes)
@pytest.mark.parametrize(
    "name",
    [
        "attention-gqa_2",
        "attention-linear",
        "ffn-mlp_512",
        "ffn-linear",
        "attention-gqa_2@q4_0",
        "attention-linear@q4_0",
        "ffn-mlp_512@q4_0",
    ],
)
def test_llama_cpp_serves_every_stack(name: str, dtype: str, files: Path) -> None:
    pytest.importorskip("xllamacpp", reason="pip install xllamacpp")
    engine, grid = LlamaCpp(), replace(GRID, chunk_tokens=64)
    settings = engine.settings(parse_dtype(dtype), grid) | {"vocab_size": 300}
    with Worker(
        engine.installed,
        worker_command(engine.installed),
        files / f"{name}-{dtype}",
        settings,
        log=files / "worker.log",
        start_seconds=60,
        answer_seconds=60,
    ) as worker:
        assert worker.identity["engine"].startswith("llama.cpp (xllamacpp ")
        assert worker.identity["device"]["kind"] == "cpu"
        for request in (
            Request(batch=4, input_len=9, output_len=5),
            Request(batch=1, input_len=100, output_len=3),
            Request(batch=3, input_len=20, output_len=1),
        ):
            for _ in range(2):
                steps = worker.run(request)
                assert [sequences for _, sequences in steps] == [request.batch] * request.output_len
                seconds = [second for second, _ in steps]
                assert seconds == sorted(seconds)
                assert seconds[0] > 0


def test_a_time_in_the_noise_is_told_by_its_samples() -> None:
    # A median is known to 1.25 standard deviations by the root of the samples; of a normal
    # distribution the middle 80% are 2.56 of them: 10 +- 12.2 here, so 10 +- 1.2 of 100 samples.
    noisy = Latency(median_us=10, p10_us=-2, p90_us=22, samples=100)
    assert noisy.is_above_zero
    assert not replace(noisy, samples=4).is_above_zero
    assert not replace(noisy, median_us=2).is_above_zero
    assert not noisy.less(8).is_above_zero
