"""Elementwise work between matrix products, one kernel each on a GPU.

Written as plain torch. On CUDA `torch.compile` makes one kernel of each; on a CPU they run as they
stand. Shape suffixes: N rows (one a new token), D hidden, W FFN width,
H query heads, K KV heads, E head size.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F

from puzzle_search.model.rope import RotarySlice, rotate
from puzzle_search.model.subblocks.base import scaled

P = ParamSpec("P")
R = TypeVar("R")

FP8_MAX = 448.0
"""Largest number of float8_e4m3fn."""

# Each shape of weights is compiled for anew; a profile of several TP degrees has some dozens.
_RECOMPILE_LIMIT = 256


def fused(**changing: tuple[int, ...]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile a function where its first argument is on a GPU; it must compile whole.

    Sizes are constants of a kernel, since dividing by a size that is not costs it its wide loads.
    Those that change from step to step are named, and one kernel serves them all.

    Args:
        changing: dimensions whose sizes change, by parameter.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        order = list(inspect.signature(function).parameters)
        places = {order.index(name): dims for name, dims in changing.items()}

        @functools.cache
        def compiled() -> Callable[P, R]:
            import torch._dynamo

            torch._dynamo.config.recompile_limit = _RECOMPILE_LIMIT
            torch._dynamo.config.accumulated_recompile_limit = _RECOMPILE_LIMIT
            return torch.compile(function, fullgraph=True, dynamic=False)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            first = args[0]
            if not isinstance(first, torch.Tensor) or not first.is_cuda:
                return function(*args, **kwargs)
            run = compiled()
            for place, dims in places.items():
                mark_changing(args[place], dims)
            return run(*args, **kwargs)

        return call

    return decorate


def mark_changing(argument: object, dims: tuple[int, ...]) -> None:
    """Tell the compiler which sizes of a tensor, or of a tuple of tensors, are no constants."""
    if isinstance(argument, torch.Tensor):
        for dim in dims:
            torch._dynamo.maybe_mark_dynamic(argument, dim)
    elif isinstance(argument, tuple):
        for part in argument:
            mark_changing(part, dims)


def _to_fp8(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (x.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


def _cached(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """In the dtype of the cache; beyond FP8 saturated; torch 2.11 itself would make NaN of it."""
    return x.clamp(-FP8_MAX, FP8_MAX).to(dtype) if dtype == torch.float8_e4m3fn else x.to(dtype)


@fused(x_ND=(0,))
def quantise(x_ND: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``x / scale`` in FP8, saturated."""
    return _to_fp8(x_ND, scale)


@fused(residual_ND=(0,), delta_ND=(0,))
def add_norm(
    residual_ND: torch.Tensor,
    delta_ND: torch.Tensor | None,
    weight_D: torch.Tensor,
    eps: float,
    scale: torch.Tensor | None,
    residual_scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add what the last subblock gave, then RMSNorm; in FP8 where a scale is given.

    Returns:
        The residual stream and its norm, both (N, D).
    """
    if delta_ND is not None:
        residual_ND = residual_ND + scaled(delta_ND, residual_scale)
    normed_ND = F.rms_norm(residual_ND, weight_D.shape, weight_D, eps)
    return residual_ND, normed_ND if scale is None else _to_fp8(normed_ND, scale)


@fused(gate_up_N2W=(0,))
def silu_multiply(gate_up_N2W: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """``silu(gate) * up`` (N, W) of the two halves; in FP8 where a scale is given."""
    gate_NW, up_NW = gate_up_N2W.chunk(2, dim=-1)
    channels_NW = F.silu(gate_NW) * up_NW
    return channels_NW if scale is None else _to_fp8(channels_NW, scale)


@fused(
    qkv_NX=(0,),
    rotary=(0,),
    keys_BSKE=(0, 1),
    values_BSKE=(0, 1),
    slots_N=(0,),
    positions_N=(0,),
    kept_N=(0,),
)
def rotate_and_store(
    qkv_NX: torch.Tensor,
    rotary: RotarySlice,
    norms: tuple[torch.Tensor, torch.Tensor, float] | None,
    query_scale: float,
    keys_BSKE: torch.Tensor,
    values_BSKE: torch.Tensor,
    slots_N: torch.Tensor,
    positions_N: torch.Tensor,
    kept_N: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split heads, rotate queries and keys, write keys and values into the cache.

    Args:
        qkv_NX: query, key and value heads side by side.
        rotary: cosines and signed sines of each row, (N, 1, E).
        norms: weights of the norms of queries and of keys with their epsilon, if any: (E,) for each
            head by itself, (heads, E) for all together.
        query_scale: factor on queries.
        keys_BSKE: cached keys, written in place.
        values_BSKE: cached values, written in place.
        slots_N: cache slot of each row that is kept.
        positions_N: where each of these lies in its slot.
        kept_N: which rows are kept; None where all are.

    Returns:
        Queries (N, H, E), keys and values (N, K, E), before the cache rounds them.
    """
    kv_heads, head_dim = keys_BSKE.shape[2:]
    heads_NXE = qkv_NX.view(qkv_NX.shape[0], -1, head_dim)
    q_NHE = heads_NXE[:, : -2 * kv_heads]
    k_NKE = heads_NXE[:, -2 * kv_heads : -kv_heads]
    v_NKE = heads_NXE[:, -kv_heads:]
    if norms is not None:
        q_weight, k_weight, eps = norms
        q_NHE = F.rms_norm(q_NHE, q_weight.shape, q_weight, eps)
        k_NKE = F.rms_norm(k_NKE, k_weight.shape, k_weight, eps)
    q_NHE, k_NKE = scaled(rotate(q_NHE, rotary), query_scale), rotate(k_NKE, rotary)
    kept = slice(None) if kept_N is None else kept_N
    keys_BSKE[slots_N, positions_N] = _cached(k_NKE[kept], keys_BSKE.dtype)
    values_BSKE[slots_N, positions_N] = _cached(v_NKE[kept], values_BSKE.dtype)
    return q_NHE, k_NKE, v_NKE
