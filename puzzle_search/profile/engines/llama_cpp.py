"""The children that a variant is measured in by llama.cpp: GGUF files of random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from puzzle_search.arch import ArchitectureSpec, Mlp, ParentConfig, SearchSpace, shape_of
from puzzle_search.arch.variants import Shape
from puzzle_search.cost import Dtype
from puzzle_search.engines import LLAMA_CPP
from puzzle_search.errors import InputError
from puzzle_search.export.gguf_file import write_gguf
from puzzle_search.export.gguf_plan import plan_gguf
from puzzle_search.profile.engines.engine import ServingEngine
from puzzle_search.profile.engines.grid import EngineGrid
from puzzle_search.profile.engines.stacks import Skipped, Stack, measurable
from puzzle_search.solve.problem.portability import allows

_SCALE = 0.02  # of random weights; their values cost no time


class LlamaCpp(ServingEngine):
    """llama.cpp on this machine's processor, out of the wheel ``xllamacpp``."""

    installed = LLAMA_CPP
    dtypes = ("q8_0", "f16", "q4_0")
    chunk_tokens = 2048
    side_by_side = True

    def stacks(
        self, config: ParentConfig, space: SearchSpace, tp_degrees: Sequence[int]
    ) -> tuple[list[Stack], Skipped]:
        """Every variant that llama.cpp computes; attention beside the narrowest FFN.

        It drops attention without an FFN in silence, so that attention is never measured alone.
        """
        if tuple(tp_degrees) != (1,):
            raise InputError("llama.cpp is profiled on one processor", remedy="leave out --tp")
        variants = list(measurable(space))
        widths = [v.intermediate_size for _, _, v in variants if isinstance(v, Mlp)]
        if not widths:
            raise InputError(
                f"llama.cpp is profiled beside an FFN, and the space of {config.name} has none "
                "but experts",
                remedy="profile with --engine torch",
            )
        narrowest = f"mlp_{min(widths)}"
        shared = Stack(subblock="ffn", name=narrowest, tp=1, config=config, local=narrowest)
        found: list[Stack] = [shared]
        skipped: Skipped = []
        for subblock, name, _ in variants:
            pair = (name, shared.name) if subblock == "attention" else ("no_op", name)
            stack = replace(shared, subblock=subblock, name=name, local=name)
            if not allows(self.installed.name, *pair, 1, config):
                skipped.append({"point": str(stack), "why": "llama.cpp does not compute it"})
            elif stack != shared:
                beside = shared if subblock == "attention" or shape_of(name) == "linear" else None
                found.append(replace(stack, beside=beside))
        return found, skipped

    def write(self, stack: Stack, blocks: int, dtype: Dtype, folder: Path) -> None:
        """Write ``model.gguf``, its weights random and its tokenizer one of as many tokens."""
        config = stack.config
        folder.mkdir(parents=True, exist_ok=True)
        plan = plan_gguf(config, _spec(stack, blocks), _RandomWeights(), dtype.name)
        plan = replace(plan, header=plan.header | _tokenizer(config.vocab_size))
        (folder / "model.gguf").unlink(missing_ok=True)
        write_gguf(plan, folder / "model.gguf")

    def settings(self, dtype: Dtype, grid: EngineGrid) -> dict[str, Any]:
        """The sizes that the server is started with; the types are the file's."""
        return {
            "max_batch": grid.max_batch,
            "max_length": grid.max_length,
            "chunk_tokens": grid.chunk_tokens,
            "keep_prompts": True,  # of runs whose decode steps are timed
        }


def _spec(stack: Stack, blocks: int) -> ArchitectureSpec:
    """Repeats, after one block of other attention where they have none: it wants some."""
    beside = stack.beside.local if stack.beside else "no_op"
    if stack.subblock == "ffn":
        pairs = [("gqa_1", beside)] + [("no_op", stack.local)] * blocks
    elif shape_of(stack.local) == "linear":
        pairs = [("gqa_1", beside)] + [(stack.local, beside)] * blocks
    else:
        pairs = [(stack.local, beside)] * blocks
    return ArchitectureSpec.of(stack.config.name, pairs)


class _RandomWeights:
    """In the place of a checkpoint."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def tensor(self, name: str, shape: Shape) -> torch.Tensor:
        """The same row everywhere would do; random ones keep any engine from finding that out."""
        return _SCALE * torch.randn(shape, generator=self._generator)


def _tokenizer(vocab_size: int) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [f"<{number}>" for number in range(vocab_size)],
        "tokenizer.ggml.token_type": [1] * vocab_size,
        "tokenizer.ggml.merges": ["< 0"],
        "tokenizer.ggml.eos_token_id": vocab_size - 1,
    }
