"""Pack documents into equal blocks of tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from puzzle_search.data.documents import Document
from puzzle_search.errors import InputError


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that packing needs."""

    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]:
        """Return the token ids of a text."""
        ...


@dataclass(frozen=True, kw_only=True)
class TokenBlocks:
    """Equal blocks of tokens: ``ids`` is int64 of shape (blocks, length)."""

    ids: torch.Tensor

    @property
    def num_tokens(self) -> int:
        """Number of tokens in all blocks."""
        return self.ids.numel()

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """Yield (batch, length) slices in order; the last may be smaller."""
        yield from self.ids.split(batch_size)


def pack_tokens(
    documents: list[Document],
    tokenizer: Tokenizer,
    *,
    length: int,
    max_tokens: int | None = None,
    seed: int = 0,
) -> TokenBlocks:
    """Tokenise shuffled documents, join them with end-of-text tokens and cut equal blocks.

    Args:
        documents: the texts to pack.
        tokenizer: gives token ids; its end-of-text token parts the documents.
        length: tokens in a block.
        max_tokens: stop after this many (rounded down to whole blocks).
        seed: fixes the order of the documents.

    Raises:
        InputError: the documents give less than one block.
    """
    order = list(documents)
    random.Random(seed).shuffle(order)
    ids: list[int] = []
    for document in order:
        ids.extend(tokenizer.encode(document.text, add_special_tokens=False))
        if tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
        if max_tokens is not None and len(ids) >= max_tokens:
            break
    wanted = len(ids) if max_tokens is None else min(len(ids), max_tokens)
    blocks = wanted // length
    if blocks == 0:
        raise InputError(
            f"{len(documents)} documents give {wanted} tokens, less than one block of {length}",
            remedy="give more text, more tokens, or a shorter block length",
        )
    return TokenBlocks(ids=torch.tensor(ids[: blocks * length]).view(blocks, length))
