"""What grids cover, against the steps that an engine makes of a prefill."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzle_search.arch import ParentConfig
from puzzle_search.cost import Scenario
from puzzle_search.cost.chunks import prefill_chunks
from puzzle_search.errors import InputError
from puzzle_search.profile import ProfileGrid, Sizes


def test_a_range_is_spanned_and_a_list_is_taken_as_it_is() -> None:
    assert Sizes.parse("1-64", "--batches") == Sizes(sizes=(1, 4, 16, 64), exact=False)
    assert Sizes.parse("1-100", "--batches").sizes == (1, 4, 16, 100)
    assert Sizes.parse("7-7", "--batches").sizes == (7,)
    assert Sizes.parse("8,1,8", "--batches") == Sizes(sizes=(1, 8), exact=True)


@pytest.mark.parametrize("text", ["", "0", "1,", "4-1", "1-4,8", "a", "1--4", "-4"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--contexts") as caught:
        Sizes.parse(text, "--contexts")
    assert "1-64" in caught.value.remedy


def test_a_grid_around_a_scenario_covers_it_and_measures_no_batch_twice() -> None:
    grid = ProfileGrid.around(Scenario(input_len=16, output_len=16), batches=(4, 1, 4))
    assert grid.batches == (1, 4)
    assert grid.prompts == (16,)
    assert grid.contexts == (17, 32)
    single = ProfileGrid.around(Scenario(input_len=16, output_len=1), batches=(1,))
    assert single.contexts == (17,)


def test_a_grid_around_scenarios_covers_all() -> None:
    scenarios = [Scenario(input_len=16, output_len=16), Scenario(input_len=8, output_len=4)]
    grid = ProfileGrid.around(*scenarios, batches=(2,), tp=(2, 1))
    assert grid.contexts == (9, 12, 17, 32)
    assert grid.prompts == (8, 16)
    assert grid.tp == (1, 2)


def test_the_whole_grid_reaches_as_far_as_the_parent(pico_config: ParentConfig) -> None:
    grid = ProfileGrid.spanning(pico_config)
    assert grid.batches == (1, 4, 16, 64, 256, 1024)
    assert grid.contexts == grid.prompts == (128,)
    far = dataclasses.replace(pico_config, max_position_embeddings=131072)
    assert ProfileGrid.spanning(far).contexts == (128, 512, 2048, 8192, 32768)
    exact = ProfileGrid.spanning(far, batches=Sizes(sizes=(3,), exact=True))
    assert not exact.adaptive


def test_lengths_that_the_parent_does_not_attend_to_are_refused(pico_config: ParentConfig) -> None:
    grid = ProfileGrid(batches=(1,), contexts=(129,), prompts=(8,))
    with pytest.raises(InputError, match="129 tokens are more than pico attends to"):
        grid.check(pico_config)


def test_a_tp_degree_that_does_not_divide_the_heads_is_refused(pico_config: ParentConfig) -> None:
    grid = ProfileGrid(batches=(1,), contexts=(8,), prompts=(8,), tp=(1, 8))
    with pytest.raises(InputError, match="TP 8 does not divide the 4 query heads"):
        grid.check(pico_config)


def test_prompts_between_the_knots_may_fill_a_chunk_better() -> None:
    grid = ProfileGrid(batches=(2,), contexts=(1,), prompts=(1, 4), chunk_tokens=6)
    assert max(grid.rows()) == 2 * 3  # two prompts of three tokens


@given(
    batches=st.sets(st.integers(1, 40), min_size=1, max_size=3),
    prompts=st.sets(st.integers(1, 300), min_size=1, max_size=3),
    chunk_tokens=st.integers(1, 128),
    data=st.data(),
)
def test_every_step_of_a_prefill_lies_between_the_knots(
    batches: set[int], prompts: set[int], chunk_tokens: int, data: Any
) -> None:
    grid = ProfileGrid(
        batches=tuple(sorted(batches)),
        contexts=(1,),
        prompts=tuple(sorted(prompts)),
        chunk_tokens=chunk_tokens,
    )
    batch = data.draw(st.integers(min(batches), max(batches)))
    prompt = data.draw(st.integers(min(prompts), max(prompts)))
    new, before = grid.histories()
    for chunk in prefill_chunks(batch, prompt, chunk_tokens):
        assert min(grid.chunk_sequences()) <= chunk.sequences <= max(grid.chunk_sequences())
        assert min(grid.chunk_lengths()) <= chunk.tokens <= max(grid.chunk_lengths())
        assert min(grid.rows()) <= chunk.sequences * chunk.tokens <= max(grid.rows())
        assert min(grid.head_batches()) <= chunk.sequences <= max(grid.head_batches())
        history = chunk.context - chunk.tokens
        if history:  # less than any measured is between it and none
            assert chunk.tokens <= max(new)
            assert history <= max(before)
    assert min(grid.rows()) <= batch <= max(grid.rows())


@given(
    batches=st.sets(st.integers(1, 40), min_size=1, max_size=3),
    prompts=st.sets(st.integers(1, 300), min_size=1, max_size=3),
    chunk_tokens=st.integers(1, 128),
)
def test_an_exact_grid_has_the_steps_of_its_own_prefills(
    batches: set[int], prompts: set[int], chunk_tokens: int
) -> None:
    grid = ProfileGrid(
        batches=tuple(batches),
        contexts=(1,),
        prompts=tuple(prompts),
        chunk_tokens=chunk_tokens,
        adaptive=False,
    )
    chunks = [c for b in batches for p in prompts for c in prefill_chunks(b, p, chunk_tokens)]
    assert grid.chunk_sequences() == sorted({chunk.sequences for chunk in chunks})
    assert grid.chunk_lengths() == sorted({chunk.tokens for chunk in chunks})
    assert {c.sequences * c.tokens for c in chunks} | batches <= set(grid.rows())
    histories = {c.context - c.tokens for c in chunks} - {0}
    assert grid.histories()[1] == sorted(histories)
