"""Serve a GGUF file with llama.cpp and time its engine steps, on request.

Run as a script by an interpreter that has xllamacpp; it imports nothing else:

    python llama_cpp_worker.py MODEL SETTINGS

MODEL is a GGUF file, or a folder with a ``model.gguf``. SETTINGS is a JSON object: ``max_batch``,
``max_length`` (tokens of each sequence), ``chunk_tokens``, ``vocab_size``, which bounds the random
prompt ids, and ``keep_prompts``: whether the server may find a prompt of more than one output token
in its cache when it comes again. The
protocol is that of vLLM's worker: ``{"ready": identity}``, then an answer ``{"steps": [[seconds,
sequences], ...]}`` for every ``{"batch": n, "input_len": n, "output_len": n}``. To a request of the
server's own, ``{"path": path, "body": body}``, it answers ``{"text": piece}`` as they come, and
``{"end": null}``, or why the server refuses: ``{"end": reason}``.

Prompts reach the server in one request, so that they wait together; a sequence gives one token a
step, so that a second one of the same sequence is the next step's.
"""

from __future__ import annotations

import http.client
import importlib.metadata
import json
import os
import platform
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

PROMPT_SEED = 0


def main() -> None:
    """Load the file, say so, and answer until standard input ends."""
    file, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    if file.is_dir():
        file /= "model.gguf"
    # The engine logs to standard output as well: what is its own goes to the log.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        import xllamacpp
    except ModuleNotFoundError as error:
        if error.name != "xllamacpp":
            raise
        _answer(answers, {"failed": "missing", "message": str(error)})
        return
    threads = len(os.sched_getaffinity(0))
    server = xllamacpp.Server(_parameters(xllamacpp, file, settings, threads))
    host = server.listening_address.partition("//")[2]
    _answer(answers, {"ready": _identity(xllamacpp, settings, threads)})
    for line in sys.stdin:
        request = json.loads(line)
        if "path" not in request:
            _answer(answers, {"steps": run(host, settings, **request)})
            continue
        refused = None
        try:
            for piece in write(host, request["path"], request["body"]):
                _answer(answers, {"text": piece})
        except ValueError as error:
            refused = str(error)
        _answer(answers, {"end": refused})


def run(
    host: str, settings: dict[str, Any], *, batch: int, input_len: int, output_len: int
) -> list[tuple[float, int]]:
    """Seconds since the request, and sequences that got a token, of every engine step."""
    numbers, ids = random.Random(PROMPT_SEED), range(settings["vocab_size"])
    body = {
        "prompt": [numbers.choices(ids, k=input_len) for _ in range(batch)],
        "n_predict": output_len,
        "stream": True,
        "ignore_eos": True,
        "cache_prompt": settings["keep_prompts"] and output_len > 1,
        "temperature": 0,
        "samplers": [],
    }
    connection = http.client.HTTPConnection(host)
    connection.connect()
    begun = time.perf_counter()
    connection.request(
        "POST", "/completion", json.dumps(body), {"Content-Type": "application/json"}
    )
    steps: list[tuple[float, int]] = []
    seen: set[int] = set()
    for line in connection.getresponse():
        if not line.startswith(b"data: {"):
            continue
        seconds = time.perf_counter() - begun
        chunk = json.loads(line[len(b"data: ") :])
        if "error" in chunk:
            raise RuntimeError(chunk["error"])
        if chunk["stop"]:
            continue
        if chunk["index"] in seen:
            seen.clear()
        if not seen:
            steps.append((seconds, 0))
        seen.add(chunk["index"])
        steps[-1] = (steps[-1][0], len(seen))
    connection.close()
    return steps


def write(host: str, path: str, body: dict[str, Any]) -> Iterator[str]:
    """Pieces of a completion or of a chat's answer, as they come.

    Raises:
        ValueError: the server refuses.
    """
    connection = http.client.HTTPConnection(host)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", path, json.dumps(body | {"stream": True}), headers)
    response = connection.getresponse()
    if response.status != http.client.OK:
        raise ValueError(json.loads(response.read())["error"]["message"])
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[len(b"data: ") :])
        if "error" in chunk:
            raise ValueError(chunk["error"]["message"])
        for choice in chunk["choices"]:
            piece = choice["delta"].get("content") if "delta" in choice else choice["text"]
            if piece:
                yield piece
    connection.close()


def _parameters(engine: Any, file: Path, settings: dict[str, Any], threads: int) -> Any:
    parameters = engine.CommonParams()
    parameters.model.path = str(file)
    parameters.n_parallel = settings["max_batch"]
    parameters.n_ctx = settings["max_batch"] * settings["max_length"]
    parameters.n_batch = settings["chunk_tokens"]
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.fit_params = False
    parameters.warmup = False
    parameters.cache_ram_mib = 0
    parameters.verbosity = 0
    return parameters


def _identity(engine: Any, settings: dict[str, Any], threads: int) -> dict[str, Any]:
    version = importlib.metadata.version("xllamacpp")
    device = engine.get_device_info()[0]
    return {
        "engine": f"llama.cpp (xllamacpp {version})",
        "kv_tokens": settings["max_batch"] * settings["max_length"],
        "kv_block_tokens": 1,
        "device": {
            "kind": "cpu",
            "name": device["description"],
            "threads": threads,
            "memory_bytes": device["memory_total"],
            "python": platform.python_version(),
            "xllamacpp": version,
        },
    }


def _answer(answers: TextIO, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
