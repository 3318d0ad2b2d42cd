"""How much each layer matters, told by what published children kept of theirs.

A child that was cut to a budget gave up first what it missed least. So its choices, put in order
(whole, narrower, linear, left out), say between which quantiles of the damage each layer lies, and
nothing more. That is the only evidence used here:

    u(layer) = prior(depth) + shared(depth) + family(layer)              what is sought
    u + own(depth) + noise   lies in the interval that the child's choice tells

`u` is the logarithm of the damage, standardised over the layers of a model; depth goes from 0 to 1.
`shared` is a smooth curve that all Llamas of a generation have in common, `family` what two parents
share that were post-trained from the same weights, `own` a smooth departure of one child. All three
are Gaussian processes; the posterior is Laplace's approximation (the likelihood is log-concave).

The prior is of public knowledge: what lies between half and nine tenths of the depth matters least,
the first layers and the last one or two most (arXiv 2403.03853, 2403.17887, 2406.15786, 2407.15516;
read for their conclusions, no figure is taken from them). It is the same for attention and FFN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from puzzle_search.arch import ArchitectureSpec, Gqa, Mlp, Subblock

Floats = NDArray[np.float64]

SUBBLOCKS: tuple[Subblock, Subblock] = ("attention", "ffn")
# The prior: a V with its lowest point in the middle of 0.5 to 0.9, and a rise towards either end.
LEAST_DEPTH, END_DEPTH = 0.7, 0.02
PRIOR_MEAN, PRIOR_DEVIATION = np.array([4.0, 1.0, 1.0]), np.array([1.0, 1.0, 1.0])
LEVEL_DEVIATION = 0.3
# Standard deviations of the parts, in units of the spread over layers; stated, not fitted.
SHARED, FAMILY, OWN, NOISE = 0.5, 0.4, 0.5, 0.6
FAMILY_LENGTH = 0.01  # about one layer
# Depth over which the smooth parts change; the one constant chosen by leaving children out.
LENGTHS = (0.05, 0.1, 0.2, 0.4)
NEWTON_STEPS, NEWTON_DAMPING = 100, 0.7


@dataclass(frozen=True, kw_only=True)
class Child:
    """A published child by layers of its parent.

    Attributes:
        name: for people.
        family: parents of one family were post-trained from the same weights.
        kept: for each subblock what is left, (layers,); only its order is used.
    """

    name: str
    family: str
    kept: dict[Subblock, Floats]

    @classmethod
    def of(cls, name: str, family: str, spec: ArchitectureSpec) -> Child:
        """From its layers; a block in place of several counts as equal parts of them."""
        widths = [
            block.ffn_variant.intermediate_size / len(block.layers)
            if isinstance(block.ffn_variant, Mlp)
            else float(block.ffn == "linear")
            for block in spec.blocks
        ]
        # What was fused had widths of the search space, which single blocks have.
        single = np.array([w for w, b in zip(widths, spec.blocks, strict=True) if not b.layers[1:]])
        ffn = [float(single[np.abs(single - width).argmin()]) for width in widths]
        attention = [
            1.0 + block.attention_variant.kv_heads
            if isinstance(block.attention_variant, Gqa)
            else float(block.attention == "linear")
            for block in spec.blocks
        ]
        sizes = [len(block.layers) for block in spec.blocks]
        kept: dict[Subblock, Floats] = {
            "attention": np.repeat(attention, sizes),
            "ffn": np.repeat(ffn, sizes),
        }
        return cls(name=name, family=family, kept=kept)

    @property
    def depths(self) -> Floats:
        """(layers,), the middle of each layer; the whole parent is 1."""
        layers = len(self.kept["ffn"])
        return (np.arange(layers) + 0.5) / layers

    def intervals(self, subblock: Subblock) -> tuple[Floats, Floats]:
        """(layers,), quantiles between which each layer's damage lies, in standard deviations."""
        kept = self.kept[subblock]
        below = np.array([(kept < value).mean() for value in kept])
        up_to = np.array([(kept <= value).mean() for value in kept])
        return norm.ppf(below), norm.ppf(up_to)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Standardised log damage at some depths: (depths,) each."""

    mean: Floats
    variance: Floats

    def log_probability(self, child: Child, subblock: Subblock) -> float:
        """Mean log probability of a child's choices that the curve has not seen."""
        low, high = child.intervals(subblock)
        deviation = np.sqrt(self.variance + OWN**2 + NOISE**2)
        inside = norm.cdf((high - self.mean) / deviation) - norm.cdf((low - self.mean) / deviation)
        return float(np.log(np.maximum(inside, 1e-9)).mean())


@dataclass(frozen=True, kw_only=True)
class _Layers:
    """Layers of one or several models: depth, number of the family, number of the child."""

    depth: Floats
    family: NDArray[np.intp]
    child: NDArray[np.intp]

    def prior(self) -> Floats:
        """(layers, 3), what the prior is made of: the V less a constant, and a rise at each end."""
        away = np.abs(self.depth - LEAST_DEPTH)
        ends = np.exp(-self.depth / END_DEPTH), np.exp((self.depth - 1) / END_DEPTH)
        return np.stack([away - 0.25, *ends], axis=1)

    def covariance(self, other: _Layers, length: float) -> Floats:
        """(layers, other layers), of `u`."""
        near = partial(_near, self.depth, other.depth)
        family = self.family[:, None] == other.family
        prior: Floats = (self.prior() * PRIOR_DEVIATION**2) @ other.prior().T
        return (
            prior
            + LEVEL_DEVIATION**2
            + SHARED**2 * near(length)
            + FAMILY**2 * family * near(FAMILY_LENGTH)
        )

    def own(self, length: float) -> Floats:
        """(layers, layers), of departures of a child."""
        near = _near(self.depth, self.depth, length)
        return OWN**2 * (self.child[:, None] == self.child) * near


def _near(one: Floats, other: Floats, length: float) -> Floats:
    return np.exp(-0.5 * ((one[:, None] - other) / length) ** 2)


def posterior(children: Sequence[Child], subblock: Subblock, at: Child, length: float) -> Curve:
    """The curve of a parent, at the depths of one of its children, seen from other children."""
    families = sorted({child.family for child in (*children, at)})
    seen = _Layers(
        depth=np.concatenate([child.depths for child in children]),
        family=np.concatenate([np.full(len(c.depths), families.index(c.family)) for c in children]),
        child=np.concatenate([np.full(len(c.depths), n) for n, c in enumerate(children)]),
    )
    family = np.full(len(at.depths), families.index(at.family))
    asked = _Layers(depth=at.depths, family=family, child=np.full(len(at.depths), -1))
    low, high = (
        np.concatenate(ends)
        for ends in zip(*(child.intervals(subblock) for child in children), strict=True)
    )
    prior, covariance = seen.prior() @ PRIOR_MEAN, seen.covariance(seen, length) + seen.own(length)
    latent = prior
    for _ in range(NEWTON_STEPS):
        slope, curvature = _likelihood(latent, low, high)
        noisy = covariance + np.diag(1 / curvature)
        weights = np.linalg.solve(noisy, latent - prior + slope / curvature)
        step = prior + covariance @ weights - latent
        latent = latent + NEWTON_DAMPING * step
        if np.abs(step).max() < 1e-8:
            break
    across = asked.covariance(seen, length)
    left = asked.covariance(asked, length) - across @ np.linalg.solve(noisy, across.T)
    return Curve(mean=asked.prior() @ PRIOR_MEAN + across @ weights, variance=np.diag(left))


def _likelihood(latent: Floats, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Slope and negative curvature of the log probability that latent + noise is in between."""
    a, b = (low - latent) / NOISE, (high - latent) / NOISE
    inside = np.maximum(norm.cdf(b) - norm.cdf(a), 1e-10)
    at_a, at_b = norm.pdf(a) / inside, norm.pdf(b) / inside
    slope = at_a - at_b
    moment = np.where(np.isfinite(a), a, 0.0) * at_a - np.where(np.isfinite(b), b, 0.0) * at_b
    curvature = np.maximum(slope**2 - moment, 1e-4)
    return slope / NOISE, curvature / NOISE**2


def best_length(children: Sequence[Child]) -> float:
    """The length at which children are predicted best from each other."""

    def likely(length: float) -> float:
        return sum(
            posterior(others, subblock, child, length).log_probability(child, subblock)
            for child, others in left_out(children)
            for subblock in SUBBLOCKS
        )

    return max(LENGTHS, key=likely)


def left_out(children: Sequence[Child]) -> Iterator[tuple[Child, list[Child]]]:
    """Each child with the others."""
    for child in children:
        yield child, [other for other in children if other is not child]
