"""Attention with fewer KV heads: one file a method."""
