"""gpt-oss: bytes of MXFP4 weights, windows layer by layer, timed experts, the paper's ratios."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzle_search.arch import ArchitectureSpec, Moe, ParentConfig
from puzzle_search.cost import Scenario, parse_dtype
from puzzle_search.cost.experts import distinct_experts
from puzzle_search.cost.fitting.experts import expert_rows, fit_experts, predict_experts
from puzzle_search.cost.fitting.silicon import Silicon
from puzzle_search.cost.memory import kv_bytes, outside_bytes, weight_bytes
from puzzle_search.cost.modelled.analytic import AnalyticLatency
from puzzle_search.cost.modelled.hardware import CostModel, load_cost_model
from puzzle_search.cost.modelled.operators import experts_us
from puzzle_search.cost.modelled.transfer import transfer
from puzzle_search.errors import InputError
from tests.cost.steps import step

REPOSITORY = Path(__file__).resolve().parents[2]
PARENT = ParentConfig.find("gpt-oss-120b")
CHILD = ArchitectureSpec.from_file(
    REPOSITORY / "examples/gpt-oss-120b/children/gpt-oss-puzzle-88b.yaml"
)
IDENTITY = ArchitectureSpec.identity(PARENT)
H100 = load_cost_model("h100")
HIDDEN = WIDTH = 2880


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    file = REPOSITORY / "bench" / "gpt_oss_puzzle.py"
    spec = importlib.util.spec_from_file_location("gpt_oss_puzzle", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpt_oss_puzzle"] = module
    spec.loader.exec_module(module)
    return module


# 60.77 GiB is what vLLM tells of the loaded parent, 46.56 GiB the child's published checkpoint.
@pytest.mark.parametrize(("spec", "gib"), [(IDENTITY, 60.77), (CHILD, 46.56)])
def test_weights_are_those_of_the_published_checkpoints(spec: ArchitectureSpec, gib: float) -> None:
    dtype = parse_dtype("mxfp4")
    total = outside_bytes(PARENT, dtype, 1) + sum(
        weight_bytes(variant, PARENT, dtype, 1)
        for block in spec.blocks
        for variant in (block.attention_variant, block.ffn_variant)
    )
    assert total / 2**30 == pytest.approx(gib, abs=0.005)


def test_weights_of_one_of_eight_devices_by_hand() -> None:
    packed = 64 * 3 * HIDDEN * WIDTH // 8 * 17 // 32
    router, norm = 64 * HIDDEN + 64, HIDDEN
    biases = 64 * (2 * WIDTH // 8 + HIDDEN)  # those of down are added to the sum over devices
    found = weight_bytes(Moe(64), PARENT, parse_dtype("mxfp4"), 8)
    assert found == packed + 2 * (router + norm + biases)


@pytest.mark.parametrize(("dtype", "value"), [("mxfp4", 2), ("mxfp4_kv_fp8", 1)])
def test_every_other_layer_keeps_its_window_alone(dtype: str, value: int) -> None:
    tokens = 131072
    for spec, kept in (
        (IDENTITY, 18 * tokens + 18 * 128),
        (CHILD, 10 * tokens + 8 * 8192 + 18 * 128),
    ):
        found = sum(
            kv_bytes(block.attention_variant, PARENT, parse_dtype(dtype), 1, tokens)
            for block in spec.blocks
        )
        assert found == kept * 2 * 8 * 64 * value


def test_attention_of_a_layer_is_priced_in_its_window() -> None:
    latency = AnalyticLatency(PARENT, H100, "vllm", "mxfp4")

    def us(layer: int, context: int) -> float:
        name = PARENT.own("attention", layer)
        at = step("decode", batch=64, context=context, tp=1)
        return float(latency.subblock_us("attention", name, at))

    assert us(0, 131072) == us(0, 128) < us(1, 4096) < us(1, 131072)
    assert us(1, 128) == us(0, 128)


@given(
    st.integers(1, 2**17), st.sampled_from([1, 4, 32, 64, 128, 256]), st.integers(8, 2880),
    st.sampled_from(["h100", "h200"]), st.sampled_from(["vllm", "sglang"]),
)  # fmt: skip
def test_law_experts_are_no_faster_than_the_hardware(
    tokens: int, experts: int, width: int, gpu: str, engine: str
) -> None:
    model, top_k = load_cost_model(gpu), min(4, experts)
    found = experts_us(
        tokens, experts=experts, top_k=top_k, hidden=HIDDEN, width=width, dtype="mxfp4",
        sheet=model.sheet, constants=model.engine(engine).experts["mxfp4"],
    )  # fmt: skip
    weights = float(distinct_experts(experts, top_k, tokens)) * 3 * width * HIDDEN * 17 / 32
    flops = 6 * tokens * top_k * width * HIDDEN / model.sheet.flops_per_second["bf16"]
    assert found >= 1e6 * max(weights / model.sheet.hbm_bytes_per_second, flops) * (1 - 1e-9)


def test_a_fit_finds_what_made_the_timings_and_tells_its_error() -> None:
    own = replace(
        H100.engine("vllm").experts["mxfp4"], launch_us=25.0, memory_fraction=0.6,
        compute_fraction=0.5, corner=2.0, ratios=None,
    )  # fmt: skip
    rows = pd.DataFrame(
        [
            {
                "moe_dtype": "w4a16_mxfp4", "distribution": "power_law_1.01", "num_tokens": tokens,
                "num_experts": experts, "topk": 4, "hidden_size": HIDDEN, "inter_size": WIDTH,
                "moe_tp_size": tp, "moe_ep_size": 1,
            }
            for tokens in (1, 3, 8, 20, 64, 200, 512, 2048, 8192)
            for experts in (32, 128)
            for tp in (1, 2, 4, 8)
        ]
    )  # fmt: skip
    us = experts_us(
        rows["num_tokens"], experts=rows["num_experts"], top_k=4, hidden=HIDDEN,
        width=WIDTH // rows["moe_tp_size"], dtype="mxfp4", sheet=H100.sheet, constants=own,
    )  # fmt: skip
    found = fit_experts(rows.assign(us=us), sheet=H100.sheet, source="made up")["mxfp4"]
    assert found.provenance.error_median is not None
    assert found.provenance.error_median < 0.01
    assert found.launch_us == pytest.approx(25.0, rel=0.05)
    assert found.memory_fraction == pytest.approx(0.6, rel=0.05)
    one_width = rows[rows["moe_tp_size"] == 1].assign(us=1.0)
    assert fit_experts(one_width, sheet=H100.sheet, source="made up") == {}
    assert fit_experts(None, sheet=H100.sheet, source="made up") == {}


@pytest.mark.parametrize("gpu", ["h100", "h200"])
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_shipped_constants_against_the_published_timings(gpu: str, engine: str) -> None:
    pytest.importorskip("aiconfigurator_core")
    model, table = load_cost_model(gpu), Silicon.installed(gpu).tables(engine).experts
    assert table is not None
    constants = model.engine(engine).experts["mxfp4"]
    found = predict_experts(expert_rows(table, "mxfp4"), "mxfp4", model.sheet, constants)
    assert len(found.relative) == 2 * 6 * 27
    assert np.median(np.abs(found.relative)) < 0.035
    assert found.median_p90()[0] == pytest.approx(constants.provenance.error_median, rel=0.05)


def test_a_model_file_keeps_experts(tmp_path: Path) -> None:
    file = tmp_path / "h100.yaml"
    file.write_text(H100.to_yaml())
    read = CostModel.from_file(file)
    assert read.to_yaml() == H100.to_yaml()
    assert "mxfp4" in read.engine("vllm").dtypes
    file.write_text(H100.to_yaml().replace("mxfp4:", "int4:"))
    with pytest.raises(InputError, match="int4"):
        CostModel.from_file(file)


def test_where_no_experts_were_timed_they_cannot_be_asked() -> None:
    assert "mxfp4" not in H100.engine("trtllm").dtypes
    moved = transfer(H100.engine("vllm"), name="h100", base=H100.sheet, sheet=H100.sheet)
    assert "mxfp4" not in moved.dtypes
    with pytest.raises(InputError, match="no mxfp4 constants for trtllm"):
        AnalyticLatency(PARENT, H100, "trtllm", "mxfp4")


def test_the_papers_ratios(bench: ModuleType) -> None:
    """Within 15%, on eight with the same KV cache, on one where the child's alone is fp8."""
    eight = {row["kv"]: row["error"] for row in bench.compare("64k/64k", 8, 1.63)}
    assert abs(eight["bf16"]) < 0.15
    assert abs(eight["fp8"]) < 0.15
    one = {row["kv"]: row["error"] for row in bench.compare("64k/64k", 1, 2.82)}
    assert abs(one["bf16, child fp8"]) < 0.15


@pytest.mark.parametrize(
    ("text", "lengths"),
    [("64k/64k", (65536, 65536)), ("4k/100", (4096, 100)), ("7/1k", (7, 1024))],
)
def test_lengths_in_k(text: str, lengths: tuple[int, int]) -> None:
    assert Scenario.parse(text) == Scenario(input_len=lengths[0], output_len=lengths[1])
