"""Pack documents into equal blocks of tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jinja2 import TemplateError

from puzzle_search.data.sources import Document
from puzzle_search.errors import InputError

# Tokens that are packed to choose from: so many times those asked for, up to a limit.
_POOL_FACTOR = 64
_LARGEST_POOL_TOKENS = 2**24


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that packing needs."""

    eos_token_id: int | None
    chat_template: Any

    def encode(
        self, text: str, *, add_special_tokens: bool = ..., verbose: bool = ...
    ) -> list[int]:
        """Return the token ids of a text."""
        ...

    def apply_chat_template(
        self, conversation: Any, *, tokenize: bool = ..., add_generation_prompt: bool = ...
    ) -> Any:
        """Return the text of a conversation."""
        ...


@dataclass(frozen=True, kw_only=True)
class TokenBlocks:
    """Equal blocks of tokens.

    Attributes:
        ids: int64, (blocks, length).
        document_starts: bool of the same shape, true at the first token of a document.
    """

    ids: torch.Tensor
    document_starts: torch.Tensor

    @classmethod
    def cut(cls, ids: list[int], starts: list[int], *, blocks: int, length: int) -> TokenBlocks:
        """Cut blocks from joined documents that start at these places."""
        tokens = blocks * length
        document_starts = torch.zeros(tokens, dtype=torch.bool)
        document_starts[[start for start in starts if start < tokens]] = True
        shape = (blocks, length)
        return cls(
            ids=torch.tensor(ids[:tokens]).view(shape), document_starts=document_starts.view(shape)
        )

    @property
    def num_tokens(self) -> int:
        """Number of tokens in all blocks."""
        return self.ids.numel()

    @property
    def num_targets(self) -> int:
        """Number of tokens that follow another one of their own document in their block."""
        return int(self.document_starts[:, 1:].logical_not().sum())

    def split(self, blocks: int) -> list[TokenBlocks]:
        """Pieces of so many blocks in order; the last may be smaller."""
        pairs = zip(self.ids.split(blocks), self.document_starts.split(blocks), strict=True)
        return [TokenBlocks(ids=ids, document_starts=starts) for ids, starts in pairs]

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """Yield (batch, length) slices in order; the last may be smaller."""
        yield from self.ids.split(batch_size)


def document_tokens(document: Document, tokenizer: Tokenizer) -> list[int]:
    """Token ids of a document, an end-of-text token behind them where the tokenizer has one.

    A conversation is written out by the tokenizer's chat template.

    Raises:
        InputError: a conversation without a chat template, or one that the template refuses; or
            text that is none.
    """
    text = _conversation(document, tokenizer) if document.messages else document.text
    ids = text_tokens(text, tokenizer, document.name)
    end = tokenizer.eos_token_id
    ended = bool(document.messages) and ids[-1:] == [end]  # by the template itself
    return ids if end is None or ended else [*ids, end]


def text_tokens(text: str, tokenizer: Tokenizer, where: str) -> list[int]:
    """Token ids of a text, without any that the tokenizer would add.

    Raises:
        InputError: it holds halves of characters, which no UTF-8 text does.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where} is not UTF-8 text: {error}", remedy="drop or mend that character"
        ) from error
    # Documents are longer than the model reads at once, and are cut later: no word of that.
    return tokenizer.encode(text, add_special_tokens=False, verbose=False)


def chat_tokens(message: str, tokenizer: Tokenizer, *, system: str | None = None) -> list[int]:
    """Token ids of a user's message, up to where the answer begins, by the chat template.

    Args:
        message: what the user says.
        tokenizer: of a chat model.
        system: message before it, if any.

    Raises:
        InputError: the tokenizer has no chat template, or it refuses the messages.
    """
    messages = [{"role": "user", "content": message}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return conversation_tokens(messages, tokenizer)


def conversation_tokens(messages: Sequence[dict[str, str]], tokenizer: Tokenizer) -> list[int]:
    """Token ids of a conversation, up to where the answer begins, by the chat template.

    Args:
        messages: each with its ``role`` and ``content``.
        tokenizer: of a chat model.

    Raises:
        InputError: the tokenizer has no chat template, or it refuses the messages.
    """
    document = Document(name="the prompt", text="", messages=tuple(messages))
    text = _conversation(document, tokenizer, add_generation_prompt=True)
    return text_tokens(text, tokenizer, document.name)


def _conversation(
    document: Document, tokenizer: Tokenizer, *, add_generation_prompt: bool = False
) -> str:
    if not tokenizer.chat_template:
        raise InputError(
            f"{document.name} is a conversation, and the tokenizer has no chat template",
            remedy="use a parent with a chat template, or give plain text",
        )
    try:
        text: str = tokenizer.apply_chat_template(
            list(document.messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        raise InputError(
            f"{document.name}: the chat template refuses it: {error}",
            remedy="correct the order and roles of its messages",
        ) from error
    return text


def epoch_order(documents: int, *, seed: int, epoch: int = 0) -> list[int]:
    """The order in which an epoch takes the documents."""
    order = list(range(documents))
    random.Random(seed + (epoch << 32)).shuffle(order)
    return order


def pack_tokens(
    documents: Sequence[Document],
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
    ids: list[int] = []
    starts: list[int] = []
    for index in epoch_order(len(documents), seed=seed):
        starts.append(len(ids))
        ids.extend(document_tokens(documents[index], tokenizer))
        if max_tokens is not None and len(ids) >= max_tokens:
            break
    wanted = len(ids) if max_tokens is None else min(len(ids), max_tokens)
    blocks = wanted // length
    if blocks == 0:
        raise InputError(
            f"{len(documents)} documents give {wanted} tokens, less than one block of {length}",
            remedy="give more text, more tokens, or a shorter block length",
        )
    return TokenBlocks.cut(ids, starts, blocks=blocks, length=length)


def sample_tokens(
    documents: Sequence[Document], tokenizer: Tokenizer, *, length: int, tokens: int, seed: int = 0
) -> TokenBlocks:
    """Blocks from all over the documents, evenly spaced, for figures that stand for all of them.

    The first blocks of a packed text come from one or two documents, and so does what is
    measured on them.

    Args:
        documents: the texts.
        tokenizer: as in ``pack_tokens``.
        length: tokens in a block.
        tokens: how many to choose, in whole blocks; fewer where there are no more.
        seed: fixes the order of the documents.

    Raises:
        InputError: the documents give less than one block.
    """
    asked = tokens // length
    pool = max(tokens, min(_POOL_FACTOR * tokens, _LARGEST_POOL_TOKENS)) if asked else tokens
    packed = pack_tokens(documents, tokenizer, length=length, max_tokens=pool, seed=seed)
    blocks = len(packed.ids)
    chosen = torch.linspace(0, blocks - 1, min(blocks, asked)).round().long()
    return TokenBlocks(ids=packed.ids[chosen], document_starts=packed.document_starts[chosen])
