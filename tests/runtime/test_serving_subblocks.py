"""Every serving subblock against its reference, its shares against the whole, its bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from puzzle_search.arch import Gqa, Mlp, Moe, ParentConfig, Subblock, Variant, parse_variant
from puzzle_search.cost.memory import kv_bytes, kv_bytes_per_token, parse_dtype, weight_bytes
from puzzle_search.errors import InputError
from puzzle_search.model import KvCache, Rotary, make_subblock
from puzzle_search.model.rope import RotarySlice
from puzzle_search.runtime import make_serving_subblock, precision_on
from puzzle_search.runtime.attention import make_decode_attention
from puzzle_search.runtime.cache import LayerSlots, ring_of
from puzzle_search.runtime.step import DecodeStep, PrefillStep, Ring, Step
from puzzle_search.runtime.subblocks import _BUILDERS, local_heads
from tests.model.pico import LLAMA

CPU = torch.device("cpu")
ATTENTION = ("gqa_4", "gqa_2", "gqa_1", "gqa_2_window_3", "linear")
MLPS = ("mlp_512", "mlp_256", "linear")
EXPERTS = ("moe_6", "moe_3", "moe_6_top_1", "moe_4_width_32")
PARENTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-biases": {"attention_bias": True, "mlp_bias": True, "head_dim": 24},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "attention_bias": True},
    "mistral-window": {"model_type": "mistral", "sliding_window": 5},
    "granite": {"model_type": "granite", "attention_multiplier": 0.1, "residual_multiplier": 0.4},
    "olmo2": {"model_type": "olmo2"},
    "mixtral": {
        "model_type": "mixtral", "intermediate_size": 64, "num_local_experts": 6,
        "num_experts_per_tok": 2,
    },
}  # fmt: skip
CASES: list[tuple[str, Subblock, str]] = [
    *((kind, "attention", name) for kind in PARENTS for name in ATTENTION),
    *((kind, "ffn", name) for kind in PARENTS if kind != "mixtral" for name in MLPS),
    *(("mixtral", "ffn", name) for name in EXPERTS),
]
BATCH, LENGTH, MORE = 3, 11, 4


def parent(kind: str) -> ParentConfig:
    return ParentConfig.from_dict(LLAMA | PARENTS[kind], name=kind)


def random_reference(variant: Variant, config: ParentConfig) -> nn.Module:
    torch.manual_seed(0)
    module = make_subblock(variant, config).eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3)
    return module


def slots_of(variant: Variant, config: ParentConfig, tp: int = 1) -> LayerSlots | None:
    if not isinstance(variant, Gqa):
        return None
    _, kv_heads = local_heads(variant, config, tp)
    return LayerSlots(
        kv_heads,
        config.head_dim,
        slots=BATCH,
        max_length=LENGTH + MORE,
        window=variant.window(config),
        dtype=torch.float32,
        device=CPU,
    )


def rotary_at(config: ParentConfig, positions_N: torch.Tensor) -> RotarySlice:
    cos_SE, sin_SE = Rotary(config).slice(0, LENGTH + MORE, torch.empty(0))
    return RotarySlice(cos_SE[positions_N, None], sin_SE[positions_N, None])


def prefill_step(config: ParentConfig) -> PrefillStep:
    positions = torch.arange(LENGTH).repeat(BATCH)
    return PrefillStep(
        slots_N=torch.arange(BATCH).repeat_interleave(LENGTH),
        positions_N=positions,
        rotary=rotary_at(config, positions),
        slots_B=torch.arange(BATCH),
        start=0,
    )


def decode_step(config: ParentConfig, variant: Variant, position: int, tp: int) -> Step:
    positions = torch.full((BATCH,), position)
    attention, rings = {}, {}
    if isinstance(variant, Gqa):
        heads, kv_heads = local_heads(variant, config, tp)
        window = ring_of(variant.window(config), LENGTH + MORE)
        back_end = make_decode_attention(
            None,
            CPU,
            slots=BATCH,
            max_length=window or LENGTH + MORE,
            num_heads=heads,
            kv_heads=kv_heads,
            head_dim=config.head_dim,
            dtype=torch.float32,
            kv_dtype=torch.float32,
        )
        back_end.prepare([min(position + 1, window or position + 1)] * BATCH)
        attention[kv_heads, window] = back_end
        if window is not None:
            rings[window] = Ring.of(positions, window)
    return DecodeStep(
        slots_N=torch.arange(BATCH),
        positions_N=positions,
        rotary=rotary_at(config, positions),
        lengths_B=(positions + 1).int(),
        attention=attention,
        rings=rings,
    )


def test_every_kind_has_an_entry() -> None:
    tried = {parse_variant(subblock, name).kind for _, subblock, name in CASES}
    assert tried == {kind for kind, builder in _BUILDERS.items() if builder is not None}
    assert _BUILDERS["no_op"] is None


@pytest.mark.parametrize(("kind", "subblock", "name"), CASES)
def test_prefill_and_decode_are_those_of_the_reference(
    kind: str, subblock: Subblock, name: str
) -> None:
    config, variant = parent(kind), parse_variant(subblock, name)
    reference = random_reference(variant, config)
    served = make_serving_subblock(variant, config, precision_on("fp32", CPU))
    assert served is not None
    served.load(reference.state_dict())
    x_BLD = torch.randn(BATCH, LENGTH + MORE, config.hidden_size)
    rotary = Rotary(config)
    cache = KvCache(
        [variant], config, batch=BATCH, max_length=LENGTH + MORE, dtype=torch.float32, device=CPU
    ).layers[0]
    slots = slots_of(variant, config)
    with torch.inference_mode():
        new = x_BLD[:, :LENGTH]
        expected = reference(new, rotary.slice(0, LENGTH, new), cache)
        residual, delta = served(new.flatten(0, 1), None, prefill_step(config), slots)
        factor = config.scales.residual  # the next subblock's, when it adds
        torch.testing.assert_close((residual + factor * delta).view_as(expected), expected)
        for position in range(LENGTH, LENGTH + MORE):
            new = x_BLD[:, position : position + 1]
            expected = reference(new, rotary.slice(position, 1, new), cache)
            step = decode_step(config, variant, position, tp=1)
            # What the last subblock gave is still to be added.
            rest = new[:, 0] * 0.75 / factor
            residual, delta = served(new[:, 0] * 0.25, rest, step, slots)
            torch.testing.assert_close((residual + factor * delta)[:, None], expected)


def shares(variant: Variant, tensors: dict[str, torch.Tensor], tp: int, rank: int) -> Any:
    """One device's part of a subblock's weights, cut as Megatron cuts them."""

    def rows(name: str) -> torch.Tensor:
        return tensors[name].chunk(tp, dim=0)[rank]

    def columns(name: str) -> torch.Tensor:
        return tensors[name].chunk(tp, dim=1)[rank]

    norm = {"norm.weight": tensors["norm.weight"]}
    if isinstance(variant, Moe):
        gate, up = tensors["experts.gate_up_proj"].chunk(2, dim=1)
        cut = [part.chunk(tp, dim=1)[rank] for part in (gate, up)]
        return norm | {
            "gate.weight": tensors["gate.weight"],
            "experts.gate_up_proj": torch.cat(cut, dim=1),
            "experts.down_proj": tensors["experts.down_proj"].chunk(tp, dim=2)[rank],
        }
    if isinstance(variant, Mlp):
        return norm | {
            "gate_proj.weight": rows("gate_proj.weight"),
            "up_proj.weight": rows("up_proj.weight"),
            "down_proj.weight": columns("down_proj.weight"),
        }
    assert isinstance(variant, Gqa)
    kv = {}
    for name in ("k_proj.weight", "v_proj.weight"):
        copies = max(1, tp // variant.kv_heads)  # KV heads fewer than devices are replicated
        kv[name] = tensors[name].chunk(tp // copies, dim=0)[rank // copies]
    return (
        norm
        | kv
        | {"q_proj.weight": rows("q_proj.weight"), "o_proj.weight": columns("o_proj.weight")}
    )


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize(
    ("kind", "subblock", "name"),
    [case for case in CASES if case[0] in ("llama", "mixtral") and case[2] != "linear"],
)
def test_shares_add_up_to_the_whole(kind: str, subblock: Subblock, name: str, tp: int) -> None:
    config, variant = parent(kind), parse_variant(subblock, name)
    reference = random_reference(variant, config)
    x_BLD = torch.randn(BATCH, LENGTH, config.hidden_size)
    expected = reference(x_BLD, Rotary(config).slice(0, LENGTH, x_BLD), None)
    total = x_BLD.flatten(0, 1)
    for rank in range(tp):
        served = make_serving_subblock(variant, config, precision_on("fp32", CPU), tp=tp)
        assert served is not None
        served.load(shares(variant, reference.state_dict(), tp, rank))
        step, slots = prefill_step(config), slots_of(variant, config, tp)
        total = total + served(x_BLD.flatten(0, 1), None, step, slots)[1]
    torch.testing.assert_close(total.view_as(expected), expected)


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp8"])
@pytest.mark.parametrize(("kind", "subblock", "name"), CASES)
def test_weights_take_the_bytes_of_the_formula(
    subblock: Subblock, name: str, dtype: str, tp: int, kind: str
) -> None:
    config, variant = parent(kind), parse_variant(subblock, name)
    if dtype == "fp8" and config.head_dim == 24 and tp > 1:
        pytest.skip("24 is no multiple of 16")
    if dtype == "fp8" and name in EXPERTS:
        pytest.skip("experts are not served in fp8")
    with torch.device("meta"):
        served = make_serving_subblock(variant, config, precision_on(dtype, CPU), tp=tp)
    assert served is not None
    held = sum(parameter.nbytes for parameter in served.parameters())
    assert held == weight_bytes(variant, config, parse_dtype(dtype), tp)


def test_the_cache_takes_the_bytes_of_the_formula() -> None:
    config, variant = parent("llama"), parse_variant("attention", "gqa_2")
    for tp in (1, 2, 4):
        slots = slots_of(variant, config, tp)
        assert slots is not None
        tokens = BATCH * (LENGTH + MORE)
        assert slots.num_bytes == tokens * kv_bytes_per_token(
            variant, config, parse_dtype("fp32"), tp
        )


@pytest.mark.parametrize("window", [1, LENGTH, LENGTH + MORE, 4096])
def test_the_cache_of_a_window_takes_no_more_than_the_window(window: int) -> None:
    raw = LLAMA | {"model_type": "mistral", "sliding_window": window}
    config, variant = ParentConfig.from_dict(raw, name="windowed"), Gqa(2)
    slots = slots_of(variant, config)
    assert slots is not None
    kept = BATCH * min(window, LENGTH + MORE)
    assert slots.num_bytes == kept * 2 * 2 * config.head_dim * 4
    of_formula = kv_bytes(variant, config, parse_dtype("fp32"), 1, LENGTH + MORE)
    assert slots.num_bytes == BATCH * of_formula


def test_sizes_that_fp8_cannot_multiply() -> None:
    config = ParentConfig.from_dict(LLAMA | {"hidden_size": 72}, name="odd")
    with pytest.raises(InputError, match="multiples of 16"):
        make_serving_subblock(parse_variant("ffn", "mlp_512"), config, precision_on("fp8", CPU))


def test_experts_are_not_served_in_fp8() -> None:
    with pytest.raises(InputError, match="moe_6"):
        make_serving_subblock(Moe(6), parent("mixtral"), precision_on("fp8", CPU))
