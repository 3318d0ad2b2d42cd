"""How many experts a step reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def distinct_experts(
    experts: ArrayLike, top_k: ArrayLike, tokens: ArrayLike
) -> NDArray[np.float64]:
    """Experts that at least one of so many tokens passes, as expected of a uniform router.

    Each token passes ``top_k`` of them, chosen alike and independently of the others; a router
    that prefers some reads fewer. One token at least.
    """
    count, picked = np.asarray(experts, np.float64), np.asarray(top_k, np.float64)
    missed = (1 - picked / count) ** np.maximum(np.asarray(tokens, np.float64), 1.0)
    return np.asarray(count * (1 - missed))
