"""Answers of transformers with the class in a folder, where this package cannot be imported.

Reads one JSON object a line. ``{"file": folder, "prompt": [ids], "tokens": n, "vocabulary": n}`` is
answered with ``{"ids": [...], "logprobs": [[...], ...], "cached": n}``, of greedy decoding with a
cache and the numbers that this held; with ``"again": folder``, of the model that was saved there
and loaded again.
"""

from __future__ import annotations

import json
import sys
import tempfile

import os  # isort: skip

os.environ |= {"HF_MODULES_CACHE": tempfile.mkdtemp(), "HF_HUB_OFFLINE": "1"}
sys.modules["puzzle_search"] = None  # type: ignore[assignment]

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

END = 0


def decoded(
    file: str, prompt: list[int], tokens: int, vocabulary: int, again: str | None = None
) -> dict[str, object]:
    model = AutoModelForCausalLM.from_pretrained(file, trust_remote_code=True)
    if again is not None:
        model.save_pretrained(again)
        AutoTokenizer.from_pretrained(file).save_pretrained(again)
        model = AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True)
    model.generation_config.eos_token_id = None  # go on past the end
    out = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=tokens,
        do_sample=False,
        suppress_tokens=[END],
        return_dict_in_generate=True,
        output_logits=True,
    )
    logprobs = torch.cat(out.logits).log_softmax(-1)
    assert logprobs.shape[1] == vocabulary
    kept = [layer for layer in out.past_key_values.layers if layer.keys is not None]
    return {
        "ids": out.sequences[0, len(prompt) :].tolist(),
        "logprobs": logprobs.tolist(),
        "cached": sum(layer.keys.numel() + layer.values.numel() for layer in kept),
    }


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            told = decoded(**json.loads(line))
        except (ValueError, TypeError, KeyError, RuntimeError, ImportError, OSError) as error:
            told = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(told), file=out, flush=True)


if __name__ == "__main__":
    main()
