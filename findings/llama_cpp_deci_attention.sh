#!/usr/bin/env bash
# llama.cpp loads a `deci` model whose block has attention and no FFN (feed_forward_length 0 there), and
# leaves that attention out without a word: in src/models/deci.cpp such a block ends before its result
# becomes the next block's input. nemotron-nas allows the block, and mlx-lm and vLLM compute it. (Blocks
# of Nemotron Ultra 253B without an FFN have no attention either, where nothing is lost.)
#
# Two files differ in nothing but the attention weights of such a block, which are large in one and zero
# in the other. Seen on 2026-11-28 with the versions below:
#   log-probabilities, attention and FFN in the block:   differ by more than 0.1
#   log-probabilities, attention alone in the block:     the same to the last bit
#
# Ends with 0 while that is so, with 1 once it is not.
set -euo pipefail

folder=$(mktemp -d)
trap 'cat "$folder/told.txt"; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    xllamacpp==2026.10.11549 gguf==0.19.0
cd "$folder"
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys

import gguf
import numpy as np
import xllamacpp

HIDDEN, HEADS, VOCABULARY, WIDTH, BLOCKS, ODD = 64, 4, 96, 64, 3, 1


def write(file, attention, ffn):
    """A model whose odd block has attention of this size, and an FFN or none."""
    draw = np.random.default_rng(0)

    def matrix(rows, columns, scale=0.2):
        return (scale * draw.standard_normal((rows, columns))).astype(np.float32)

    widths = [WIDTH if ffn or block != ODD else 0 for block in range(BLOCKS)]
    writer = gguf.GGUFWriter(file, "deci")
    writer.add_block_count(BLOCKS)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(widths)
    writer.add_head_count([HEADS] * BLOCKS)
    writer.add_head_count_kv([HEADS] * BLOCKS)
    writer.add_key_length(HIDDEN // HEADS)
    writer.add_value_length(HIDDEN // HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([chr(33 + n) if n < 94 else f"word{n}" for n in range(VOCABULARY)])
    writer.add_token_types([gguf.TokenType.NORMAL] * VOCABULARY)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_tensor("token_embd.weight", matrix(VOCABULARY, HIDDEN, 1.0))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    writer.add_tensor("output.weight", matrix(VOCABULARY, HIDDEN))
    for block in range(BLOCKS):
        factor = attention if block == ODD else 1.0
        writer.add_tensor(f"blk.{block}.attn_norm.weight", np.ones(HIDDEN, np.float32))
        for name in ("q", "k", "v", "output"):
            own = factor * matrix(HIDDEN, HIDDEN)
            writer.add_tensor(f"blk.{block}.attn_{name}.weight", own.astype(np.float32))
        if widths[block]:
            writer.add_tensor(f"blk.{block}.ffn_norm.weight", np.ones(HIDDEN, np.float32))
            writer.add_tensor(f"blk.{block}.ffn_gate.weight", matrix(WIDTH, HIDDEN))
            writer.add_tensor(f"blk.{block}.ffn_up.weight", matrix(WIDTH, HIDDEN))
            writer.add_tensor(f"blk.{block}.ffn_down.weight", matrix(HIDDEN, WIDTH))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logprobs(file):
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx = 256
    params.cpuparams.n_threads = 1
    answer = xllamacpp.Server(params).handle_completions(
        {"prompt": [5, 17, 40, 8], "max_tokens": 1, "temperature": 0, "logprobs": VOCABULARY}
    )
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return np.array([one["logprob"] for one in sorted(top, key=lambda one: one["id"])])


apart = {}
for ffn in (True, False):
    write("zero.gguf", 0.0, ffn)
    write("large.gguf", 2.0, ffn)
    apart[ffn] = float(np.abs(logprobs("zero.gguf") - logprobs("large.gguf")).max())
told = (
    f"log-probabilities, attention and FFN in the block: apart by {apart[True]:.3f}\n"
    f"log-probabilities, attention alone in the block:   apart by {apart[False]:.3f}\n"
)
with open("told.txt", "w") as file:
    file.write(told)
sys.exit(not (apart[True] > 0.1 and apart[False] == 0))
PYTHON
