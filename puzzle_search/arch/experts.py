"""The experts of a parent whose FFNs are mixtures of experts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Experts:
    """Every FFN is a router and experts of the parent's ``intermediate_size``.

    Attributes:
        count: experts of a layer.
        top_k: how many of them a token passes.
        renormalised: whether the gates of a token, softmax values over all experts, are divided by
            their sum over the experts that it passes.
    """

    count: int
    top_k: int
    renormalised: bool
