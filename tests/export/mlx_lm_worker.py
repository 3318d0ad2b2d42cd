"""Answers of mlx-lm, in an interpreter that has it.

Reads one JSON object a line, ``{"file": folder, "prompt": [ids], "tokens": n, "vocabulary": n}``,
and answers with one, ``{"ids": [...], "logprobs": [[...], ...]}``, of greedy decoding with a cache.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

END = 0


def decoded(file: str, prompt: list[int], tokens: int, vocabulary: int) -> dict[str, object]:
    model, _ = load_model(Path(file))
    cache = make_prompt_cache(model)
    given, ids, logprobs = prompt, [], []
    for _ in range(tokens):
        logits = model(mx.array([given]), cache=cache)[0, -1].astype(mx.float32)
        step = (logits - mx.logsumexp(logits)).tolist()
        likeliest = max(set(range(vocabulary)) - {END}, key=step.__getitem__)
        given = [likeliest]
        ids.append(likeliest)
        logprobs.append(step)
    return {"ids": ids, "logprobs": logprobs}


for line in sys.stdin:
    try:
        told = decoded(**json.loads(line))
    except (ValueError, TypeError, KeyError, RuntimeError, IndexError) as error:
        told = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(told), flush=True)
