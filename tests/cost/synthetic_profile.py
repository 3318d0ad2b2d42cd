"""Profiles whose latencies are closed forms, in the place of measured ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from puzzle_search.arch import ParentConfig, parse_variant
from puzzle_search.cost import Dtype, GroupRow, LatencyRow, MemoryRow, Profile, parse_dtype
from puzzle_search.cost.memory import kv_bytes_per_token, weight_bytes

RAW: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 96,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
}  # fmt: skip
VARIANTS = (
    ("attention", "gqa_2"), ("attention", "gqa_1"), ("attention", "linear"),
    ("ffn", "mlp_128"), ("ffn", "mlp_64"),
)  # fmt: skip
GROUPS = [
    GroupRow(
        group=0, seconds=1.5, sm_clock_mhz=None, memory_clock_mhz=None, temperature_c=None,
        power_watts=None, throttle="", other_processes=None,
    )
]  # fmt: skip


def sidecar(**changes: Any) -> dict[str, Any]:
    """As ``profile.yaml`` holds it, without the hashes of the tables."""
    return {
        "format": "puzzle-search.profile/2",
        "package_version": "0.1.0",
        "evidence": "measured",
        "date": "2026-01-01",
        "device": {"kind": "cpu", "name": "abacus", "memory_bytes": 10**9},
        "engine": "test",
        "dtype": "bf16",
        "model": "pico",
        "parent_config": RAW,
        "memory_limit_bytes": 10**9,
        "prefill_chunk_tokens": 100,
        "ceilings": {"copy_bytes_per_second": 1e11, "matmul_flops_per_second": {"bf16": 1e12}},
        "skipped": [{"point": "attention gqa_2, decode, batch 64, context 1000", "why": "memory"}],
        "interpolation": {"points": 4, "median": 0.01, "p90": 0.02, "worst": 0.03},
        **changes,
    }


def row(
    subblock: str, variant: str, phase: str, batch: int, tokens: int, context: int, us: float,
    tp: int = 1,
) -> LatencyRow:  # fmt: skip
    """A steady row without spread."""
    return LatencyRow(
        subblock=subblock,  # type: ignore[arg-type]
        variant=variant,
        phase=phase,  # type: ignore[arg-type]
        batch=batch,
        tokens=tokens,
        context=context,
        tp=tp,
        latency_us=us,
        latency_us_p10=us,
        latency_us_p90=us,
        repeats=5,
        steady=True,
        group=0,
    )


def attention_rows(
    variant: str,
    phase: str,
    points: Iterable[tuple[int, int]],
    us: Callable[[int, int], float],
    tp: int = 1,
) -> list[LatencyRow]:
    """Rows of (batch, length)."""
    return [
        row("attention", variant, phase, b, n if phase == "prefill" else 1, n, us(b, n), tp)
        for b, n in points
    ]


def curve_rows(
    subblock: str, variant: str, sizes: Iterable[int], us: Callable[[int], float], tp: int = 1
) -> list[LatencyRow]:
    """Rows by batch of a decode step."""
    return [row(subblock, variant, "decode", m, 1, 1, us(m), tp) for m in sizes]


def memory_rows(
    config: ParentConfig,
    dtype: Dtype,
    variants: Iterable[tuple[str, str]] = VARIANTS,
    degrees: Iterable[int] = (1,),
) -> list[MemoryRow]:
    """Bytes by the closed forms, which tests of memory check by themselves."""
    return [
        MemoryRow(
            subblock=subblock,  # type: ignore[arg-type]
            variant=name,
            tp=tp,
            weight_bytes=weight_bytes(parsed, config, dtype, tp),
            kv_bytes_per_token=kv_bytes_per_token(parsed, config, dtype, tp),
            workspace_bytes=1000,
            workspace_rows=100,
        )
        for (subblock, name), tp in itertools.product(variants, degrees)
        for parsed in [parse_variant(subblock, name)]  # type: ignore[arg-type]
    ]


def whole_profile(
    batches: tuple[int, ...] = (1, 4, 16),
    contexts: tuple[int, ...] = (10, 50, 100, 300),
    *,
    degrees: tuple[int, ...] = (1,),
    **changes: Any,
) -> Profile:
    """Every variant; see the lambdas for its microseconds of batch, length and tokens."""
    rows: list[LatencyRow] = []
    for tp in degrees:
        for name in ("gqa_2", "gqa_1"):
            heads = int(name[-1])
            decode = list(itertools.product(batches, contexts))
            whole = itertools.product((1, 2, 4, 10), (10, 25, 50, 100))
            prefill = [(b, n) for b, n in whole if b * n <= 100]
            rows += attention_rows(
                name, "decode", decode, lambda b, n, h=heads: 20 + h * b * n / 100, tp
            )  # fmt: skip
            rows += attention_rows(
                name, "prefill", prefill, lambda b, n, h=heads: 20 + h * b * n / 10, tp
            )  # fmt: skip
            rows += [
                row("attention", name, "prefill", 1, 100, 100 + past, 30 + heads * past / 5, tp)
                for past in (100, 200)
            ]
        for subblock, name in (("attention", "linear"), ("ffn", "mlp_128"), ("ffn", "mlp_64")):
            rows += curve_rows(subblock, name, (1, 16, 100), lambda m: 10 + m / 4, tp)
        rows += curve_rows("outside", "embedding", (1, 100), lambda m: 2 + m / 50, tp)
        rows += curve_rows("outside", "head", batches, lambda b: 7 + b / 2, tp)
        rows += curve_rows("outside", "step", batches, lambda b: 40 + b, tp)
    config = ParentConfig.from_dict(RAW, name="pico")
    memory = memory_rows(config, parse_dtype("bf16"), degrees=degrees)
    return Profile(rows, memory, GROUPS, sidecar(**changes))
