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

# Engines that `serve` starts.
ServingEngine = Literal["llama.cpp", "vllm"]

ServingMode = Literal["in-flight", "static"]

# Engines of which it is known what children they load.
LoadingEngine = Literal[
    "trtllm", "vllm", "vllm-plugin", "sglang", "llama.cpp", "mlx-lm", "transformers"
]

# Precisions that models are served in, those of them that the runtime serves here, those that an
# engine can be profiled in, and those that torch computes in here. The last three of the first are
# those of GGUF files.
ServingDtype = Literal[
    "nvfp4", "mxfp4", "mxfp4_kv_fp8", "fp8", "bf16", "fp32", "f16", "q8_0", "q4_0"
]
MeasuredDtype = Literal["fp8", "bf16", "fp32"]
ProfileDtype = Literal["fp8", "bf16", "fp32", "f16", "q8_0", "q4_0"]
TorchDtype = Literal["fp32", "bf16"]
ComputeDtype = Literal["auto", "fp32", "bf16"]

DeviceName = Literal["cpu", "cuda"]
ExecutorName = Literal["local", "ray"]
ProfileEngine = Literal["torch", "vllm", "llama.cpp"]
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
