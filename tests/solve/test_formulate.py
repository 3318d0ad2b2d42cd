"""Questions that do not fit together."""

from __future__ import annotations

import numpy as np
import pytest

from puzzle_search.arch import SearchSpace
from puzzle_search.cost import OperatingPoint
from puzzle_search.errors import InputError
from puzzle_search.solve import Limits, Workload, formulate
from tests.solve.helpers import random_scores, table_of, tiny_config


def test_costs_of_another_space_are_refused() -> None:
    config = tiny_config()
    space = SearchSpace.uniform(config, attention=["gqa_2", "linear"], ffn=["mlp_32", "no_op"])
    scores = random_scores(config, space, np.random.default_rng(0))
    points = [OperatingPoint(batch=1, tp=1)]

    def ask(priced: SearchSpace) -> object:
        costs = table_of(config, priced, points)
        return formulate(config, space, scores, [Workload(table=costs, limits=Limits())])

    assert ask(space)
    narrower = SearchSpace.uniform(config, attention=["gqa_2"], ffn=["mlp_32", "no_op"])
    with pytest.raises(InputError, match="prices attention variants gqa_4, gqa_2; the search"):
        ask(narrower)
    turned = SearchSpace.uniform(config, attention=["gqa_2", "linear"], ffn=["no_op", "mlp_32"])
    with pytest.raises(InputError, match="prices FFN variants") as caught:
        ask(turned)
    assert "cost_table" in caught.value.remedy
