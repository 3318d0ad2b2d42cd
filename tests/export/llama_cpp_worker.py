"""Answers of llama.cpp, in a process of its own: what it cannot load may end the process.

Reads one JSON object a line. ``{"file": ..., "prompt": [ids], "tokens": n, "vocabulary": n}`` is
answered with ``{"ids": [...], "logprobs": [[...], ...]}``, of greedy decoding; ``{"file": ...,
"texts": [...]}`` with ``{"ids": [[...], ...]}``; what fails with ``{"error": ...}``. Runs in any
interpreter that has xllamacpp; it imports nothing else.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request

import xllamacpp as engine


def start(file: str) -> engine.Server:
    params = engine.CommonParams()
    params.model.path = file
    params.n_ctx, params.n_parallel = 256, 1
    params.cpuparams.n_threads = 1
    params.warmup = False
    params.fit_params = False
    # Flash attention on a CPU rounds more than a comparison allows.
    params.flash_attn_type = engine.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = engine.ggml_type.GGML_TYPE_F32
    return engine.Server(params)


def tokenized(file: str, texts: list[str]) -> dict[str, object]:
    server, ids = start(file), []
    for text in texts:
        body = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
        request = urllib.request.Request(
            f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            ids.append(json.load(response)["tokens"])
    return {"ids": ids}


def decoded(file: str, prompt: list[int], tokens: int, vocabulary: int) -> dict[str, object]:
    request = {
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "logprobs": vocabulary,
        "ignore_eos": True,
        "cache_prompt": False,
    }
    steps = start(file).handle_completions(request)["choices"][0]["logprobs"]["content"]
    logprobs = []
    for step in steps:
        by_id = {one["id"]: one["logprob"] for one in step["top_logprobs"]}
        logprobs.append([by_id[token] for token in range(vocabulary)])
    return {"ids": [step["id"] for step in steps], "logprobs": logprobs}


def main() -> None:
    # The engine logs to stdout as well: answers go where it does not write.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            question = json.loads(line)
            told = tokenized(**question) if "texts" in question else decoded(**question)
        except (RuntimeError, ValueError, KeyError) as error:
            told = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(told), file=out, flush=True)


if __name__ == "__main__":
    main()
