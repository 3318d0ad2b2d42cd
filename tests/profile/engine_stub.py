"""A worker whose engine is a closed form: python engine_stub.py MODE FOLDER SETTINGS.

The folder is one of vLLM or of llama.cpp, or a GGUF file. It schedules as both do: decodes first,
then prompts in order, up to a budget of tokens a step.
MODE is a JSON object; its keys are those of ``MODE`` below.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

MODE: dict[str, Any] = {
    "noise": 0.0,  # relative, of every step
    "kv_tokens": 10**9,
    "dies_after": None,  # answers
    "hangs_after": None,
    "junk_after": None,
    "answer": "not JSON",  # what junk is
    "vllm": "0.24.0",
    "device": "Stub GPU",
    "missing": False,
    "blocks_that_fit": 10**9,
    "tokens_that_fit": 10**9,  # of a batch at its end
}
ENGINE_US = 400.0
FIRST_RUN = 3.0  # times slower
KV_NS_PER_HEAD_TOKEN = 0.7
US_PER_WIDTH = 0.05
NS_PER_WIDTH_ROW = 0.4
ATTENTION_US = 20.0
NS_PER_ATTENTION_ROW = 300.0


def attention_us(kv_heads: int, sequences: list[tuple[int, int]]) -> float:
    """Time of one attention for (new tokens, context at their end) of each sequence."""
    rows = sum(new for new, _ in sequences)
    pairs = sum(new * context for new, context in sequences)
    return ATTENTION_US + 1e-3 * (
        NS_PER_ATTENTION_ROW * rows + KV_NS_PER_HEAD_TOKEN * kv_heads * pairs
    )


def ffn_us(width: int, rows: int) -> float:
    return US_PER_WIDTH * width + 1e-3 * NS_PER_WIDTH_ROW * width * rows


class Engine:
    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        file = folder if folder.suffix == ".gguf" else folder / "model.gguf"
        if file.exists():
            self.blocks = gguf_blocks(file)
            self.budget, self.longest = settings["chunk_tokens"], settings["max_length"]
            self.most = settings["max_batch"]
        else:
            self.blocks = decilm_blocks(folder)
            engine = settings["engine"]
            self.budget, self.longest = engine["max_num_batched_tokens"], engine["max_model_len"]
            self.most = engine["max_num_seqs"]
        assert self.blocks[0][0]

    def step_us(self, sequences: list[tuple[int, int]]) -> float:
        rows = sum(new for new, _ in sequences)
        total = ENGINE_US
        for kv_heads, width in self.blocks:
            if kv_heads:
                total += attention_us(kv_heads, sequences)
            if width:
                total += ffn_us(width, rows)
        return total

    def run(
        self, batch: int, input_len: int, output_len: int, noise: float
    ) -> list[tuple[float, int]]:
        assert input_len + output_len <= self.longest
        assert batch <= self.most
        held, made = [0] * batch, [0] * batch
        seconds, steps = 0.0, []
        while any(count < output_len for count in made):
            left, scheduled = self.budget, []
            for decoding in (True, False):
                for i in range(batch):
                    if made[i] == output_len or (held[i] >= input_len) != decoding:
                        continue
                    new = 1 if decoding else min(left, input_len - held[i])
                    if new <= 0 or i in [j for j, _ in scheduled]:
                        continue
                    left -= new
                    held[i] += new
                    scheduled.append((i, new))
            us = self.step_us([(new, held[i]) for i, new in scheduled])
            seconds += 1e-6 * us * (1 + noise * random.uniform(-1, 1))
            tokens = 0
            for i, _ in scheduled:
                if held[i] >= input_len:
                    made[i] += 1
                    tokens += 1
            if tokens:
                steps.append((seconds, tokens))
        return steps


def decilm_blocks(folder: Path) -> list[tuple[int, int]]:
    """KV heads and FFN width of every block of a folder for vLLM, 0 for none."""
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["DeciLMForCausalLM"]
    assert (folder / "configuration_decilm.py").exists()
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    return [
        (
            0 if block["attention"]["no_op"] else heads // block["attention"]["n_heads_in_group"],
            0 if block["ffn"]["no_op"] else round(2 * block["ffn"]["ffn_mult"] * hidden / 3),
        )
        for block in config["block_configs"]
    ]


def gguf_blocks(file: Path) -> list[tuple[int, int]]:
    """The same of a GGUF file; linear attention is attention with as many heads as none."""
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    architecture = fields["general.architecture"].contents()

    def sizes(key: str) -> list[int]:
        found = fields[f"{architecture}.{key}"].contents()
        count = fields[f"{architecture}.block_count"].contents()
        return found if isinstance(found, list) else [found] * count

    return list(zip(sizes("attention.head_count_kv"), sizes("feed_forward_length"), strict=True))


def main() -> None:
    mode = MODE | json.loads(sys.argv[1])
    folder, settings = Path(sys.argv[2]), json.loads(sys.argv[3])
    print("loading", folder, file=sys.stderr)
    if mode["missing"]:
        answer({"failed": "missing", "message": "No module named 'vllm'"})
        return
    engine = Engine(folder, settings)
    if len(engine.blocks) > mode["blocks_that_fit"]:
        answer({"failed": "memory", "message": "no available memory for the cache blocks"})
        return
    identity = {
        "engine": f"vllm {mode['vllm']}", "kv_tokens": mode["kv_tokens"], "kv_block_tokens": 16,
        "device": {
            "kind": "cuda", "name": mode["device"], "memory_bytes": 85 * 10**9,
            "vllm": mode["vllm"],
        },
    }  # fmt: skip
    answer({"ready": identity})
    seen: set[str] = set()
    for answered, line in enumerate(sys.stdin):
        request = json.loads(line)
        if answered == mode["dies_after"]:
            print("CUDA error: an illegal memory access", file=sys.stderr, flush=True)
            os._exit(17)
        if answered == mode["hangs_after"]:
            time.sleep(600)
        if answered == mode["junk_after"]:
            sys.stdout.write(mode["answer"] + "\n")
            sys.stdout.flush()
            continue
        if "path" in request:
            answer({"text": f"{request['path']}: "})
            answer({"text": json.dumps(request["body"])})
            answer({"end": None})
            continue
        held = request["batch"] * (request["input_len"] + request["output_len"])
        if held > mode["tokens_that_fit"]:
            answer({"failed": "memory", "message": "CUDA out of memory"})
            return
        steps = engine.run(**request, noise=mode["noise"])
        if line not in seen and request["output_len"] == 1:
            steps = [(seconds * FIRST_RUN, count) for seconds, count in steps]
        seen.add(line)
        answer({"steps": steps})


def answer(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
