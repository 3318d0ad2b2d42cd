from puzzle_search.runtime.attention.base import DecodeAttention
from puzzle_search.runtime.attention.sdpa import SdpaDecode, prefill_attention


def make_decode_attention(name, device, **shape):
    return SdpaDecode()
