"""Questions about a parent with experts, from its config alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from puzzle_search.arch import ArchitectureSpec, ParentConfig
from puzzle_search.cost import OperatingPoint, Scenario
from puzzle_search.cost.pricing import build_cost_table
from puzzle_search.errors import InputError
from puzzle_search.solve.question.device import find_target
from tests.arch.configs import CONFIGS
from tests.pico import run_here

LAYERS, HIDDEN, WIDTH, VOCABULARY, HEAD_DIM = 32, 4096, 14336, 32000, 128
SPACE = """\
format: puzzle-search.search-space/1
attention: [gqa_8, gqa_4]
ffn: [moe_8, moe_6, moe_4, moe_4_top_1, no_op]
"""
DAMAGE = {"moe_6": 0.002, "moe_4": 0.006, "moe_4_top_1": 0.02, "no_op": 0.1}


@dataclass(frozen=True)
class Asked:
    folder: Path

    @property
    def arguments(self) -> list[object]:
        return [
            "--model", self.folder, "--gpu", "h100", "--engine", "vllm",
            "--dtype", "bf16", "--tp", "2", "--scenario", "1024/512",
        ]  # fmt: skip


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    tmp_path = tmp_path / "mixtral"
    tmp_path.mkdir()
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["Mixtral-8x7B-v0.1"]))
    (tmp_path / "space.yaml").write_text(SPACE)
    rows = ["first_layer,last_layer,attention,ffn,metric,value,stderr,tokens"]
    for layer in range(LAYERS):
        depth = 1 + layer / LAYERS
        rows.append(f"{layer},{layer},gqa_4,,kl,{0.01 * depth},0.0001,4096")
        rows += [
            f"{layer},{layer},,{ffn},kl,{value * depth},0.0001,4096"
            for ffn, value in DAMAGE.items()
        ]
    (tmp_path / "scores.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "scores.yaml").write_text(
        "format: puzzle-search.scores/1\npackage_version: 0.1.0\nparent: mixtral\n"
        "evidence: reconstructed\ndata: none, written by hand\n"
    )
    return Asked(tmp_path)


def weights(attention: str, ffn: str, tp: int) -> int:
    """Bytes of a block in bf16 on one of the devices, written out."""
    kv_heads = int(attention.removeprefix("gqa_"))
    values = 2 * HIDDEN * HIDDEN + 2 * kv_heads * HEAD_DIM * HIDDEN
    if ffn == "no_op":
        return 2 * (values // tp + HIDDEN)
    experts = int(ffn.split("_")[1])
    values += experts * 3 * HIDDEN * WIDTH
    return 2 * (values // tp + experts * HIDDEN + 2 * HIDDEN)


def test_solve_finds_a_child_with_fewer_experts_and_exact_memory(
    asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    out = asked.folder / "child.yaml"
    run_here("solve", *asked.arguments, "--target-speedup", "1.2", "--out", out, "--json")
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert answer["evidence"] == {"scores": "reconstructed", "cost": "reconstructed"}
    spec = ArchitectureSpec.from_file(out)
    assert {block.ffn for block in spec.blocks} - {"moe_8"}
    [cost] = answer["scenarios"]
    blocks = sum(weights(block.attention, block.ffn, 2) for block in spec.blocks)
    outside = 2 * (2 * VOCABULARY * HIDDEN // 2 + HIDDEN)
    heads = sum(int(block.attention.removeprefix("gqa_")) // 2 for block in spec.blocks)
    kv = cost["batch"] * (1024 + 512) * 2 * heads * HEAD_DIM * 2
    tokens = max(cost["batch"], min(cost["batch"] * 1024, 8192))
    activations = 2 * tokens * (6 * HIDDEN + 2 * WIDTH) + cost["batch"] * VOCABULARY * 4 // 2
    assert cost["memory_bytes"] == blocks + outside + kv + activations


def test_explain_tells_what_became_of_the_experts(
    asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = asked.folder / "spec.yaml"
    pairs = [("gqa_8", "moe_8"), ("gqa_8", "moe_4"), ("gqa_4", "moe_4_top_1")]
    ArchitectureSpec.of("mixtral", pairs + [("gqa_8", "moe_8")] * (LAYERS - 3)).write(spec)
    run_here("explain", spec, *asked.arguments, "--json")
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told["parameters"]["parent"] == 46_702_792_704
    cut = 4 * (3 * HIDDEN * WIDTH + HIDDEN)
    kept, fewer, one = told["blocks"][:3]
    assert (kept["ffn"]["change"], kept["saved_parameters"]) == ("kept", 0)
    assert (fewer["ffn"]["change"], fewer["ffn"]["fraction"]) == ("reduced", 0.5)
    assert fewer["saved_parameters"] == cut
    assert one["saved_parameters"] == cut + 2 * 4 * HEAD_DIM * HIDDEN
    assert one["saved_us"] > fewer["saved_us"] > 0
    assert fewer["damage"] == pytest.approx(0.006 * (1 + 1 / 32))
    run_here("explain", spec, *asked.arguments)
    shown = capsys.readouterr().out
    assert "moe_4_top_1" in shown


def test_a_space_that_does_not_fit_is_refused(asked: Asked) -> None:
    for wrong, remedy in (("moe_16", "up to"), ("mlp_7168", "moe_<experts>"), ("moe_8_top_2", "")):
        (asked.folder / "space.yaml").write_text(SPACE.replace("moe_6", wrong))
        with pytest.raises(InputError, match=wrong) as caught:
            run_here("solve", *asked.arguments, "--target-speedup", "1.2")
        assert remedy in caught.value.remedy


def test_limits_may_speak_of_experts(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    run_here(
        "solve", *asked.arguments, "--target-speedup", "1.2", "--limit", "sum(experts) == 160",
        "--out", asked.folder / "child.yaml", "--json",
    )  # fmt: skip
    capsys.readouterr()
    spec = ArchitectureSpec.from_file(asked.folder / "child.yaml")
    kept = [0 if block.ffn == "no_op" else int(block.ffn.split("_")[1]) for block in spec.blocks]
    assert sum(kept) == 160


def test_gpt_oss_is_asked_out_of_the_box(capsys: pytest.CaptureFixture[str]) -> None:
    run_here(
        "solve", "--model", "gpt-oss-120b", "--gpu", "h100", "--tp", "8",
        "--scenario", "64k/64k", "--target-speedup", "1.63", "--json",
    )  # fmt: skip
    answer = json.loads(capsys.readouterr().out)
    assert answer["status"] == "optimal"
    assert answer["evidence"]["scores"] == "reconstructed"
    attention = [block["attention"] for block in answer["architecture"]["blocks"]]
    assert attention[::2] == ["gqa_8_window_128"] * 18
    (found,) = answer["scenarios"]
    assert (found["input_len"], found["output_len"], found["tp"]) == (65536, 65536, 8)
    # Weights of 17 bits for 32 and a KV cache in bf16: by hand, on one of eight devices.
    full, long = attention.count("gqa_8"), attention.count("gqa_8_window_8192")
    kept = 131072 * full + 8192 * long + 128 * 18
    assert 18 - full == long
    weights = 60.77 * 2**30 / 8
    assert found["memory_bytes"] > weights + found["batch"] * kept * 2 * 64 * 2
    spec = ArchitectureSpec.identity(ParentConfig.find("gpt-oss-120b"))
    parent = cost_of(spec, batch=120)
    assert found["tokens_per_second_per_gpu"] >= 1.63 * parent


def cost_of(spec: ArchitectureSpec, *, batch: int) -> float:
    config = ParentConfig.find("gpt-oss-120b")
    target = find_target("h100", config, engine="vllm", dtype="mxfp4", tp=(8,))
    table = build_cost_table(
        config, target, Scenario.parse("65536/65536"), [OperatingPoint(batch=batch, tp=8)],
        attention=config.attentions, ffn=[config.ffn],
    )  # fmt: skip
    found = table.best_cost(spec)
    assert found is not None
    return found.tokens_per_second_per_gpu
