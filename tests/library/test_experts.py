"""Fewer and narrower experts against their definitions, token by token in numpy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from puzzle_search.arch import Linear, Moe, Variant
from puzzle_search.library.initialise import Calibration, initial_candidates
from puzzle_search.model.subblocks.moe import MoeMlp
from tests.pico import Pico

TOKENS, TOP_K, EXPERTS = 96, 2, 8


@dataclass(frozen=True, kw_only=True)
class Passed:
    """What every token does in every expert that it passes."""

    calibration: Calibration
    own: dict[str, np.ndarray]
    tokens_X: np.ndarray
    outputs_X: np.ndarray
    channels_XI: np.ndarray
    gates_X: np.ndarray

    def candidate(self, variant: Variant, method: str) -> dict[str, np.ndarray]:
        with torch.no_grad():
            tensors = initial_candidates(variant, self.calibration, [method])[method]
        return {name: tensor.numpy() for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def passed(pico_experts: Pico) -> Passed:
    decoder = pico_experts.decoder()
    module = decoder.blocks[1].ffn
    assert isinstance(module, MoeMlp)
    generator = torch.Generator().manual_seed(1)
    x_BLD = torch.randn(3, TOKENS // 3, decoder.config.hidden_size, generator=generator)
    rotary = decoder.rotary.slice(0, TOKENS // 3, x_BLD)
    with torch.no_grad():
        normed, after = module.norm(x_BLD).flatten(0, 1).numpy(), module(x_BLD, rotary, None)
    own = {name: value.numpy() for name, value in module.state_dict().items()}
    width = own["experts.down_proj"].shape[2]
    tokens, outputs = np.zeros(EXPERTS), np.zeros(EXPERTS)
    gates, channels = np.zeros(EXPERTS), np.zeros((EXPERTS, width))
    for x in normed.astype(np.float64):
        odds = np.exp(own["gate.weight"] @ x)
        picked = np.argsort(-odds)[:TOP_K]
        for expert in picked:
            gate = odds[expert] / odds[picked].sum()
            both = own["experts.gate_up_proj"][expert] @ x
            inner = both[:width] / (1 + np.exp(-both[:width])) * both[width:]
            tokens[expert] += 1
            gates[expert] += gate
            outputs[expert] += gate * np.linalg.norm(own["experts.down_proj"][expert] @ inner)
            channels[expert] += gate * np.abs(inner)
    return Passed(
        calibration=Calibration(
            decoder.config,
            "ffn",
            module,
            lambda: zip(x_BLD.split(1), after.split(1), strict=True),
            rotary,
        ),
        own=own,
        tokens_X=tokens,
        outputs_X=outputs,
        channels_XI=channels,
        gates_X=gates,
    )


@pytest.mark.parametrize("method", ["router_frequency", "gated_output"])
@pytest.mark.parametrize("kept", [4, 2])
def test_experts_of_greatest_score_are_kept_in_order_with_their_rows_of_the_router(
    passed: Passed, method: str, kept: int
) -> None:
    scores = passed.tokens_X if method == "router_frequency" else passed.outputs_X
    assert len(set(scores)) == EXPERTS  # no ties, whose order would be chance
    expected = np.sort(np.argsort(-scores)[:kept])
    made = passed.candidate(Moe(kept), method)
    assert made.keys() == passed.own.keys()
    for name in ("gate.weight", "experts.gate_up_proj", "experts.down_proj"):
        np.testing.assert_array_equal(made[name], passed.own[name][expected])
    np.testing.assert_array_equal(made["norm.weight"], passed.own["norm.weight"])


def test_the_criteria_differ(passed: Passed) -> None:
    orders = [tuple(np.argsort(-scores)) for scores in (passed.tokens_X, passed.outputs_X)]
    assert orders[0] != orders[1]


def test_narrower_experts_keep_their_own_channels_of_greatest_contribution(passed: Passed) -> None:
    made = passed.candidate(Moe(3, width=16), "gated_output")
    experts = np.sort(np.argsort(-passed.outputs_X)[:3])
    norms = np.linalg.norm(passed.own["experts.down_proj"].astype(np.float64), axis=1)
    for number, expert in enumerate(experts):
        kept = np.sort(np.argsort(-passed.channels_XI[expert] * norms[expert])[:16])
        rows = np.concatenate([kept, kept + norms.shape[1]])
        np.testing.assert_array_equal(
            made["experts.gate_up_proj"][number], passed.own["experts.gate_up_proj"][expert][rows]
        )
        np.testing.assert_array_equal(
            made["experts.down_proj"][number], passed.own["experts.down_proj"][expert][:, kept]
        )


def test_fewer_experts_for_a_token_keep_all_weights(passed: Passed) -> None:
    made = passed.candidate(Moe(EXPERTS, top_k=1), "router_frequency")
    for name, tensor in passed.own.items():
        np.testing.assert_array_equal(made[name], tensor)


def test_the_product_is_that_of_every_expert_by_its_mean_gate(passed: Passed) -> None:
    width = passed.own["experts.down_proj"].shape[2]
    expected = sum(
        passed.gates_X[n] / TOKENS * (down.astype(np.float64) @ both[width:])
        for n, (down, both) in enumerate(
            zip(passed.own["experts.down_proj"], passed.own["experts.gate_up_proj"], strict=True)
        )
    )
    made = passed.candidate(Linear(), "product")["linear.weight"]
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_training_brings_fewer_experts_and_their_router_nearer_to_the_parent(
    pico_experts: Pico, pico_experts_library: Path, tmp_path: Path
) -> None:
    begun = pico_experts.open_library(pico_experts_library)
    trained = pico_experts.library(tmp_path / "trained", tokens=8192)
    for layer in range(3):
        key = (layer, layer, "", "moe_4")
        entry = trained.entries[key]
        assert set(entry.initial_errors) == {"router_frequency", "gated_output"}
        assert entry.loss_trained < 0.9 * entry.loss_initial
        before, after = (library.block(*key)["ffn"] for library in (begun, trained))
        for name, tensor in before.items():
            assert not torch.equal(after[name], tensor), name
