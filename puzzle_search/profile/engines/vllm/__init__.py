"""Measure a profile through an installed vLLM."""

from puzzle_search.profile.engines.vllm.grid import VllmGrid
from puzzle_search.profile.engines.vllm.measure import measure_vllm_profile
from puzzle_search.profile.engines.vllm.process import worker_command_of

__all__ = ["VllmGrid", "measure_vllm_profile", "worker_command_of"]
