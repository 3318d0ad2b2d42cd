"""Successive halving: who goes on, and what it costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzle_search.distill.halving import best_child, probe_tokens, successive_halving
from puzzle_search.errors import InputError

BATCH = 64


@given(children=st.integers(2, 40), batches=st.integers(1, 200))
def test_probes_cost_at_most_what_is_given_and_all_rungs_alike(children: int, batches: int) -> None:
    rungs = int(np.ceil(np.log2(children)))
    tokens = children * rungs * batches * BATCH
    each = probe_tokens(children, tokens, BATCH)
    assert len(each) == rungs
    left, spent = children, 0
    for share in each:
        assert share >= BATCH
        assert share % BATCH == 0
        # Less than a batch for each child is lost to whole batches.
        assert 0 <= tokens / rungs - share * left < BATCH * left
        spent += share * left
        left = -(-left // 2)
    assert spent <= tokens


def test_too_few_tokens_are_refused_with_how_many_it_takes() -> None:
    with pytest.raises(InputError, match="too few for probes of 8 children") as caught:
        probe_tokens(8, 8 * 3 * BATCH - 1, BATCH)
    assert "1,536" in (caught.value.remedy or "")
    assert probe_tokens(8, 1536, BATCH) == [64, 128, 256]


@given(st.data(), st.integers(2, 16))
def test_the_better_half_goes_on_and_the_best_of_the_last_rung_is_chosen(
    data: st.DataObject, children: int
) -> None:
    rungs = len(probe_tokens(children, 10**6, BATCH))
    losses = data.draw(
        st.lists(
            st.lists(st.floats(0, 10), min_size=children, max_size=children, unique=True),
            min_size=rungs,
            max_size=rungs,
        )
    )
    probes = successive_halving(children, [BATCH] * rungs, lambda n, rung, _: losses[rung][n])
    left = set(range(children))
    for rung in range(rungs):
        assert {one.child for one in probes if one.rung == rung} == left
        ranked = sorted(left, key=lambda n: losses[rung][n])
        best, left = ranked[0], set(ranked[: (len(ranked) + 1) // 2])
    assert best_child(probes) == best
