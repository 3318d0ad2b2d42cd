"""The heterogeneous decoder in PyTorch: subblocks of every kind, KV cache, generation."""

from puzzle_search.model.cache import KvCache
from puzzle_search.model.decoder import HeterogeneousDecoder
from puzzle_search.model.generate import generate
from puzzle_search.model.rope import Rotary
from puzzle_search.model.sampling import Sampler, Sampling, draw
from puzzle_search.model.subblocks import SubblockModule, make_subblock

__all__ = [
    "HeterogeneousDecoder",
    "KvCache",
    "Rotary",
    "Sampler",
    "Sampling",
    "SubblockModule",
    "draw",
    "generate",
    "make_subblock",
]
