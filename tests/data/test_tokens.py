"""Packing documents into blocks of tokens."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from puzzle_search.data import Document, TokenBlocks, pack_tokens, sample_tokens
from puzzle_search.errors import InputError

END = 1000


class Codepoints:
    """One token a character."""

    def __init__(self, eos_token_id: int | None = END) -> None:
        self.eos_token_id = eos_token_id

    def encode(
        self, text: str, *, add_special_tokens: bool = True, verbose: bool = True
    ) -> list[int]:
        assert not add_special_tokens, "a BOS token in the middle of a block"
        return [ord(character) for character in text]


def documents(*texts: str) -> list[Document]:
    return [Document(name=f"{number}.txt", text=text) for number, text in enumerate(texts)]


LETTERS = documents(*(letter * 3 for letter in "abcdefghij"))


def joined(found: TokenBlocks) -> list[int]:
    return found.ids.flatten().tolist()


def test_one_document() -> None:
    packed = pack_tokens(documents("abcde"), Codepoints(), length=3)
    assert packed.ids.dtype == torch.int64
    assert packed.ids.tolist() == [[97, 98, 99], [100, 101, END]]
    assert packed.num_tokens == 6


def test_without_an_end_of_text_token() -> None:
    packed = pack_tokens(documents("abcde"), Codepoints(None), length=2)
    assert packed.ids.tolist() == [[97, 98], [99, 100]]


def test_the_order_follows_the_seed() -> None:
    packed = {
        seed: joined(pack_tokens(LETTERS, Codepoints(), length=4, seed=seed)) for seed in (0, 1)
    }
    again = joined(pack_tokens(LETTERS, Codepoints(), length=4, seed=0))
    assert packed[0] == again
    assert packed[0] != packed[1]
    assert sorted(packed[0]) == sorted(packed[1])  # the same documents
    assert [document.text[0] for document in LETTERS] == list("abcdefghij")  # left as they were


def test_the_order_of_seed_0_never_changes() -> None:
    found = joined(pack_tokens(LETTERS, Codepoints(), length=4))
    assert "".join(chr(token) for token in found[::4]) == "hibfdecajg"


def test_max_tokens_is_rounded_down_to_blocks() -> None:
    packed = pack_tokens(LETTERS, Codepoints(), length=3, max_tokens=10)
    assert packed.ids.shape == (3, 3)
    assert joined(packed) == joined(pack_tokens(LETTERS, Codepoints(), length=3))[:9]


def test_max_tokens_above_what_there_is() -> None:
    packed = pack_tokens(LETTERS, Codepoints(), length=3, max_tokens=10**9)
    assert packed.ids.shape == (13, 3)  # 10 documents of 3 tokens and an end


@given(
    texts=st.lists(st.text(max_size=20), min_size=1, max_size=4),
    length=st.integers(1, 12),
    seed=st.integers(0, 3),
)
def test_no_token_is_lost_but_the_tail(texts: list[str], length: int, seed: int) -> None:
    total = sum(len(text) + 1 for text in texts)
    if total < length:
        with pytest.raises(InputError):
            pack_tokens(documents(*texts), Codepoints(), length=length, seed=seed)
        return
    packed = pack_tokens(documents(*texts), Codepoints(), length=length, seed=seed)
    assert packed.ids.shape == (total // length, length)
    streams = (
        [token for text in order for token in [*map(ord, text), END]]
        for order in itertools.permutations(texts)
    )
    assert any(joined(packed) == stream[: packed.num_tokens] for stream in streams)


def test_too_little_text() -> None:
    with pytest.raises(InputError, match="2 documents give 5 tokens, less than one block of 6"):
        pack_tokens(documents("ab", "c"), Codepoints(), length=6)
    with pytest.raises(InputError, match="give 4 tokens, less than one block of 6"):
        pack_tokens(LETTERS, Codepoints(), length=6, max_tokens=4)


def test_batches_cover_the_blocks_in_order() -> None:
    packed = pack_tokens(LETTERS, Codepoints(), length=8)
    batches = list(packed.batches(2))
    assert [tuple(batch.shape) for batch in batches] == [(2, 8), (2, 8), (1, 8)]
    assert torch.equal(torch.cat(batches), packed.ids)


def test_a_sample_comes_from_all_over_the_documents() -> None:
    texts = documents(*(chr(300 + n) * 50 for n in range(100)))
    sample = sample_tokens(texts, Codepoints(), length=10, tokens=200)
    assert sample.ids.shape == sample.document_starts.shape == (20, 10)
    assert len(set(joined(sample)) - {END}) >= 20  # packed, they would come from four documents
    packed = {tuple(row) for row in pack_tokens(texts, Codepoints(), length=10).ids.tolist()}
    rows = [tuple(row) for row in sample.ids.tolist()]
    assert len(set(rows)) == 20
    assert set(rows) <= packed


@given(st.integers(1, 9), st.integers(1, 200))
def test_a_sample_is_as_large_as_asked_or_all_there_is(length: int, tokens: int) -> None:
    everything = pack_tokens(LETTERS, Codepoints(), length=length)
    if tokens < length:
        with pytest.raises(InputError, match="less than one block"):
            sample_tokens(LETTERS, Codepoints(), length=length, tokens=tokens)
        return
    sample = sample_tokens(LETTERS, Codepoints(), length=length, tokens=tokens)
    assert len(sample.ids) == min(tokens // length, len(everything.ids))
    again = sample_tokens(LETTERS, Codepoints(), length=length, tokens=tokens)
    assert torch.equal(sample.ids, again.ids)
