"""An endless stream of token blocks whose position can be kept and taken up again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from puzzle_search.data.sources import Document
from puzzle_search.data.tokens import TokenBlocks, Tokenizer, document_tokens, epoch_order
from puzzle_search.errors import InputError
from puzzle_search.files import value_hash


@dataclass(frozen=True, kw_only=True)
class StreamPosition:
    """The next token of a stream.

    Attributes:
        epoch: whole passes over the documents before it.
        document: documents of this epoch before it.
        token: tokens of this document before it.
    """

    epoch: int = 0
    document: int = 0
    token: int = 0


class TokenStream:
    """Documents in a new order each epoch, joined with end-of-text tokens, cut in equal blocks.

    A document is tokenised when its turn comes. No token is dropped: a block may end in the
    middle of a document or of an epoch, and the next one goes on there. The first epoch has the
    order of ``pack_tokens``.

    Args:
        documents: the texts.
        tokenizer: gives token ids; its end-of-text token parts the documents.
        length: tokens in a block.
        seed: fixes the order of every epoch.
        position: where to begin.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        tokenizer: Tokenizer,
        *,
        length: int,
        seed: int = 0,
        position: StreamPosition | None = None,
    ) -> None:
        self.length = length
        self.seed = seed
        self._documents = documents
        self._tokenizer = tokenizer
        self.seek(position or StreamPosition())

    @property
    def sha256(self) -> str:
        """Hash of the documents, the block length and the seed."""
        texts = [[document.name, document.text, document.messages] for document in self._documents]
        return value_hash([self.length, self.seed, texts])

    @property
    def position(self) -> StreamPosition:
        """Where the next block begins."""
        return StreamPosition(epoch=self._epoch, document=self._document, token=self._token)

    def seek(self, position: StreamPosition) -> None:
        """Go on from a position that a stream of the same documents and seed was at."""
        self._epoch, self._document = position.epoch, position.document
        self._token = position.token
        self._order = epoch_order(len(self._documents), seed=self.seed, epoch=self._epoch)
        self._ids = self._tokens()

    def take(self, blocks: int) -> TokenBlocks:
        """The next blocks.

        Raises:
            InputError: the documents hold no token.
        """
        wanted = blocks * self.length
        ids: list[int] = []
        starts: list[int] = []
        epoch = self._epoch
        while len(ids) < wanted:
            if not ids and self._epoch > epoch + 1:
                raise InputError("the documents hold no token", remedy="give another data source")
            part = self._ids[self._token : self._token + wanted - len(ids)]
            if part and self._token == 0:
                starts.append(len(ids))
            ids.extend(part)
            self._token += len(part)
            if self._token == len(self._ids):
                self._next_document()
        return TokenBlocks.cut(ids, starts, blocks=blocks, length=self.length)

    def _next_document(self) -> None:
        self._document, self._token = self._document + 1, 0
        if self._document == len(self._order):
            self._epoch, self._document = self._epoch + 1, 0
            self._order = epoch_order(len(self._documents), seed=self.seed, epoch=self._epoch)
        self._ids = self._tokens()

    def _tokens(self) -> list[int]:
        return document_tokens(self._documents[self._order[self._document]], self._tokenizer)
