"""Serve a folder with vLLM and time its engine steps, on request.

Run as a script by an interpreter that has vLLM, which may be another than this package's:

    python vllm_worker.py FOLDER SETTINGS

SETTINGS is a JSON object: ``engine`` holds keyword arguments of ``vllm.LLM``, ``vocab_size`` bounds
the random prompt ids. JSON lines on standard input ask (``batch``, ``input_len``, ``output_len``),
JSON lines on standard output answer: first ``{"ready": identity}``, then ``{"steps": [[seconds,
sequences], ...]}``, one pair per engine step that gave tokens, with the seconds since the first
step began. ``{"failed": kind, "message": text}`` answers what could not be done.

Written against the published code of vLLM's V1 engine, 0.10 and 0.24. The engine core runs inside
this process, so that all requests wait before the first step. ``LLM.generate`` drives it; the one
thing hooked is ``get_output`` of its core, which runs one step and returns the new tokens of every
sequence.
"""

from __future__ import annotations

import json
import os
import platform
import random
import sys
import time
from pathlib import Path
from typing import Any, TextIO

_OUT_OF_MEMORY = ("out of memory", "KV cache", "cache blocks")


def main() -> None:
    """Load the folder, say so, and answer until standard input ends."""
    folder, settings = sys.argv[1], json.loads(sys.argv[2])
    # vLLM and its kernels print to standard output: what is theirs goes to the log.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import vllm
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        _answer(answers, {"failed": "missing", "message": str(error)})
        return
    try:
        llm = vllm.LLM(model=folder, **settings["engine"])
    except (RuntimeError, ValueError) as error:
        _answer(answers, _out_of_memory(error))
        return
    _answer(answers, {"ready": _identity(vllm.__version__, llm)})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            steps = run(llm, vllm.SamplingParams, settings["vocab_size"], **request)
        except (RuntimeError, ValueError) as error:
            _answer(answers, _out_of_memory(error))
            return
        _answer(answers, {"steps": steps})


def run(
    llm: Any, sampling: Any, vocab_size: int, *, batch: int, input_len: int, output_len: int
) -> list[tuple[float, int]]:
    """Seconds since the first step, and sequences that got a token, of every engine step."""
    core = llm.llm_engine.engine_core
    run_step = core.get_output
    steps: list[tuple[float, int]] = []
    begun: list[float] = []

    def timed_step() -> Any:
        begun.append(time.perf_counter())
        outputs = run_step()
        if outputs.outputs:
            steps.append((time.perf_counter() - begun[0], len(outputs.outputs)))
        return outputs

    prompts = [
        {"prompt_token_ids": random.choices(range(vocab_size), k=input_len)} for _ in range(batch)
    ]
    parameters = sampling(temperature=0.0, ignore_eos=True, max_tokens=output_len, detokenize=False)
    core.get_output = timed_step
    try:
        llm.generate(prompts, parameters, use_tqdm=False)
    finally:
        core.get_output = run_step
    return steps


def _identity(version: str, llm: Any) -> dict[str, Any]:
    """Software and device, and the tokens that the KV cache holds."""
    cache = llm.llm_engine.vllm_config.cache_config
    return {
        "engine": f"vllm {version}",
        "device": _device() | {"python": platform.python_version(), "vllm": version},
        "kv_tokens": cache.num_gpu_blocks * cache.block_size,
        "kv_block_tokens": cache.block_size,
    }


def _device() -> dict[str, Any]:
    import torch

    software = {"torch": str(torch.__version__)}
    if not torch.cuda.is_available():
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        threads = torch.get_num_threads()
        name = _processor()
        return software | {"kind": "cpu", "name": name, "threads": threads, "memory_bytes": memory}
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return software | {
        "kind": "cuda",
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _out_of_memory(error: Exception) -> dict[str, str]:
    """The answer for want of memory. Any other error ends this process, with its traceback."""
    if not any(mark in str(error) for mark in _OUT_OF_MEMORY):
        raise error
    return {"failed": "memory", "message": str(error).splitlines()[0]}


def _answer(answers: TextIO, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
