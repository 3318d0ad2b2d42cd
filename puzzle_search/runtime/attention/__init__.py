"""Attention of the runtime: back ends of decode, and prefill."""

from __future__ import annotations

import importlib.util

import torch

from puzzle_search.errors import InputError
from puzzle_search.packages import installed
from puzzle_search.runtime.attention.base import DecodeAttention
from puzzle_search.runtime.attention.sdpa import SdpaDecode, prefill_attention

DECODE_ATTENTIONS = ("sdpa", "triton", "flashinfer")

__all__ = [
    "DECODE_ATTENTIONS",
    "DecodeAttention",
    "SdpaDecode",
    "make_decode_attention",
    "prefill_attention",
]


def make_decode_attention(
    name: str | None,
    device: torch.device,
    *,
    num_heads: int,
    kv_heads: int,
    head_dim: int,
    slots: int,
    max_length: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
) -> DecodeAttention:
    """The back end of that name, for all layers with these heads.

    Args:
        name: ``sdpa``, ``triton`` or ``flashinfer``; where None, ``triton`` on CUDA if it is
            installed, else ``sdpa``.
        device: of the cache.
        num_heads: query heads.
        kv_heads: heads of keys and values.
        head_dim: of both.
        slots: sequences of every step.
        max_length: tokens that a slot holds.
        dtype: of queries.
        kv_dtype: of keys and values.

    Raises:
        InputError: the name is another, the device is not for it, or its pages do not fit.
        MissingDependencyError: its package is not installed.
    """
    if name is None:
        on_cuda = device.type == "cuda" and importlib.util.find_spec("triton") is not None
        name = "triton" if on_cuda else "sdpa"
    if name not in DECODE_ATTENTIONS:
        raise InputError(
            f"decode attention {name!r} is not known",
            remedy=f"use one of {', '.join(DECODE_ATTENTIONS)}",
        )
    if name == "sdpa":
        return SdpaDecode()
    if device.type != "cuda":
        raise InputError(
            f"decode attention {name} runs on CUDA only, not on {device.type}",
            remedy="use sdpa, or leave the choice to the device",
        )
    if name == "triton":
        with installed():
            from puzzle_search.runtime.attention.triton_decode import TritonDecode
        return TritonDecode()
    with installed():
        from puzzle_search.runtime.attention.flashinfer_decode import FlashInferDecode
    return FlashInferDecode(
        device,
        num_heads=num_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        slots=slots,
        max_length=max_length,
        dtype=dtype,
        kv_dtype=kv_dtype,
    )
