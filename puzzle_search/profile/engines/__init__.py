"""Measure a profile through an installed serving engine, in processes of its own."""

from puzzle_search.profile.engines.engine import ServingEngine
from puzzle_search.profile.engines.grid import EngineGrid
from puzzle_search.profile.engines.llama_cpp import LlamaCpp
from puzzle_search.profile.engines.measure import measure_engine_profile
from puzzle_search.profile.engines.vllm import Vllm

ENGINES: dict[str, ServingEngine] = {"vllm": Vllm(), "llama.cpp": LlamaCpp()}
"""By the name that the command line takes."""

__all__ = ["ENGINES", "EngineGrid", "ServingEngine", "measure_engine_profile"]
