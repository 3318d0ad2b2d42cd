"""Children for other libraries' own ways to load a model, where this package is installed."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM

from puzzle_search.checkpoint.child import OWN_TYPE, STOCK_TYPE
from puzzle_search.checkpoint.configuration_decilm import DeciLMConfig

_ARCHITECTURE = "PuzzleSearchForCausalLM"


def register_transformers() -> None:
    """Let ``AutoModelForCausalLM`` load exported children without ``trust_remote_code``."""
    from puzzle_search.checkpoint.modeling_puzzle_search import (
        PuzzleSearchConfig,
        PuzzleSearchForCausalLM,
    )

    AutoConfig.register(PuzzleSearchConfig.model_type, PuzzleSearchConfig, exist_ok=True)
    AutoModelForCausalLM.register(PuzzleSearchConfig, PuzzleSearchForCausalLM, exist_ok=True)


class ChildConfig(DeciLMConfig):
    """A ``nemotron-nas`` folder for vLLM: a child that `build` wrote is of this package's class."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        if "puzzle_search" in given:
            self.architectures = [_ARCHITECTURE]
            # The instance's alone: by the other type vLLM looks for KV heads in its own way.
            vars(self)["model_type"] = OWN_TYPE


class OwnChildConfig(ChildConfig):
    """A folder of a child that ``nemotron-nas`` cannot say."""

    model_type = OWN_TYPE
    __init__ = ChildConfig.__init__  # transformers would make one that takes no nulls


def register_vllm() -> None:
    """The entry point ``vllm.general_plugins``: vLLM serves children as `build` writes them."""
    from vllm import ModelRegistry

    AutoConfig.register(STOCK_TYPE, ChildConfig, exist_ok=True)
    AutoConfig.register(OWN_TYPE, OwnChildConfig, exist_ok=True)
    ModelRegistry.register_model(_ARCHITECTURE, f"puzzle_search.export.vllm_model:{_ARCHITECTURE}")
