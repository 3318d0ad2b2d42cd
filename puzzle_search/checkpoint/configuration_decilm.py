"""The configuration class of a nemotron-nas folder, copied into it for engines to load.

Neither transformers nor vLLM know the type: published children bring such a class along, and
vLLM's model reads their blocks by attribute. This file runs in the engine's interpreter, where
this package need not be installed, so it imports nothing of it.
"""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig


class Entry(dict[str, Any]):
    """A JSON object whose keys are attributes too."""

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError as error:
            raise AttributeError(key) from error


def _entry(value: Any) -> Any:
    return (
        Entry({key: _entry(item) for key, item in value.items()})
        if isinstance(value, dict)
        else value
    )


class DeciLMConfig(LlamaConfig):
    """A Llama whose blocks differ; ``block_configs`` has one entry a block."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs: list[dict[str, Any]] | None = None, **kwargs: Any) -> None:
        # Sizes that differ by block are null in the file, where Llama's class wants numbers.
        given = {key: value for key, value in kwargs.items() if value is not None}
        super().__init__(**given)
        self.block_configs = [_entry(block) for block in block_configs or []]
