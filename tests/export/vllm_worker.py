"""Answers of vLLM, in an interpreter that has it.

Reads one JSON object a line, ``{"file": folder, "prompt": [ids], "tokens": n, "vocabulary": n}``,
and answers with one, ``{"ids": [...], "logprobs": [[...], ...]}``, of greedy decoding.
"""

from __future__ import annotations

import gc
import json
import os
import sys

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

END = 0


def decoded(file: str, prompt: list[int], tokens: int, vocabulary: int) -> dict[str, object]:
    from vllm import LLM, SamplingParams

    engine = LLM(
        file,
        trust_remote_code=True,
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        max_logprobs=vocabulary,
        seed=0,
    )
    wanted = SamplingParams(
        temperature=0,
        max_tokens=tokens,
        logprobs=vocabulary,
        ignore_eos=True,
        logit_bias={END: -100.0},
        detokenize=False,
    )
    output = engine.generate({"prompt_token_ids": prompt}, wanted, use_tqdm=False)[0].outputs[0]
    assert output.logprobs is not None
    logprobs = [[step[token].logprob for token in range(vocabulary)] for step in output.logprobs]
    del engine
    gc.collect()
    return {"ids": list(output.token_ids), "logprobs": logprobs}


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            told = decoded(**json.loads(line))
        except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
            told = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(told), file=out, flush=True)


if __name__ == "__main__":
    main()
