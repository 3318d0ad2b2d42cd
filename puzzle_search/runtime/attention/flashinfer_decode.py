"""Decode attention by FlashInfer (Ye et al. 2025), over the slots seen as pages.

FlashInfer shares the work out on the host, from lengths, before each step. That plan is of fixed
size, so a captured graph goes on being right once ``prepare`` was told the new lengths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import flashinfer
import torch

from puzzle_search.errors import InputError

_WORKSPACE_BYTES = 128 * 2**20  # what FlashInfer recommends
_LARGEST_PAGE = 256
_SMALLEST_PAGE = 16


class FlashInferDecode:
    """Decode attention for one number of slots and one set of head shapes.

    Args:
        device: of the cache.
        num_heads: query heads.
        kv_heads: heads of keys and values.
        head_dim: of both.
        slots: sequences of every step.
        max_length: tokens that a slot holds.
        dtype: of queries.
        kv_dtype: of keys and values; e4m3 is allowed.

    Raises:
        InputError: queries are fp32, or no page of 16 tokens or more divides a slot.
    """

    is_capturable = True

    def __init__(
        self,
        device: torch.device,
        *,
        num_heads: int,
        kv_heads: int,
        head_dim: int,
        slots: int,
        max_length: int,
        dtype: torch.dtype,
        kv_dtype: torch.dtype,
    ) -> None:
        if dtype == torch.float32:
            raise InputError("FlashInfer takes no fp32 queries", remedy="use bf16 or fp8")
        self._page = math.gcd(max_length, _LARGEST_PAGE)
        if self._page < _SMALLEST_PAGE:
            raise InputError(
                f"FlashInfer cannot divide slots of {max_length} tokens into pages",
                remedy=f"take a length that is a multiple of {_SMALLEST_PAGE}",
            )
        self._heads = (num_heads, kv_heads, head_dim)
        self._dtypes = {"q_data_type": dtype, "kv_data_type": kv_dtype}
        pages = max_length // self._page
        self._pages_BP = torch.arange(slots * pages, dtype=torch.int32).view(slots, pages)
        self._wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=device),
            "NHD",
            use_cuda_graph=True,
            use_tensor_cores=True,  # for any group size
            paged_kv_indptr_buffer=torch.zeros(slots + 1, dtype=torch.int32, device=device),
            paged_kv_indices_buffer=torch.zeros(slots * pages, dtype=torch.int32, device=device),
            paged_kv_last_page_len_buffer=torch.ones(slots, dtype=torch.int32, device=device),
            backend="fa2",  # the one that takes 16-bit queries with fp8 keys
        )

    def prepare(self, lengths: Sequence[int]) -> None:
        """Plan a step over all slots."""
        lengths_B = torch.tensor(lengths, dtype=torch.int32)
        used_B = (lengths_B + self._page - 1) // self._page
        ends_B1 = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        ends_B1[1:] = used_B.cumsum(0)
        in_use_BP = torch.arange(self._pages_BP.shape[1]) < used_B[:, None]
        self._wrapper.plan(
            ends_B1,
            self._pages_BP[in_use_BP],
            lengths_B - (used_B - 1) * self._page,
            *self._heads,
            self._page,
            **self._dtypes,
        )

    def __call__(
        self,
        q_BHE: torch.Tensor,
        keys_BSKE: torch.Tensor,
        values_BSKE: torch.Tensor,
        lengths_B: torch.Tensor,
    ) -> torch.Tensor:
        """See `DecodeAttention`; the slots lie one after the other."""
        paged = (-1, self._page, *keys_BSKE.shape[2:])
        out: torch.Tensor = self._wrapper.run(
            q_BHE, (keys_BSKE.view(paged), values_BSKE.view(paged))
        )
        return out
