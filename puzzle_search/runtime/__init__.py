"""The child at speed: fused subblocks, a KV cache of fixed slots, attention, an engine."""
