#!/usr/bin/env bash
# transformers 5.23.0 reads a GGUF file without a word about two things that change what it computes:
#
#   1. rope scaling: keys `llama.rope.scaling.*` (here YaRN, factor 4) and the tensor `rope_freqs.weight`
#      (all that llama.cpp's converter keeps of Llama 3.1's scaling) are dropped; the model runs with
#      the plain frequencies.
#   2. the pre-tokenizer's name, `tokenizer.ggml.pre`: under `smollm` llama.cpp cuts digits apart; here
#      they are merged as in GPT-2, and the token ids are others.
#
# Seen on 2026-11-28 with the versions below:
#   rope of a file with YaRN:          {'rope_theta': 10000.0, 'rope_type': 'default'}
#   tokens of '12' under 'smollm':     ['12']
#
# Ends with 0 while that is so, with 1 once it is not.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 gguf==0.19.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import gguf
import transformers
from transformers import AutoConfig, AutoTokenizer

writer = gguf.GGUFWriter("tiny.gguf", "llama")
writer.add_name("tiny")
writer.add_block_count(1)
writer.add_context_length(128)
writer.add_embedding_length(64)
writer.add_feed_forward_length(64)
writer.add_head_count(1)
writer.add_head_count_kv(1)
writer.add_rope_dimension_count(64)
writer.add_rope_freq_base(10000.0)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
writer.add_rope_scaling_factor(4.0)
writer.add_rope_scaling_orig_ctx_len(32)
tokens = ["<|end|>", *"0123456789", "12"]
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("smollm")
writer.add_token_list(tokens)
writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * 11)
writer.add_token_merges(["1 2"])
writer.add_bos_token_id(0)
writer.add_eos_token_id(0)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

rope = AutoConfig.from_pretrained(".", gguf_file="tiny.gguf").rope_parameters
cut = AutoTokenizer.from_pretrained(".", gguf_file="tiny.gguf").tokenize("12")
print("transformers", transformers.__version__)
print("rope of a file with YaRN:         ", rope)
print("tokens of '12' under 'smollm':    ", cut)
sys.exit(not (rope["rope_type"] == "default" and cut == ["12"]))
PYTHON
