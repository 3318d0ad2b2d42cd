"""Text in, token blocks out: documents, their held-out splits, and packing."""

from puzzle_search.data.documents import Split, load_documents, split_of
from puzzle_search.data.sources import Document
from puzzle_search.data.stream import StreamPosition, TokenStream
from puzzle_search.data.tokens import (
    TokenBlocks,
    chat_tokens,
    conversation_tokens,
    pack_tokens,
    sample_tokens,
    text_tokens,
)

__all__ = [
    "Document",
    "Split",
    "StreamPosition",
    "TokenBlocks",
    "TokenStream",
    "chat_tokens",
    "conversation_tokens",
    "load_documents",
    "pack_tokens",
    "sample_tokens",
    "split_of",
    "text_tokens",
]
