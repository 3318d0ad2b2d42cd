"""The heterogeneous decoder in PyTorch: subblocks of every kind, KV cache, generation."""

from puzzle_search.model.cache import KvCache
from puzzle_search.model.decoder import HeterogeneousDecoder
from puzzle_search.model.generate import Sampling, generate
from puzzle_search.model.rope import Rotary
from puzzle_search.model.subblocks import SubblockModule, make_subblock

__all__ = [
    "HeterogeneousDecoder",
    "KvCache",
    "Rotary",
    "Sampling",
    "SubblockModule",
    "generate",
    "make_subblock",
]
