"""Mixture-of-experts FFNs: what a parent has, and the variants that keep a part of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from puzzle_search.arch.config import ParentConfig
from puzzle_search.arch.weight_types import Weighted
from puzzle_search.errors import InputError

WIDTH_MULTIPLE = 8
"""Of an expert's width: grouped products in 16 bits take rows of whole 16 bytes."""

MOE_FORMS = "moe_<experts>, moe_<experts>_top_<k>, moe_<experts>_width_<w>"
_SIZE = "([1-9][0-9]{0,8})"
_PATTERN = re.compile(rf"moe_{_SIZE}(?:_top_{_SIZE})?(?:_width_{_SIZE})?")


@dataclass(frozen=True)
class Moe(Weighted):
    """SwiGLU experts of which a router picks some for each token (Shazeer et al. 2017).

    Attributes:
        experts: how many there are.
        top_k: how many a token passes; None for as many as in the parent.
        width: intermediate size of each; None for the parent's.
    """

    experts: int
    top_k: int | None = None
    width: int | None = None
    kind = "moe"

    @property
    def shape(self) -> str:
        """Experts, and what differs from the parent's."""
        top_k = "" if self.top_k is None else f"_top_{self.top_k}"
        return f"moe_{self.experts}{top_k}" + ("" if self.width is None else f"_width_{self.width}")

    def top_k_in(self, config: ParentConfig) -> int:
        """Experts that a token passes in a child of this parent."""
        assert config.experts is not None
        return self.top_k or config.experts.top_k

    def width_in(self, config: ParentConfig) -> int:
        """Intermediate size of each expert in a child of this parent."""
        return self.width or config.intermediate_size

    def tensors(self, config: ParentConfig) -> dict[str, tuple[int, ...]]:
        """Weights by name within the subblock: (experts, in) of the router, (experts, out, in).

        Gate and up stand in one tensor, the gate first. Biases, if any, are (experts, out).
        """
        hidden, width = config.hidden_size, self.width_in(config)
        shapes: dict[str, tuple[int, ...]] = {
            "gate.weight": (self.experts, hidden),
            "experts.gate_up_proj": (self.experts, 2 * width, hidden),
            "experts.down_proj": (self.experts, hidden, width),
        }
        assert config.experts is not None
        if config.experts.bias:
            shapes |= {
                "gate.bias": (self.experts,),
                "experts.gate_up_proj_bias": (self.experts, 2 * width),
                "experts.down_proj_bias": (self.experts, hidden),
            }
        return shapes


def parse_moe(text: str) -> Moe | None:
    """The variant of a canonical string, None if it is of another kind."""
    match = _PATTERN.fullmatch(text)
    if match is None:
        return None
    experts, top_k, width = (None if size is None else int(size) for size in match.groups())
    assert experts is not None
    return Moe(experts, top_k, width)


def check_moe(variant: Moe, config: ParentConfig) -> None:
    """Check that a variant fits a parent.

    Raises:
        InputError: the parent has no experts, fewer or narrower ones, or a token cannot pass as
            many; or a size is written that is the parent's own.
    """
    own = config.experts
    if own is None:
        raise InputError(
            f"{variant} does not fit {config.name}, which has no experts",
            remedy=f"use mlp_<size> up to {config.ffn}, linear or no_op",
        )
    if variant.experts > own.count:
        raise InputError(
            f"{variant} has more experts than {config.name} ({own.count})",
            remedy="name a number up to the parent's",
        )
    top_k = variant.top_k_in(config)
    if top_k > min(variant.experts, own.top_k):
        raise InputError(
            f"{variant}: a token cannot pass {top_k} of {variant.experts} experts; in "
            f"{config.name} it passes {own.top_k}",
            remedy=f"write moe_{variant.experts}_top_{min(variant.experts, own.top_k)}, or less",
        )
    width = variant.width_in(config)
    if width > config.intermediate_size or (
        variant.width is not None and variant.width % WIDTH_MULTIPLE
    ):
        raise InputError(
            f"{variant}: the width of an expert is a multiple of {WIDTH_MULTIPLE} up to that of "
            f"{config.name} ({config.intermediate_size})",
            remedy="name such a width",
        )
    if variant.top_k == own.top_k or variant.width == config.intermediate_size:
        raise InputError(
            f"{variant} writes a size that {config.name} has itself",
            remedy="leave it out, so that each variant has one name",
        )
