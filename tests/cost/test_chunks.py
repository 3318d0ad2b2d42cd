"""The steps of a prefill."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from puzzle_search.arch import ParentConfig
from puzzle_search.cost.chunks import PrefillChunk, prefill_chunks
from puzzle_search.cost.memory import PREFILL_CHUNK_TOKENS, activation_bytes, parse_dtype
from tests.arch.configs import CONFIGS


def steps(batch: int, tokens: int, chunk_tokens: int) -> list[tuple[int, int, int, int, bool]]:
    return [
        (c.first_sequence, c.sequences, c.tokens, c.context, c.last)
        for c in prefill_chunks(batch, tokens, chunk_tokens)
    ]


def test_whole_sequences_share_a_chunk() -> None:
    assert steps(7, 30, 100) == [(0, 3, 30, 30, True), (3, 3, 30, 30, True), (6, 1, 30, 30, True)]


def test_a_long_prompt_is_cut_along_its_length() -> None:
    assert steps(2, 250, 100) == [
        (0, 1, 100, 100, False), (0, 1, 100, 200, False), (0, 1, 50, 250, True),
        (1, 1, 100, 100, False), (1, 1, 100, 200, False), (1, 1, 50, 250, True),
    ]  # fmt: skip
    assert steps(1, 200, 100) == [(0, 1, 100, 100, False), (0, 1, 100, 200, True)]


def test_by_default_a_chunk_holds_8192_tokens() -> None:
    assert prefill_chunks(64, 128) == [
        PrefillChunk(first_sequence=0, sequences=64, tokens=128, context=128, last=True)
    ]
    assert len(prefill_chunks(65, 128)) == 2


@given(batch=st.integers(1, 50), tokens=st.integers(1, 300), chunk_tokens=st.integers(1, 400))
def test_every_token_runs_once_in_order(batch: int, tokens: int, chunk_tokens: int) -> None:
    done = [0] * batch
    for chunk in prefill_chunks(batch, tokens, chunk_tokens):
        assert chunk.sequences * chunk.tokens <= chunk_tokens
        for sequence in range(chunk.first_sequence, chunk.first_sequence + chunk.sequences):
            done[sequence] += chunk.tokens
            assert done[sequence] == chunk.context
            assert chunk.last == (done[sequence] == tokens)
    assert done == [tokens] * batch


@given(batch=st.integers(1, 600), tokens=st.integers(1, 20000))
def test_activations_hold_every_chunk(batch: int, tokens: int) -> None:
    config = ParentConfig.from_dict(CONFIGS["Llama-3.1-70B"], name="llama-3.1-70b")
    largest = max(c.sequences * c.tokens for c in prefill_chunks(batch, tokens))
    assert largest <= PREFILL_CHUNK_TOKENS
    # Four streams of hidden values and the gate and up of the FFN per token; fp32 logits.
    needed = largest * (4 * 8192 + 2 * 28672) * 2 + batch * 128256 * 4
    reserved = activation_bytes(
        config, parse_dtype("bf16"), batch=batch, input_len=tokens, tp=1, widest_ffn=28672
    )
    assert reserved >= needed
