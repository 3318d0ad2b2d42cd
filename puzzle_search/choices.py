"""Names with a fixed meaning, as options, recipes and functions take them.

No library is imported here: the command line lists these names in ``--help``.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from puzzle_search.errors import InputError

Goal = Literal["score", "throughput", "memory", "latency", "ttft", "tpot", "parameters", "kv"]
TableGoal = Literal["score", "latency", "memory", "parameters"]
Axis = Literal["throughput", "memory", "latency"]
Backend = Literal["scip", "highs", "cp-sat"]

ServingMode = Literal["in-flight", "static"]

# Engines of which it is known what children they load.
LoadingEngine = Literal["trtllm", "vllm", "sglang", "llama.cpp", "mlx-lm", "transformers"]

# Precisions that models are served in, those of them that can be measured here, and those that
# torch computes in here.
ServingDtype = Literal["nvfp4", "fp8", "bf16", "fp32"]
MeasuredDtype = Literal["fp8", "bf16", "fp32"]
TorchDtype = Literal["fp32", "bf16"]

DeviceName = Literal["cpu", "cuda"]
ExecutorName = Literal["local", "ray"]
ProfileEngine = Literal["torch", "vllm"]
Tracker = Literal["tensorboard", "wandb", "trackio"]


def check(what: str, name: str, choices: Any) -> None:
    """Refuse a name that is none of the choices.

    Args:
        what: is named, such as ``goal``.
        name: as it was given.
        choices: one of the literal types above.

    Raises:
        InputError: it is not known.
    """
    if name not in get_args(choices):
        raise InputError(
            f"{what} {name!r} is not known", remedy=f"use one of {', '.join(get_args(choices))}"
        )
