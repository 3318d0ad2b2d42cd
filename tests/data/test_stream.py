"""A stream of blocks: nothing lost, the same from any position."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzle_search.data import StreamPosition, TokenStream, pack_tokens
from puzzle_search.errors import InputError
from tests.data.test_tokens import END, LETTERS, Codepoints, documents

TEXTS = st.lists(st.text("abc", max_size=9), min_size=1, max_size=5)


@given(texts=TEXTS, length=st.integers(1, 7), takes=st.lists(st.integers(1, 4), max_size=6))
def test_a_stream_goes_on_from_its_position(
    texts: list[str], length: int, takes: list[int]
) -> None:
    stream = TokenStream(documents(*texts), Codepoints(), length=length, seed=3)
    for blocks in takes:
        position = stream.position
        again = TokenStream(
            documents(*texts), Codepoints(), length=length, seed=3, position=position
        )
        first, second = stream.take(blocks), again.take(blocks)
        assert first.ids.equal(second.ids)
        assert first.document_starts.equal(second.document_starts)
        assert stream.position == again.position


@given(texts=TEXTS, length=st.integers(1, 7), takes=st.lists(st.integers(1, 4), max_size=6))
def test_takes_of_any_size_give_one_stream(texts: list[str], length: int, takes: list[int]) -> None:
    if not takes:
        return
    one = TokenStream(documents(*texts), Codepoints(), length=length)
    other = TokenStream(documents(*texts), Codepoints(), length=length)
    joined = [token for blocks in takes for token in one.take(blocks).ids.flatten().tolist()]
    assert other.take(sum(takes)).ids.flatten().tolist() == joined


def test_each_epoch_has_every_document_in_another_order() -> None:
    stream = TokenStream(LETTERS, Codepoints(), length=4)  # a document is one block
    epochs = [stream.take(10) for _ in range(3)]
    orders = [tuple(epoch.ids[:, 0].tolist()) for epoch in epochs]
    assert len(set(orders)) == 3
    for epoch in epochs:
        rows = [[ord(letter)] * 3 + [END] for letter in "abcdefghij"]
        assert Counter(map(tuple, epoch.ids.tolist())) == Counter(map(tuple, rows))
        assert epoch.document_starts.tolist() == [[True, False, False, False]] * 10
    assert stream.position == StreamPosition(epoch=3)
    other = TokenStream(LETTERS, Codepoints(), length=4, seed=1)
    assert tuple(other.take(10).ids[:, 0].tolist()) != orders[0]


def test_the_first_epoch_is_that_of_pack_tokens() -> None:
    packed = pack_tokens(LETTERS, Codepoints(), length=3)
    taken = TokenStream(LETTERS, Codepoints(), length=3).take(len(packed.ids))
    assert taken.ids.equal(packed.ids)
    assert taken.document_starts.equal(packed.document_starts)


def test_boundaries_and_targets() -> None:
    """abc| de|f: targets are the tokens that follow one of their own document in their block."""
    packed = pack_tokens(documents("ab"), Codepoints(), length=3)
    assert packed.num_targets == 2
    two = TokenStream(documents("ab", "ab"), Codepoints(), length=4).take(2)
    # a b END a | b END a b
    assert two.document_starts.int().tolist() == [[1, 0, 0, 1], [0, 0, 1, 0]]
    assert two.num_targets == 4


def test_documents_are_tokenised_when_their_turn_comes() -> None:
    seen: list[str] = []

    class Watched(Codepoints):
        def encode(
            self, text: str, *, add_special_tokens: bool = True, verbose: bool = True
        ) -> list[int]:
            seen.append(text)
            return super().encode(text, add_special_tokens=add_special_tokens)

    TokenStream(LETTERS, Watched(), length=4).take(2)
    assert len(seen) == 3


def test_documents_without_a_token() -> None:
    with pytest.raises(InputError, match="no token"):
        TokenStream(documents("", ""), Codepoints(None), length=2).take(1)


def test_the_hash_follows_what_the_tokens_follow() -> None:
    hashes = {
        TokenStream(texts, Codepoints(), length=length, seed=seed).sha256
        for texts in (documents("a"), documents("b"))
        for length in (2, 3)
        for seed in (0, 1)
    }
    assert len(hashes) == 8
