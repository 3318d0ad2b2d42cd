"""Exported children for transformers' Auto classes, where this package is installed."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM

from puzzle_search.checkpoint.modeling_puzzle_search import (
    PuzzleSearchConfig,
    PuzzleSearchForCausalLM,
)


def register_transformers() -> None:
    """Let ``AutoModelForCausalLM`` load exported children without ``trust_remote_code``."""
    AutoConfig.register(PuzzleSearchConfig.model_type, PuzzleSearchConfig, exist_ok=True)
    AutoModelForCausalLM.register(PuzzleSearchConfig, PuzzleSearchForCausalLM, exist_ok=True)
