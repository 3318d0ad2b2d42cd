"""The experts of a parent whose FFNs are mixtures of experts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SwigluClamp:
    """Experts whose channels are ``gate * sigmoid(gain * gate) * (up + 1)``, of clamped halves.

    The gate is at most ``limit``, up within it on both sides (gpt-oss).
    """

    limit: float
    gain: float


@dataclass(frozen=True, kw_only=True)
class Experts:
    """Every FFN is a router and experts of the parent's ``intermediate_size``.

    Attributes:
        count: experts of a layer.
        top_k: how many of them a token passes.
        renormalised: whether the gates of a token, softmax values over all experts, are divided by
            their sum over the experts that it passes.
        bias: of the router and of both matrices of every expert.
        clamp: None of experts that are plain SwiGLU.
    """

    count: int
    top_k: int
    renormalised: bool
    bias: bool = False
    clamp: SwigluClamp | None = None
