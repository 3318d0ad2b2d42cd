"""How many experts a step reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def distinct_experts(experts: int, top_k: int, tokens: ArrayLike) -> NDArray[np.float64]:
    """Experts that at least one of so many tokens passes, as expected of a uniform router.

    Each token passes ``top_k`` of them, chosen alike and independently of the others; a router
    that prefers some reads fewer. One token at least.
    """
    missed = (1 - top_k / experts) ** np.maximum(np.asarray(tokens, np.float64), 1.0)
    return np.asarray(experts * (1 - missed))
